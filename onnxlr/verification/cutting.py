"""Cuts layers out of the reference model, so that each can be run on any data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx

from onnxlr.rewriting import Piece

__all__ = ["cut_out", "declare_inputs"]


def cut_out(
    reference: onnx.ModelProto, known: set[str], pieces: Sequence[Piece]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a model of nothing but the pieces, and the tensors that they take.

    Parameters
    ----------
    reference
        The reference model.
    known
        Names of the tensors of the original: those that other models have as well.
    pieces
        What to cut out; the outputs of the result are theirs in order.

    Returns
    -------
    ModelProto, dict
        The model, whose inputs are still to be declared, and by the name of each of them the tensor
        that belongs there.
    """
    cut = _Cut(reference, known)
    outputs = [cut.add(number, piece) for number, piece in enumerate(pieces)]
    model = onnx.ModelProto()
    model.CopyFrom(reference)
    for field in ("node", "input", "output", "value_info"):
        del getattr(model.graph, field)[:]
    model.graph.node.extend(cut.nodes)
    for name in outputs:
        model.graph.output.add(name=name)
    if model.ir_version < 4:  # initializers must be inputs there
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in reference.graph.initializer
        )
    return model, cut.inputs


def declare_inputs(model: onnx.ModelProto, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Declare the inputs of a model, of the types of arrays that they are to take."""
    for name, array in arrays.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))


class _Cut:
    def __init__(self, reference: onnx.ModelProto, known: set[str]) -> None:
        graph = reference.graph
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._constants = _constants(graph)
        self._taken: set[str] = set()
        self._known = known
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, str] = {}

    def add(self, number: int, piece: Piece) -> str:
        """Add a piece's nodes and return the name of its output."""
        return self._follow(piece.output, number, piece)

    def _follow(self, name: str, number: int, piece: Piece) -> str:
        """Return what a tensor is called in the cut, with all it is made of."""
        if not name:
            return name
        if name in self._constants:
            self._keep(name)
            return name
        inside = name in (piece.output, piece.site.output) or name not in self._known
        if not inside:
            own = f"data{number}.{name}"
            self.inputs[own] = name
            return own
        node = onnx.NodeProto()
        node.CopyFrom(self._makers[name])
        inputs = [self._follow(one, number, piece) for one in node.input]
        outputs = [f"piece{number}.{one}" if one else "" for one in node.output]
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
        self.nodes.append(node)
        return f"piece{number}.{name}"

    def _keep(self, name: str) -> None:
        """Keep the nodes that make a constant, each once."""
        node = self._makers.get(name)
        if node is None or name in self._taken:
            return
        self._taken.update(node.output)
        for one in node.input:
            self._keep(one)
        self.nodes.append(node)


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Return the names of initializers and of what is made of constants alone.

    Nodes come after those whose outputs they take: one look at each will do, however deep a model.
    """
    found = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant" or (node.input and found.issuperset(inputs)):
            found.update(name for name in node.output if name)
    return found
