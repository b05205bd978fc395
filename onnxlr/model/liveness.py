"""Who makes and who uses each tensor, with the names of subgraphs told apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import onnx

from onnxlr.model.scopes import Scope, scopes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Key", "Uses", "read_by"]

Key = tuple[int, str]
"""A tensor: the position of the graph that defines it, and its name there."""

_NOT_A_NODE = -1


def read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that its subgraphs capture among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from read_by(inner)


class Uses:
    """The makers and users of every tensor of a model, as it was when this was made."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._scopes = list(scopes(model))
        self._defined = [set(_definitions(scope.graph)) for scope in self._scopes]
        self._makers: dict[Key, tuple[int, int]] = {}
        self._users: dict[Key, list[tuple[int, int, str]]] = {}
        for position, scope in enumerate(self._scopes):
            self._add_nodes(position, scope)
            for name, label in _other_uses(scope.graph):
                self._use(position, name, _NOT_A_NODE, label)
        for training in model.training_info:
            for binding in (*training.initialization_binding, *training.update_binding):
                for name in (binding.key, binding.value):
                    self._use(0, name, _NOT_A_NODE, "the training information")

    def _add_nodes(self, position: int, scope: Scope) -> None:
        where = "" if scope.is_main else f" in {' / '.join(scope.path)}"
        for index, node in enumerate(scope.graph.node):
            label = f"{node.op_type} '{node.name or ','.join(node.output)}'{where}"
            for name in filter(None, node.input):
                self._use(position, name, index, label)
            for name in filter(None, node.output):
                self._makers[(position, name)] = (position, index)

    def _use(self, position: int, name: str, index: int, label: str) -> None:
        key = self.resolve(position, name)
        self._users.setdefault(key, []).append((position, index, label))

    def resolve(self, scope: int, name: str) -> Key:
        """Return the tensor that a name means in a graph."""
        position: int | None = scope
        while position is not None and name not in self._defined[position]:
            position = self._scopes[position].parent
        return (scope if position is None else position, name)

    def maker(self, key: Key) -> tuple[int, int] | None:
        """Return the graph and position of the node that makes a tensor, None if none does."""
        return self._makers.get(key)

    def makers(self, keys: Iterable[Key]) -> set[tuple[int, int]]:
        """Return the nodes that make some tensors."""
        return {self._makers[key] for key in keys if key in self._makers}

    def is_used(self, key: Key, without: set[tuple[int, int]]) -> bool:
        """Return whether anything but the nodes in `without` uses a tensor."""
        return any((scope, index) not in without for scope, index, _ in self._users.get(key, ()))

    def only_user(self, key: Key) -> tuple[int, int] | None:
        """Return the graph and position of the one node that uses a tensor once, None otherwise."""
        users = self._users.get(key, ())
        if len(users) != 1 or users[0][1] == _NOT_A_NODE:
            return None
        return users[0][:2]

    def others(self, key: Key, ours: set[tuple[int, int]]) -> list[str]:
        """Return labels of what uses a tensor beside one input of each node in `ours`."""
        remaining = set(ours)
        labels = []
        for scope, index, label in self._users.get(key, ()):
            if (scope, index) in remaining:
                remaining.remove((scope, index))
            else:
                labels.append(label)
        return labels


def _definitions(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.output
    if isinstance(graph, onnx.FunctionProto):
        yield from graph.input
        return
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)


def _other_uses(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[tuple[str, str]]:
    if isinstance(graph, onnx.FunctionProto):
        yield from ((name, "the function's outputs") for name in graph.output)
        return
    yield from ((value.name, "the graph's outputs") for value in graph.output)
    for annotation in graph.quantization_annotation:
        for entry in annotation.quant_parameter_tensor_names:
            yield entry.value, "a quantisation annotation"
