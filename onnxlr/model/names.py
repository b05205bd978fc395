"""Names that collide with nothing in the model."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING

from onnxlr.model.scopes import scopes

if TYPE_CHECKING:
    import onnx

__all__ = ["Names"]


class Names:
    """All names a model uses, for tensors and nodes, at any depth; hands out new ones.

    Tensors and nodes share one set, so that a new name is unique in every sense a tool may ask for.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken: set[str] = {""}
        self._new: set[str] = set()
        self._given: tuple[set[str], ...] = ()
        self._numbers: ChainMap[str, int] = ChainMap()
        for scope in scopes(model):
            self._take(scope.graph)

    def _take(self, graph: onnx.GraphProto | onnx.FunctionProto) -> None:
        for node in graph.node:
            self._taken.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:  # what the tensor of a Constant calls itself
                self._taken.update(t.name for t in (attribute.t, *attribute.tensors))
        for values in (graph.input, graph.output, graph.value_info):
            self._taken.update(v if isinstance(v, str) else v.name for v in values)
        if hasattr(graph, "initializer"):
            self._taken.update(tensor.name for tensor in graph.initializer)
            self._taken.update(tensor.values.name for tensor in graph.sparse_initializer)

    def trial(self) -> Names:
        """Return the same names for an attempt that may be dropped: what it takes stays free.

        It looks at this one's names instead of copying them: with a trial for each layer, copies
        would be quadratic work. It is over when this one hands out its next name.
        """
        attempt = object.__new__(Names)
        attempt._taken, attempt._new = self._taken, set()
        attempt._given = (*self._given, self._new)
        attempt._numbers = ChainMap({}, *self._numbers.maps)
        return attempt

    def new(self, wanted: str) -> str:
        """Return `wanted`, or `wanted` with the least number behind it that makes it unused."""
        number = self._numbers.get(wanted, 0)
        name = wanted if number == 0 else f"{wanted}.{number}"
        while any(name in names for names in (self._taken, self._new, *self._given)):
            number = max(number, 1) + 1
            name = f"{wanted}.{number}"
        self._new.add(name)
        self._numbers[wanted] = number  # the same is often wanted: none below it is free
        return name
