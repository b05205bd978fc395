"""Collects the graphsurgeon nodes that replace a layer, and exports them as protos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from onnxlr.lowering.place import Place
    from onnxlr.model.names import Names
    from onnxlr.model.shapes import Dim

__all__ = ["Exported", "Nodes"]


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
    """

    nodes: list[list[onnx.NodeProto]]
    initializers: list[onnx.TensorProto]
    value_infos: list[list[onnx.ValueInfoProto]]


class Nodes:
    """Nodes and tensors of one layer's replacement, grouped by site.

    Constants are written once and shared by all sites; the nodes that decode them once for each
    graph, before its first site.
    """

    def __init__(self, names: Names, opset: int, dtype: np.dtype[Any], prefix: str) -> None:
        self._names = names
        self._graph = gs.Graph(opset=opset)
        self._sites: list[int] = []
        self._constants: dict[tuple[int, str, bool, bool], gs.Constant] = {}
        self._existing: dict[str, gs.Variable] = {}
        self._prefix = prefix
        self.dtype = dtype
        self.operands: dict[tuple[int, int, bool], tuple[bool, gs.Tensor]] = {}

    def begin_site(self) -> None:
        """Start the nodes of the next site."""
        self._sites.append(len(self._graph.nodes))

    def constant(self, values: npt.NDArray[Any], place: Place, hint: str) -> gs.Constant:
        """Return the initializer of a stage's values, a new one for the first site that asks."""
        key = (id(place.stage), hint, place.flip, place.spreads)
        if key not in self._constants:
            name = self._names.new(f"{self._prefix}.{hint}")
            self._constants[key] = gs.Constant(name, np.ascontiguousarray(values))
        return self._constants[key]

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
        """
        name = self._names.new(f"{self._prefix}.{hint}")
        if output is None:
            result = gs.Variable(self._names.new(f"{name}.output"))
            if dims is not None:
                result.dtype, result.shape = np.dtype(dtype or self.dtype), list(dims)
        else:
            result = self.existing(output)
        self._graph.nodes.append(
            gs.Node(operator, name, dict(attributes or {}), list(inputs), [result])
        )
        return result

    def export(self) -> Exported:
        """Return all as protos."""
        graph = gs.export_onnx(self._graph, do_type_check=False).graph
        nodes = list(graph.node)
        ends = (*self._sites[1:], len(nodes))
        groups = [nodes[begin:end] for begin, end in zip(self._sites, ends, strict=True)]
        typed = {value.name: value for value in graph.value_info}
        infos = [
            [typed[name] for node in group for name in node.output if name in typed]
            for group in groups
        ]
        return Exported(groups, list(graph.initializer), infos)
