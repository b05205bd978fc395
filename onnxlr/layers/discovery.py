"""Walks a model and lists its layers, the skipped ones with their reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import onnx

from onnxlr.layers import convolution, gather, gemm, matmul
from onnxlr.layers.examination import Candidate, Skipped
from onnxlr.layers.layer import Layer, Layout, Site
from onnxlr.layers.operands import OperandFinder
from onnxlr.layers.others import LEFT_ALONE, is_ternary
from onnxlr.model import Model
from onnxlr.model.liveness import Uses
from onnxlr.model.scopes import Scope, scopes
from onnxlr.model.shapes import TensorType

__all__ = ["find_layers"]

FAMILIES: dict[str, Callable[[Candidate], Site | Skipped | None]] = {
    "MatMul": matmul.examine,
    "Gemm": gemm.examine,
    "Conv": convolution.examine,
    "ConvTranspose": convolution.examine,
    "Gather": gather.examine,
}
"""The file of each operator family, by operator type."""

_LEAST_OPSET = 7
"""Before it, operators broadcast in ways that a chain would have to imitate."""


def find_layers(model: Model) -> list[Layer]:
    """Return all layers of a model, graph by graph.

    Each weight that nodes multiply by is one layer, however many nodes use it, and whatever moves
    it about on the way. Nodes that cannot be rewritten are layers with a reason in `skip`.

    Raises
    ------
    ModelError
        If a weight's shape disagrees with its node.
    """
    search = _Search(model)
    found: dict[tuple[int, str], list[Site]] = {}
    order: list[Layer | tuple[int, str]] = []
    for node, label, answer in search.answers():
        if isinstance(answer, Skipped):
            order.append(_skipped_layer(node, label, answer))
            continue
        key = (answer.operand.weight.scope, answer.operand.weight.name)
        joined = _join(found.setdefault(key, []), answer)
        if joined is None:
            reason = "it uses a weight another way than the node before: both cannot share factors"
            order.append(_skipped_layer(node, label, Skipped(reason, answer.operand)))
            continue
        if not found[key]:
            order.append(key)
        found[key].append(joined)
    layers = [e if isinstance(e, Layer) else search.layer(found[e]) for e in order]
    return _with_unique_names(layers)


class _Search:
    """Everything a search needs to know of a model, gathered once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._scopes = list(scopes(model.proto))
        self._operands = OperandFinder(model)

    @cached_property
    def _uses(self) -> Uses:
        return Uses(self._model.proto)

    def answers(self) -> Iterator[tuple[onnx.NodeProto, str, Site | Skipped]]:
        """Yield each linear node, what messages call it, and what its family says of it."""
        for index, scope in enumerate(self._scopes):
            function = scope.graph
            if isinstance(function, onnx.FunctionProto) and is_ternary(
                function.domain, function.name
            ):
                continue  # what it multiplies by are inputs of its node, which is listed itself
            types = self._model.types if scope.is_main else {}
            for position, node in enumerate(scope.graph.node):
                label = _label(scope, node)
                answer = self._examine(index, scope, position, node, label, types)
                if answer is not None:
                    yield node, label, answer

    def _examine(
        self,
        index: int,
        scope: Scope,
        position: int,
        node: onnx.NodeProto,
        label: str,
        types: Mapping[str, TensorType],
    ) -> Site | Skipped | None:
        if scope.is_training:
            return None
        domain = "" if node.domain == "ai.onnx" else node.domain
        if reason := LEFT_ALONE.get((domain, node.op_type)):
            return Skipped(reason)
        examine = FAMILIES.get(node.op_type) if domain == "" else None
        if examine is None:
            return None
        opset = scope.opset or self._model.opset
        if opset < _LEAST_OPSET:
            owner = "function" if scope.in_function else "model"
            return Skipped(f"the {owner} has opset {opset}, at least {_LEAST_OPSET} is needed")
        candidate = Candidate(
            index,
            position,
            node,
            label,
            self._operands.view(index).nodes[position],
            self._operands,
            types,
            self._model.name,
            scope.in_function,
        )
        if any(attribute.ref_attr_name for attribute in node.attribute):
            return Skipped("its attributes are parameters of the function it is in")
        return examine(candidate)

    def layer(self, sites: list[Site]) -> Layer:
        """Return the layer of a weight's sites, with what else uses the weight."""
        first = sites[0]
        weight = first.operand.weight
        name = first.node.name or weight.name
        # What hangs on the way from the weight to its sites, beside the way itself.
        ours = {(site.scope, site.index) for site in sites}
        ours |= self._uses.makers(key for site in sites for key in site.operand.released)
        others = []
        for key in dict.fromkeys(key for site in sites for key in site.operand.released):
            others += self._uses.others(key, ours)
        return Layer(
            name,
            first.node.op_type,
            tuple(site.label for site in sites),
            weight,
            tuple(sites),
            other_uses=tuple(dict.fromkeys(others)),
        )


def _join(sites: list[Site], site: Site) -> Site | None:
    """Return a site as one of a layer's: itself, or transposed; None if it does not fit."""
    if not sites:
        return site
    first = sites[0]
    matrices = {first.layout, site.layout} <= {Layout.LAST, Layout.SECOND_LAST}
    if first.in_function and first.scope != site.scope:
        return None  # the constants of a function stand beside their first site
    alike = matrices or (first.layout is site.layout and first.groups == site.groups)
    if not alike or first.operand.dtype != site.operand.dtype:
        return None
    if first.operand.recipe == site.operand.recipe:
        return replace(site, transposed=first.swapped != site.swapped)
    one, two = (s.canonical(s.operand.positions()) for s in (first, site))
    if np.array_equal(one, two):
        return site
    if matrices and np.array_equal(one, two.swapaxes(-1, -2)):
        return replace(site, transposed=True)
    return None


def _name(node: onnx.NodeProto) -> str:
    """Return what a node is called: by its own name, its first result's, or its operator's."""
    return node.name or next(filter(None, node.output), node.op_type)


def _label(scope: Scope, node: onnx.NodeProto) -> str:
    name = _name(node)
    return name if scope.is_main else f"{name} in {' / '.join(scope.path)}"


def _skipped_layer(node: onnx.NodeProto, label: str, skipped: Skipped) -> Layer:
    name = _name(node)
    weight = skipped.operand.weight if skipped.operand else None
    return Layer(name, node.op_type, (label,), weight, skip=skipped.reason)


def _with_unique_names(layers: list[Layer]) -> list[Layer]:
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    unique = []
    for layer in layers:
        number = numbers.get(layer.name, 1)  # none below it is free
        name = layer.name if number == 1 else f"{layer.name}#{number}"
        while name in taken:
            number += 1
            name = f"{layer.name}#{number}"
        taken.add(name)
        numbers[layer.name] = number
        unique.append(replace(layer, name=name))
    return unique
