"""Every graph of a model: the main one, subgraphs of nodes, bodies of functions."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    path: tuple[str, ...]
    graph: onnx.GraphProto | onnx.FunctionProto

    @property
    def is_main(self) -> bool:
        """Whether this is the model's own graph."""
        return not self.path


def scopes(model: onnx.ModelProto) -> Iterator[Scope]:
    """Yield the main graph first, then every function body and subgraph, at any depth."""
    pending = [Scope((f"function '{f.domain}:{f.name}'",), f) for f in reversed(model.functions)]
    pending.append(Scope((), model.graph))
    while pending:
        scope = pending.pop()
        yield scope
        pending.extend(reversed(list(_subgraphs(scope))))


def _subgraphs(scope: Scope) -> Iterator[Scope]:
    for node in scope.graph.node:
        for attribute in node.attribute:
            step = f"{attribute.name} of {node.op_type} '{node.name or ','.join(node.output)}'"
            if attribute.HasField("g"):
                yield Scope((*scope.path, step), attribute.g)
            for graph in attribute.graphs:
                yield Scope((*scope.path, step), graph)
