"""Walks a model and lists its layers, the skipped ones with their reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from onnxlr.layers import convolution, gemm, matmul
from onnxlr.layers.examination import Candidate, Found, Skipped
from onnxlr.layers.layer import Layer
from onnxlr.layers.others import LEFT_ALONE
from onnxlr.layers.weights import WeightFinder
from onnxlr.model.scopes import Scope, scopes
from onnxlr.model.view import search_view

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from onnxlr.model import Model

__all__ = ["find_layers"]

FAMILIES: dict[str, Callable[[Candidate], Found | Skipped]] = {
    "MatMul": matmul.examine,
    "Gemm": gemm.examine,
    "Conv": convolution.examine,
}
"""The file of each operator family, by operator type."""

_LEAST_OPSET = 7
"""Before it, operators broadcast in ways that a chain would have to imitate."""


def find_layers(model: Model) -> list[Layer]:
    """Return all layers of a model in graph order.

    Each weight of the main graph that MatMul, Gemm or Conv nodes multiply by is one layer, however
    many nodes use it. Nodes that cannot be rewritten are layers with a reason in `skip`.

    Raises
    ------
    ModelError
        If a weight's shape disagrees with its node.
    """
    layers: dict[str, Layer] = {}
    for scope in scopes(model.proto):
        found = _main_graph(model) if scope.is_main else _nested(scope)
        for layer in found:
            layers[_unused(layer.name, layers)] = layer
    return [replace(layer, name=name) for name, layer in layers.items()]


def _unused(name: str, taken: dict[str, Layer]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}#{number}"
    return unique


def _main_graph(model: Model) -> list[Layer]:
    view = search_view(model.proto.graph)
    finder = WeightFinder(model, view)
    by_weight: dict[tuple[str, bool], Layer] = {}
    skipped: list[Layer] = []
    order: list[tuple[str, bool] | int] = []
    for index, node in enumerate(model.proto.graph.node):
        answer = _examine(model, view, finder, index, node)
        if isinstance(answer, Found):
            key = (answer.weight.name, answer.weight.kernel)
            if key in by_weight:
                by_weight[key] = _with_site(by_weight[key], answer)
            else:
                by_weight[key] = _new_layer(answer)
                order.append(key)
        elif isinstance(answer, Skipped):
            order.append(len(skipped))
            skipped.append(_skipped_layer(node, answer))
    uses = _Uses(model, view)
    return [
        skipped[entry] if isinstance(entry, int) else uses.complete(by_weight[entry])
        for entry in order
    ]


def _examine(
    model: Model, view: gs.Graph, finder: WeightFinder, index: int, node: onnx.NodeProto
) -> Found | Skipped | None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if reason := LEFT_ALONE.get((domain, node.op_type)):
        return Skipped(reason)
    examine = FAMILIES.get(node.op_type) if domain == "" else None
    if examine is None:
        return None
    if model.opset < _LEAST_OPSET:
        return Skipped(f"the model has opset {model.opset}, at least {_LEAST_OPSET} is needed")
    candidate = Candidate(index, node, view.nodes[index], finder, model.types, model.name)
    return examine(candidate)


def _new_layer(found: Found) -> Layer:
    node = found.site.node
    name = node.name or found.weight.name
    return Layer(name, node.op_type, (found.site.label,), found.weight, (found.site,))


def _with_site(layer: Layer, found: Found) -> Layer:
    nodes = (*layer.nodes, found.site.label)
    return replace(layer, nodes=nodes, sites=(*layer.sites, found.site))


def _skipped_layer(node: onnx.NodeProto, skipped: Skipped) -> Layer:
    name = node.name or node.output[0]
    return Layer(name, node.op_type, (name,), skipped.weight, skip=skipped.reason)


def _nested(scope: Scope) -> list[Layer]:
    where = " / ".join(scope.path)
    layers = []
    for node in scope.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain == "" and node.op_type in FAMILIES) or (domain, node.op_type) in LEFT_ALONE:
            reason = f"inside {where}: subgraphs and functions are not handled yet"
            layers.append(_skipped_layer(node, Skipped(reason)))
    return layers


class _Uses:
    """Finds what else uses a weight, beside the sites of its layer."""

    def __init__(self, model: Model, view: gs.Graph) -> None:
        self._nodes: dict[str, list[tuple[int, str]]] = {}
        for index, node in enumerate(model.proto.graph.node):
            label = f"{node.op_type} '{node.name or ','.join(node.output)}'"
            for name in node.input:
                self._nodes.setdefault(name, []).append((index, label))
        self._captured: dict[str, str] = {}
        for scope in scopes(model.proto):
            if not scope.is_main:
                for node in scope.graph.node:
                    for name in node.input:
                        self._captured.setdefault(name, " / ".join(scope.path))
        self._outputs = {tensor.name for tensor in view.outputs}

    def complete(self, layer: Layer) -> Layer:
        """Return the layer with its other uses filled in."""
        if layer.weight is None:
            return layer
        name = layer.weight.name
        uses = []
        sites = {site.index for site in layer.sites}
        for index, label in self._nodes.get(name, ()):
            if index in sites:
                sites.remove(index)  # its second use by the same node is another one
            else:
                uses.append(label)
        if name in self._captured:
            uses.append(self._captured[name])
        if name in self._outputs:
            uses.append("the graph's outputs")
        return replace(layer, other_uses=tuple(uses))
