"""Collects the graphsurgeon nodes that replace a layer, and exports them as protos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from onnxlr.model.names import Names
    from onnxlr.model.shapes import Dim

__all__ = ["Nodes"]


class Nodes:
    """Nodes and tensors of one layer's replacement, grouped by site.

    Constants and the nodes that decode them are written once and shared by all sites; they stand
    before the first site, which comes first in the graph.
    """

    def __init__(self, names: Names, opset: int, dtype: np.dtype[Any], prefix: str) -> None:
        self._names = names
        self._graph = gs.Graph(opset=opset)
        self._sites: list[int] = []
        self._variables: list[gs.Variable] = []
        self._prefix = prefix
        self.dtype = dtype
        self.operands: dict[tuple[int, bool], tuple[bool, gs.Tensor]] = {}

    def begin_site(self) -> None:
        """Start the nodes of the next site."""
        self._sites.append(len(self._graph.nodes))

    def constant(self, values: npt.NDArray[Any], hint: str) -> gs.Constant:
        """Return a new initializer."""
        name = self._names.new(f"{self._prefix}.{hint}")
        return gs.Constant(name, np.ascontiguousarray(values))

    def existing(self, name: str) -> gs.Variable:
        """Return a tensor of the model; the empty name is an absent input."""
        return gs.Variable(name) if name else gs.Variable.empty()

    def add(
        self,
        operator: str,
        inputs: Sequence[gs.Tensor],
        hint: str,
        dims: Sequence[Dim] | None,
        attributes: Mapping[str, Any] | None = None,
        output: str | None = None,
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
        """
        name = self._names.new(f"{self._prefix}.{hint}")
        if output is None:
            result = gs.Variable(self._names.new(f"{name}.output"))
            if dims is not None:
                result.dtype, result.shape = self.dtype, list(dims)
                self._variables.append(result)
        else:
            result = gs.Variable(output)
        self._graph.nodes.append(
            gs.Node(operator, name, dict(attributes or {}), list(inputs), [result])
        )
        return result

    def export(
        self,
    ) -> tuple[list[list[onnx.NodeProto]], list[onnx.TensorProto], list[onnx.ValueInfoProto]]:
        """Return the nodes of each site, the initializers, and the types of new tensors."""
        graph = gs.export_onnx(self._graph, do_type_check=False).graph
        nodes = list(graph.node)
        ends = (*self._sites[1:], len(nodes))
        groups = [nodes[begin:end] for begin, end in zip(self._sites, ends, strict=True)]
        known = {variable.name for variable in self._variables}
        infos = [info for info in graph.value_info if info.name in known]
        return groups, list(graph.initializer), infos
