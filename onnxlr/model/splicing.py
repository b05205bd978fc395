"""Putting replacement nodes and tensors into the original proto; nothing else changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx

from onnxlr.model.scopes import scopes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnxlr.model.model import Model

__all__ = ["Splice", "splice"]


@dataclass
class Splice:
    """A change of the main graph.

    Attributes
    ----------
    nodes
        By index of a node of the original graph: the nodes that take its place.
    initializers, value_infos
        New tensors, and the types of new tensors.
    released
        Weights that the replaced nodes used; each disappears if nothing else uses it.
    """

    nodes: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    value_infos: list[onnx.ValueInfoProto] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def byte_size(self) -> int:
        """Return the bytes that the new nodes and tensors take in the file."""
        nodes = sum(node.ByteSize() for group in self.nodes.values() for node in group)
        tensors = sum(tensor.ByteSize() for tensor in self.initializers)
        return int(nodes + tensors + sum(value.ByteSize() for value in self.value_infos))

    def merge(self, other: Splice) -> None:
        """Add another change, of other nodes."""
        self.nodes.update(other.nodes)
        self.initializers.extend(other.initializers)
        self.value_infos.extend(other.value_infos)
        self.released.extend(other.released)


def splice(model: Model, change: Splice) -> None:
    """Apply a change to the model's proto, in place.

    At IR version 3 every initializer must be an input of the graph, so new ones are listed there
    and removed ones are taken off.
    """
    graph = model.proto.graph
    _replace_nodes(graph, change.nodes)
    graph.initializer.extend(change.initializers)
    graph.value_info.extend(change.value_infos)
    if model.proto.ir_version < 4:
        graph.input.extend(_as_input(tensor) for tensor in change.initializers)
    _remove_unused(model.proto, set(change.released))
    for cached in ("names", "types", "initializers"):
        model.__dict__.pop(cached, None)


def _replace_nodes(
    graph: onnx.GraphProto, replacements: Mapping[int, list[onnx.NodeProto]]
) -> None:
    if not replacements:
        return
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        graph.node.extend(replacements.get(index, (node,)))


def _as_input(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)


def _remove_unused(model: onnx.ModelProto, released: set[str]) -> None:
    gone = released - _used_names(model)
    if not gone:
        return
    graph = model.graph
    constants = [
        node for node in graph.node if node.op_type == "Constant" and node.output[0] in gone
    ]
    for node in constants:
        graph.node.remove(node)
    _remove_named(graph.initializer, gone)
    _remove_named(graph.value_info, gone)
    _remove_named(graph.input, gone)
    for index in reversed(range(len(graph.quantization_annotation))):
        if graph.quantization_annotation[index].tensor_name in gone:
            del graph.quantization_annotation[index]


def _remove_named(
    messages: Iterable[onnx.TensorProto | onnx.ValueInfoProto], names: set[str]
) -> None:
    kept = list(messages)
    for index in reversed(range(len(kept))):
        if kept[index].name in names:
            del messages[index]  # type: ignore[attr-defined]


def _used_names(model: onnx.ModelProto) -> set[str]:
    """Return every tensor name that a node, an output or a quantisation annotation refers to.

    Subgraphs count whole: a name that is defined anew inside one is taken as a use, too, which at
    worst keeps a tensor.
    """
    used: set[str] = set()
    for scope in scopes(model):
        for node in scope.graph.node:
            used.update(node.input)
        used.update(o if isinstance(o, str) else o.name for o in scope.graph.output)
        for annotation in getattr(scope.graph, "quantization_annotation", ()):
            used.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return used
