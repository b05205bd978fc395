"""Every graph of a model: the main one, subgraphs of nodes, functions, training graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Scope", "scopes"]


@dataclass(frozen=True)
class Scope:
    """One graph and the way to it.

    Attributes
    ----------
    path
        Empty for the main graph; else one readable step for each level, outermost first.
    graph
        The graph or function as it lies in the model.
    parent
        Position, among the model's graphs, of the graph whose tensors this one can use; None for
        the main graph and for functions.
    opset
        Version of the standard operators in a function and its subgraphs; None where it is the
        model's.
    in_function, is_training
        Whether it is, or is inside, a function or a graph of the training information.
    """

    path: tuple[str, ...]
    graph: onnx.GraphProto | onnx.FunctionProto
    parent: int | None = None
    opset: int | None = None
    in_function: bool = False
    is_training: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the model's own graph."""
        return not self.path


def scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """Yield the main graph first, then all others: subgraphs at any depth, functions, training.

    The order depends on the subgraphs alone, not on the nodes without any.
    """
    pending = [
        Scope(
            (f"training {kind} '{getattr(training, kind).name}'",),
            getattr(training, kind),
            parent=0,
            is_training=True,
        )
        for training in reversed(model.training_info)
        for kind in ("algorithm", "initialization")
        if training.HasField(kind)
    ]
    pending += [_function(function) for function in reversed(model.functions)]
    pending.append(Scope((), model.graph))
    position = 0
    while pending:
        scope = pending.pop()
        yield scope
        pending.extend(reversed(list(_subgraphs(scope, position))))
        position += 1


def _function(function: onnx.FunctionProto) -> Scope:
    versions = [o.version for o in function.opset_import if o.domain in ("", "ai.onnx")]
    name = f"function '{function.domain}:{function.name}'"
    return Scope((name,), function, opset=max(versions, default=1), in_function=True)


def _subgraphs(scope: Scope, position: int) -> Iterator[Scope]:
    for node in scope.graph.node:
        for attribute in node.attribute:
            step = f"{attribute.name} of {node.op_type} '{node.name or ','.join(node.output)}'"
            graphs = [attribute.g] if attribute.HasField("g") else []
            for graph in (*graphs, *attribute.graphs):
                yield replace(scope, path=(*scope.path, step), graph=graph, parent=position)
