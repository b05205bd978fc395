"""Putting replacement nodes and tensors into the original proto; nothing else changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import onnx

from onnxlr.model.liveness import Key, Uses
from onnxlr.model.model import Model
from onnxlr.model.scopes import scopes

if TYPE_CHECKING:
    from onnxlr.model.data_file import DataFile

__all__ = ["Splice", "splice"]


@dataclass
class Splice:
    """A change of a model's graphs, which are counted as `scopes` yields them.

    Attributes
    ----------
    nodes
        By graph and position of a node of the original: the nodes that take its place.
    initializers
        New tensors of the main graph.
    value_infos
        Types of new tensors, with the graph they are in.
    domains
        Domains of operators, beside the standard one, that the new nodes are of.
    released
        Tensors that the replaced nodes used, from the operand back to the stored weight; each
        disappears, with the node that makes it, if nothing else uses it.
    """

    nodes: dict[tuple[int, int], list[onnx.NodeProto]] = field(default_factory=dict)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    value_infos: list[tuple[int, onnx.ValueInfoProto]] = field(default_factory=list)
    released: list[Key] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)

    def byte_size(self) -> int:
        """Return the bytes that the new nodes and tensors take in the file."""
        nodes = sum(node.ByteSize() for group in self.nodes.values() for node in group)
        tensors = sum(tensor.ByteSize() for tensor in self.initializers)
        return int(nodes + tensors + sum(value.ByteSize() for _, value in self.value_infos))

    def moved_to(self, data: DataFile) -> Splice:
        """Return the change with the values of its tensors in a data file.

        All messages are new: those that were made together share memory, which is given back with
        the last of them.
        """
        nodes = {
            place: [_fresh(onnx.NodeProto(), node) for node in group]
            for place, group in self.nodes.items()
        }
        infos = [(scope, _fresh(onnx.ValueInfoProto(), info)) for scope, info in self.value_infos]
        tensors = data.take(self.initializers)
        return Splice(nodes, tensors, infos, self.released, self.domains)

    def merge(self, other: Splice) -> None:
        """Add another change, of other nodes."""
        self.nodes.update(other.nodes)
        self.initializers.extend(other.initializers)
        self.value_infos.extend(other.value_infos)
        self.released.extend(other.released)
        self.domains |= other.domains


Message = TypeVar("Message", onnx.NodeProto, onnx.ValueInfoProto)


def _fresh(empty: Message, message: Message) -> Message:
    """Return a copy of a message, in an empty one."""
    empty.CopyFrom(message)
    return empty


def splice(model: Model, change: Splice) -> None:
    """Apply a change to the model's proto, in place.

    At IR version 3 every initializer must be an input of the graph, so new ones are listed there
    and removed ones are taken off.
    """
    graphs = [scope.graph for scope in scopes(model.proto)]
    by_graph: dict[int, dict[int, list[onnx.NodeProto]]] = {}
    for (position, index), nodes in change.nodes.items():
        by_graph.setdefault(position, {})[index] = nodes
    # A graph's nodes are copied when they are put back, so inner graphs must be done before.
    for position in sorted(by_graph, reverse=True):
        _replace_nodes(graphs[position], by_graph[position])
    graphs = [scope.graph for scope in scopes(model.proto)]
    _import_domains(model.proto, change.domains)
    for position, value in change.value_infos:
        graphs[position].value_info.append(value)
    graph = model.proto.graph
    graph.initializer.extend(change.initializers)
    if model.proto.ir_version < 4:
        graph.input.extend(_as_input(tensor) for tensor in change.initializers)
    _remove_unused(model.proto, change.released)
    model.added.update(tensor.name for tensor in change.initializers)
    for cached in ("names", "types", "initializers", "uses"):
        model.__dict__.pop(cached, None)


def _import_domains(model: onnx.ModelProto, domains: set[str]) -> None:
    """Import operators of further domains, for the model and for functions that now use them."""
    for domain in sorted(domains):
        users = [f for f in model.functions if any(n.domain == domain for n in _all(f.node))]
        for owner in (model, *users):
            if all(entry.domain != domain for entry in owner.opset_import):
                owner.opset_import.add(domain=domain, version=1)


def _all(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs, at any depth."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all(graph.node)


def _replace_nodes(
    graph: onnx.GraphProto | onnx.FunctionProto, replacements: Mapping[int, list[onnx.NodeProto]]
) -> None:
    nodes = list(graph.node)
    del graph.node[:]
    for index, node in enumerate(nodes):
        graph.node.extend(replacements.get(index, (node,)))


def _as_input(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)


def _remove_unused(model: onnx.ModelProto, released: Iterable[Key]) -> None:
    """Remove what is no longer used; nodes on the way to a weight go before the weight."""
    uses = Uses(model)
    graphs = [scope.graph for scope in scopes(model)]
    gone: dict[int, set[str]] = {}
    removed: set[tuple[int, int]] = set()
    pending = list(dict.fromkeys(released))
    for key in pending:  # grows by the shapes and axes that only a removed node took
        maker = uses.maker(key)
        outputs = [key]
        if maker is not None:
            outputs = [(key[0], name) for name in graphs[maker[0]].node[maker[1]].output if name]
        if maker in removed or any(uses.is_used(output, removed) for output in outputs):
            continue
        gone.setdefault(key[0], set()).add(key[1])
        if maker is not None:
            removed.add(maker)
            settings = graphs[maker[0]].node[maker[1]].input[1:]
            pending += [uses.resolve(maker[0], name) for name in settings if name]
    for position, index in sorted(removed, reverse=True):
        del graphs[position].node[index]
    for position, names in gone.items():
        _remove_tensors(graphs[position], names)


def _remove_tensors(graph: onnx.GraphProto | onnx.FunctionProto, names: set[str]) -> None:
    _remove_named(graph.value_info, names)
    if isinstance(graph, onnx.FunctionProto):
        return
    _remove_named(graph.initializer, names)
    _remove_named(graph.input, names)
    for index in reversed(range(len(graph.quantization_annotation))):
        if graph.quantization_annotation[index].tensor_name in names:
            del graph.quantization_annotation[index]


def _remove_named(
    messages: Iterable[onnx.TensorProto | onnx.ValueInfoProto], names: set[str]
) -> None:
    kept = list(messages)
    for index in reversed(range(len(kept))):
        if kept[index].name in names:
            del messages[index]  # type: ignore[attr-defined]
