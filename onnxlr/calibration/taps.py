"""Hands out tensors from inside a model: of the main graph, and of branches of `If` nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxlr.model.liveness import read_by
from onnxlr.model.names import Names
from onnxlr.model.scopes import Scope, scopes
from onnxlr.model.tensors import make_tensor

__all__ = ["Tap", "expose", "refuse_scope"]


@dataclass(frozen=True)
class Tap:
    """A tensor to hand out; the fields are JSON values.

    Attributes
    ----------
    scope
        Position of the graph to see it from, among the model's graphs. Seen from a branch, even a
        tensor of the main graph is there only when the branch is taken.
    name
        Its name.
    elem_type
        Its ONNX element type; only needed inside branches.
    model
        Position of the model, where several run side by side.
    """

    scope: int
    name: str
    elem_type: int = 0
    model: int = 0


@dataclass(frozen=True)
class _Owner:
    """The node that a subgraph is part of, and the attribute that holds it."""

    scope: int
    node: onnx.NodeProto
    attribute: str


def refuse_scope(model: onnx.ModelProto, scope: int) -> str | None:
    """Return why tensors of a graph cannot be handed out, None if they can."""
    found = list(scopes(model))
    owners = _owners(found)
    while not found[scope].is_main:
        if found[scope].in_function:
            return "it is in a function, whose tensors cannot be handed out"
        owner = owners[scope]
        if owner.node.op_type != "If":
            kind = owner.node.op_type
            return f"it is in the body of a {kind}, whose tensors cannot be handed out"
        scope = owner.scope
    return None


def expose(model: onnx.ModelProto, taps: Sequence[Tap]) -> list[str]:
    """Make the taps the only outputs of the main graph and return the outputs' names.

    Nodes that none of them needs are removed: what lies behind the last tap is not computed.
    A tensor of a branch becomes an output of its branch, of the `If`, and so on up; the other
    branch gives an empty one. `Identity` nodes keep graph inputs and constants from being outputs.
    """
    names = Names(model)
    found = list(scopes(model))
    owners = _owners(found)
    outputs = []
    for tap in taps:
        scope, source = tap.scope, tap.name
        while not found[scope].is_main:
            source = _lift(owners[scope], source, names, tap.elem_type)
            scope = owners[scope].scope
        outputs.append(names.new("onnxlr.tap"))
        model.graph.node.append(helper.make_node("Identity", [source], [outputs[-1]]))
    del model.graph.output[:]
    for output in outputs:
        model.graph.output.add(name=output)
    _remove_unneeded(model.graph)
    return outputs


def _remove_unneeded(graph: onnx.GraphProto) -> None:
    """Remove the nodes that no output of a graph depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):  # in topological order
        if needed.intersection(node.output):
            needed.update(read_by(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _owners(found: Sequence[Scope]) -> dict[int, _Owner]:
    """Return the node that each subgraph is part of, by the graph's position."""
    owners: dict[int, _Owner] = {}
    for position, scope in enumerate(found):
        inner = (index for index, other in enumerate(found) if other.parent == position)
        for node in scope.graph.node:
            for attribute in node.attribute:
                count = int(attribute.HasField("g")) + len(attribute.graphs)
                for _ in range(count):  # `scopes` counts them in this order
                    owners[next(inner)] = _Owner(position, node, attribute.name)
    return owners


def _lift(owner: _Owner, source: str, names: Names, elem_type: int) -> str:
    """Make a tensor of a branch an output of its `If` and return the output's name."""
    inside, outside = names.new("onnxlr.branch"), names.new("onnxlr.if")
    for attribute in owner.node.attribute:
        branch = attribute.g
        if attribute.name == owner.attribute:
            made = helper.make_node("Identity", [source], [inside])
        else:
            empty = np.zeros(0, helper.tensor_dtype_to_np_dtype(elem_type))
            made = helper.make_node("Constant", [], [inside], value=make_tensor(empty, ""))
        branch.node.append(made)
        branch.output.append(helper.make_tensor_value_info(inside, elem_type, None))
    owner.node.output.append(outside)
    return outside
