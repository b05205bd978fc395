"""Collects the graphsurgeon nodes that replace a layer, and exports them as protos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxlr.model.tensors import make_tensor

if TYPE_CHECKING:
    from onnxlr.lowering.position import Position
    from onnxlr.model.names import Names
    from onnxlr.model.shapes import Dim
    from onnxlr.stages import Stored

__all__ = ["Exported", "Nodes"]

_SMALL_TYPES = ("uint4", "uint2")
"""Types of which several share a byte in the file; graphsurgeon writes each into one of its own."""


@dataclass(frozen=True)
class Exported:
    """The protos of a layer's replacement.

    Attributes
    ----------
    nodes
        For each site in order.
    initializers
        New tensors.
    value_infos
        Types of the tensors that each site's nodes make.
    domains
        Domains of the nodes' operators beside the standard one; each in its version 1.
    """

    nodes: list[list[onnx.NodeProto]]
    initializers: list[onnx.TensorProto]
    value_infos: list[list[onnx.ValueInfoProto]]
    domains: frozenset[str] = frozenset()


class Nodes:
    """Nodes and tensors of one layer's replacement, grouped by site.

    Constants are written once and shared by all sites; the nodes that decode them once for each
    graph, before its first site.

    Attributes
    ----------
    opset
        Version of the standard operators.
    dtype
        The layer's float type.
    operands
        What `shared_operand` has written.
    terms
        Stages of the terms of ternary stages.
    domains
        Domains of the nodes' operators beside the standard one.
    """

    def __init__(self, names: Names, opset: int, dtype: np.dtype[Any], prefix: str) -> None:
        self._names = names
        self._graph = gs.Graph(opset=opset)
        self._sites: list[int] = []
        self._constants: dict[tuple[int, str, tuple[int, ...], bytes], gs.Constant] = {}
        self._existing: dict[str, gs.Variable] = {}
        self._prefix = prefix
        self._small: dict[str, npt.NDArray[Any]] = {}
        self._is_brief = False
        self._unstated: set[str] = set()
        self.opset = opset
        self.dtype = dtype
        self.domains: set[str] = set()
        self.operands: dict[tuple[int, int, bool], tuple[bool, gs.Tensor]] = {}
        self.terms: dict[tuple[int, str], tuple[Stored, ...]] = {}

    def begin_site(self) -> None:
        """Start the nodes of the next site."""
        self._sites.append(len(self._graph.nodes))

    @contextmanager
    def briefly(self) -> Iterator[None]:
        """Write nodes without names, and tensors with short ones whose types are not stated.

        Beside numbers of few bits, the names of a dozen nodes would take a tenth of the file.
        """
        self._is_brief = True
        try:
            yield
        finally:
            self._is_brief = False

    def state(self, tensor: gs.Variable) -> None:
        """State the type of a tensor that was written briefly."""
        self._unstated.discard(tensor.name)

    def _new(self, hint: str) -> str:
        return self._names.new("z" if self._is_brief else f"{self._prefix}.{hint}")

    def constant(self, values: npt.NDArray[Any], place: Position, hint: str) -> gs.Constant:
        """Return the initializer of a stage's values, a new one for the first that asks."""
        held = np.asarray(values, order="C")
        digest = blake2b(held.tobytes()).digest()
        key = (id(place.stage), held.dtype.name, held.shape, digest)
        if key not in self._constants:
            name = self._new(hint)
            if held.dtype.name in _SMALL_TYPES:
                self._small[name] = held
                held = held.astype(np.uint8)
            self._constants[key] = gs.Constant(name, held)
        return self._constants[key]

    def new_name(self, hint: str) -> str:
        """Return a new name of the layer."""
        return self._names.new(f"{self._prefix}.{hint}")

    def new_constant(self, values: npt.NDArray[Any], hint: str) -> gs.Constant:
        """Return a new initializer, of one site alone."""
        return gs.Constant(self._names.new(f"{self._prefix}.{hint}"), np.ascontiguousarray(values))

    def existing(self, name: str) -> gs.Variable:
        """Return a tensor of the model; the empty name is an absent input."""
        if not name:
            return gs.Variable.empty()
        return self._existing.setdefault(name, gs.Variable(name))

    def add(
        self,
        operator: str,
        inputs: Sequence[gs.Tensor],
        hint: str,
        dims: Sequence[Dim] | None,
        attributes: Mapping[str, Any] | None = None,
        output: str | None = None,
        dtype: npt.DTypeLike | None = None,
        domain: str = "",
    ) -> gs.Variable:
        """Add a node and return its result.

        Parameters
        ----------
        operator, inputs, attributes
            Of the node.
        hint
            End of the names of the node and of its result.
        dims
            Dimensions of the result, None if its rank is not known.
        output
            Name of the tensor of the model that this is; a new one if not given.
        dtype
            Type of the result; the layer's float type if not given.
        domain
            Of the operator; the empty one is the standard's.
        """
        name = "" if self._is_brief else self._new(hint)
        result = self._result(name, dims, dtype) if output is None else self.existing(output)
        node = gs.Node(
            operator, name, dict(attributes or {}), list(inputs), [result], domain or None
        )
        if domain:
            self.domains.add(domain)
        self._graph.nodes.append(node)
        return result

    def quantized(
        self, x: gs.Tensor, dims: Sequence[Dim] | None
    ) -> tuple[gs.Variable, gs.Variable, gs.Variable]:
        """Add DynamicQuantizeLinear, and return its codes, their scale and their zero point."""
        name = self._names.new(f"{self._prefix}.DynamicQuantizeLinear")
        codes = self._result(name, dims, np.uint8)
        scale = self._result(name, (), np.float32)
        zero_point = self._result(name, (), np.uint8)
        self._graph.nodes.append(
            gs.Node("DynamicQuantizeLinear", name, {}, [x], [codes, scale, zero_point])
        )
        return codes, scale, zero_point

    def _result(
        self, name: str, dims: Sequence[Dim] | None, dtype: npt.DTypeLike | None
    ) -> gs.Variable:
        if self._is_brief:
            result = gs.Variable(self._new(name))
            self._unstated.add(result.name)
        else:
            result = gs.Variable(self._names.new(f"{name}.output"))
        if dims is not None:
            result.dtype, result.shape = np.dtype(dtype or self.dtype), list(dims)
        return result

    def export(self) -> Exported:
        """Return all as protos; nothing more can be added."""
        graph = gs.export_onnx(self._graph, do_type_check=False).graph
        for tensor in graph.initializer:
            if tensor.name in self._small:
                tensor.CopyFrom(make_tensor(self._small[tensor.name], tensor.name))
        nodes = list(graph.node)
        ends = (*self._sites[1:], len(nodes))
        groups = [nodes[begin:end] for begin, end in zip(self._sites, ends, strict=True)]
        typed = {v.name: v for v in graph.value_info if v.name not in self._unstated}
        infos = [
            [typed[name] for node in group for name in node.output if name in typed]
            for group in groups
        ]
        for tensor in self._graph.tensors().values():
            if isinstance(tensor, gs.Constant):  # held until Python tidies up
                tensor.values = np.zeros(0, tensor.dtype)
        return Exported(groups, list(graph.initializer), infos, frozenset(self.domains))
