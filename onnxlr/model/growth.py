"""How much a model would become under tools that write functions out and work out shapes.

A few hundred bytes can ask for any amount of both: functions that call each other twice, tensors
that are concatenated with themselves, ranks that add up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import onnx

from onnxlr.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Growth", "check_functions"]

_MOST_NODES = 1_000_000
_MOST_CALLS = 100
_MOST_NUMBERS = 5_000_000
"""Shape inference takes some hundred bytes for each dimension or value that it keeps."""

_MOST_VISITS = 10_000_000
"""Nodes that shape inference may copy: for each subgraph, all that is around it."""

_LEAST_RANK = 8
_SMALL = 128
"""Constants of more values are not seen by shape inference, see `shapes`."""

_Key = tuple[str, str, str]


def check_functions(model: onnx.ModelProto) -> None:
    """Check that a model's functions, written out wherever they are called, come to an end.

    Raises
    ------
    ModelError
        If one calls itself, calls are nested too deep, or too many nodes would come of it.
    """
    functions = _functions(model)
    known: dict[_Key, tuple[int, int]] = {}

    def size(key: _Key, level: int) -> tuple[int, int]:
        """Return the nodes of a function, and how deep its calls go."""
        if level + known.get(key, (0, 0))[1] > _MOST_CALLS:
            raise ModelError(
                f"its function '{key[0]}:{key[1]}' calls itself, or functions call each other more "
                f"than {_MOST_CALLS} deep"
            )
        if key not in known:
            known[key] = written_out(functions[key].node, level)
        return known[key]

    def written_out(nodes: Iterable[onnx.NodeProto], level: int) -> tuple[int, int]:
        count = depth = 0
        for node in _all_nodes(nodes):
            count += 1
            if (key := _key(node)) in functions:
                more, below = size(key, level + 1)
                count, depth = count + more, max(depth, below + 1)
        return count, depth

    total = written_out(model.graph.node, 0)[0] if functions else 0
    total += sum(size(key, 0)[0] - len(function.node) for key, function in functions.items())
    if total > _MOST_NODES:
        raise ModelError(
            f"its functions, written out where they are called, make {total:,} nodes; expected at "
            f"most {_MOST_NODES:,}"
        )


def _functions(model: onnx.ModelProto) -> dict[_Key, onnx.FunctionProto]:
    return {(f.domain, f.name, getattr(f, "overload", "")): f for f in model.functions}


def _key(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, getattr(node, "overload", "")


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs, each node before its subgraphs."""
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _all_nodes(graph.node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


class Growth:
    """Upper bounds of what shape inference keeps of a model whose functions were checked.

    Attributes
    ----------
    dims
        Dimensions of all tensors together.
    values
        Values of all tensors that could be shapes, together.
    visits
        Nodes around each subgraph, for all subgraphs together.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.dims = self.values = self.visits = 0
        self._model_functions = _functions(model)
        known: dict[str, tuple[int, int]] = {}
        graph = model.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            known[value.name] = (len(value.type.tensor_type.shape.dim), 0)
        self._graph(graph, known, 0)

    @property
    def allows_shapes(self) -> bool:
        """Whether shape inference would come to an end in reasonable time and memory."""
        return self.dims <= _MOST_NUMBERS and self.visits <= _MOST_VISITS

    @property
    def allows_values(self) -> bool:
        """Whether it would if it also followed the values of shapes."""
        return self.values <= _MOST_NUMBERS

    def _graph(
        self, graph: onnx.GraphProto, known: dict[str, tuple[int, int]], around: int
    ) -> None:
        self.visits += around
        for tensor in graph.initializer:
            known[tensor.name] = _of_tensor(tensor)
        self._nodes(graph.node, known, around + len(graph.node))

    def _nodes(
        self, nodes: Iterable[onnx.NodeProto], known: dict[str, tuple[int, int]], around: int
    ) -> None:
        """Add nodes; `known` holds the rank and number of values of tensors by name."""
        for node in nodes:
            if max(self.dims, self.values) > _MOST_NUMBERS and self._model_functions:
                return  # it is decided, and functions may be many
            if function := self._model_functions.get(_key(node)):
                inner = {a: known.get(b, (0, 0)) for a, b in zip(function.input, node.input)}  # noqa: B905
                self._nodes(function.node, inner, around)
                made = max((inner.get(name, (0, 0)) for name in function.output), default=(0, 0))
                made = (max(made[0], _LEAST_RANK), made[1])
            else:
                for graph in _subgraphs(node):
                    self._graph(graph, known, around)
                made = _made(node, [known.get(name, (0, 0)) for name in node.input if name])
            for name in node.output:
                known[name] = made
                self.dims += made[0]
                self.values += made[1]


def _of_tensor(tensor: onnx.TensorProto) -> tuple[int, int]:
    """Return a constant's rank and its values, none if it has more than can be a shape."""
    entries = 1
    for dim in tensor.dims:
        entries = min(entries * max(dim, 0), _SMALL + 1)
    return len(tensor.dims), entries if entries <= _SMALL else 0


def _made(node: onnx.NodeProto, inputs: list[tuple[int, int]]) -> tuple[int, int]:
    """Return bounds of the rank of a node's outputs and of the values that are known of them."""
    ranks, values = [rank for rank, _ in inputs], [count for _, count in inputs]
    rank = max((*ranks, *values, _LEAST_RANK))  # values are what a Reshape makes a shape of
    for attribute in node.attribute:
        rank = max(rank, len(attribute.ints), len(attribute.s), len(attribute.floats))
    if node.op_type == "Constant":
        return max((_of_tensor(a.t) for a in node.attribute if a.HasField("t")), default=(1, rank))
    if node.op_type in ("Unsqueeze", "Gather", "GatherND", "OneHot"):
        rank += sum(ranks) + sum(values)
    if node.op_type == "Shape":
        return 1, max(ranks, default=0)
    if node.op_type == "Concat":
        return rank, sum(values)
    return rank, max(values, default=0) if _follows_values(node.op_type) else 0


@lru_cache
def _follows_values(operator: str) -> bool:
    """Return whether shape inference works out the values of an operator's results."""
    if not onnx.defs.has(operator):
        return False
    return bool(onnx.defs.get_schema(operator).has_data_propagation_function)
