"""Ternary numbers as integers of other formats, one for each term: the terms' products are added.

What multiplies integers that share a scale multiplies −1, 0 and 1 as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.static_int8 import StaticInt8
from onnxlr.numbers import Encoded, Format
from onnxlr.stages import Convolution, Lookup

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.lowering import Lowering
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.stages import Stored

__all__ = ["TernaryTerms", "in_blocks"]

_BLOCKS = (32, 64, 128)

Form = Callable[[Encoded], Encoded]
"""Changes how a term is kept, not the numbers it stands for."""


class TernaryTerms:
    """Each term written by a lowering of integers."""

    def __init__(self, lowering: Lowering, kind: str, form: Form | None = None) -> None:
        """Keep the terms as numbers of a kind, `int8` or `int2`, changed by `form`."""
        self._lowering, self._kind = lowering, kind
        self._form = form or (lambda term: term)
        self.name = lowering.name if kind == "int8" else f"{lowering.name} as {kind}"
        self.activations = lowering.activations

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse what the lowering refuses of a term."""
        if isinstance(place.stage, Lookup):
            return "it is a table of rows"
        weight = place.stage.weight
        several = isinstance(place.stage, Convolution) and weight.format.terms > 1
        if several and isinstance(self._lowering, StaticInt8):
            return "the ranges of a convolution's single terms are not known"
        outline = replace(place.stage, weight=self._form(_outline(weight, self._kind)))
        return self._lowering.refuses(context, replace(place, stage=outline))

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the terms' products and their sum."""
        stages = self._terms(nodes, place.stage)
        if len(stages) == 1:
            return self._lowering.emit(nodes, x, replace(place, stage=stages[0]))
        total: gs.Variable | None = None
        for number, stage in enumerate(stages, 1):
            bare = replace(place, stage=stage, ends=False, bias=None, output=None)
            product = self._lowering.emit(nodes, x, bare)
            name = place.product_output if number == len(stages) else None
            if total is not None:
                operands = [total, product]
                product = nodes.add("Add", operands, "Terms", place.result_dims, None, name)
            total = product
        return place.finish(nodes, total)

    def _terms(self, nodes: Nodes, stage: Stored) -> tuple[Stored, ...]:
        """Return a stage for each term, the same at every site, as constants are known by it."""
        key = (id(stage), self.name)
        if key not in nodes.terms:
            terms = map(self._form, stage.weight.terms(self._kind))
            nodes.terms[key] = tuple(replace(stage, weight=term) for term in terms)
        return nodes.terms[key]


def _outline(weight: Encoded, kind: str) -> Encoded:
    """Return what a term looks like, at no cost: its format, shapes and scales, not its codes."""
    if weight.scales is None:
        raise ValueError("ternary codes without scales")
    scales = weight.scales[..., 0] if weight.kernel else weight.scales[..., 0, :, :]
    return Encoded(Format(kind, weight.format.group), weight.codes, scales, None, weight.kernel)


def in_blocks(term: Encoded) -> Encoded:
    """Return an `int2` matrix in groups, with codes −1, 0 and 1 and no zero points.

    Where all inputs share a scale it is repeated for the smallest groups that hold all inputs, or
    for groups of 128.
    """
    if term.scales is None:
        raise ValueError("integer codes without scales")
    kept, scales = term.format, term.scales
    if kept.group is None and not term.kernel:
        inputs = term.shape[-2]
        size = next((block for block in _BLOCKS if block >= inputs), _BLOCKS[-1])
        kept, scales = replace(kept, group=size), np.repeat(scales, -(-inputs // size), axis=-2)
    codes = term.codes.astype(np.int8) - np.int8(1)
    return Encoded(kept, codes, scales, None, term.kernel)
