"""Writes a chain at one site, from the site's data to its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxlr.layers import Layout, Site
from onnxlr.lowering.biases import Bias
from onnxlr.lowering.context import Context
from onnxlr.lowering.features import Seen, see
from onnxlr.lowering.folding import fold
from onnxlr.lowering.mode_products import multiply_mode
from onnxlr.lowering.nodes import Nodes
from onnxlr.lowering.place import Place
from onnxlr.lowering.position import Position
from onnxlr.lowering.scaling import refuses_scaling, scale
from onnxlr.lowering.targets import LoweringRefusedError, Target
from onnxlr.lowering.ternary_operator import TernaryOperatorLowering
from onnxlr.stages import (
    Adjustment,
    Chain,
    Convolution,
    Fold,
    ModeProduct,
    Range,
    Scale,
    Stage,
    Stored,
    Sum,
)

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["Way"]

_OPTIONAL_BIAS = 11
"""The opset from which on a Gemm may have no bias."""


@dataclass(frozen=True)
class Way:
    """From a site's data to its output."""

    nodes: Nodes
    site: Site
    context: Context
    target: Target
    bias: Bias
    adjustment: Adjustment

    def emit(self, chain: Chain) -> None:
        """Write the chain, and what of a bias correction does not fit into its last product."""
        stages = self._ordered(chain)
        inputs = stages[0].shape[-1 if self.site.transposed else -2]
        x = _data(self.nodes, self.site, inputs)
        output = self.site.output if self.bias.behind is None else None
        ranges = self.adjustment.ranges
        result = self._follow(stages, x, output, self.bias.within, ranges=ranges)
        if self.bias.behind is not None:
            dims = self.site.output_dims
            self.nodes.add(
                "Add", [result, self.bias.behind], "Correction", dims, None, self.site.output
            )

    def _ordered(self, chain: Chain) -> Sequence[Stage]:
        if not self.site.transposed:
            return chain.stages
        return [s.inverse if isinstance(s, Fold) else s for s in reversed(chain.stages)]

    def _follow(
        self,
        stages: Sequence[Stage],
        x: gs.Tensor,
        output: str | None,
        bias: gs.Tensor | None,
        ends: bool = True,
        slid: frozenset[int] = frozenset(),
        ranges: Sequence[Range] | None = None,
    ) -> gs.Tensor:
        data: gs.Tensor | Seen = x
        scaled: Scale | None = None
        for position, stage in enumerate(stages):
            last = position == len(stages) - 1
            name, added = (output, bias) if last else (None, None)
            before, slid = slid, slid | _slid_by(stage)
            known = None if ranges is None else (ranges[position], ranges[position + 1])
            if isinstance(stage, Fold | ModeProduct):
                here = Position(self.site, stage, ends and last, added, name, slid)
                data = self._apart(data, here, known, last)
                continue
            x = self._whole(data)
            if isinstance(stage, Scale) and not last and isinstance(stages[position + 1], Stored):
                scaled = stage  # an operator that scales its inputs itself may take it
            elif isinstance(stage, Scale):
                x = self._scale(x, Position(self.site, stage, ends and last, added, name, slid))
            elif isinstance(stage, Sum):
                x = self._branch(stage, x, name, added, ends and last, before)
            elif isinstance(stage, Stored):
                place = Place(self.site, stage, ends and last, added, name, slid, known)
                x, scaled = self._write(x, place, scaled, before), None
            else:
                raise TypeError(f"{type(stage).__name__} is no stage that can be written")
            data = x
        return self._whole(data)

    def _whole(self, data: gs.Tensor | Seen) -> gs.Tensor:
        return data.joined(self.nodes) if isinstance(data, Seen) else data

    def _apart(
        self,
        data: gs.Tensor | Seen,
        position: Position,
        ranges: tuple[Range, Range] | None,
        last: bool,
    ) -> gs.Tensor | Seen:
        """Write a stage that takes features apart; they are joined where the stage is the last."""
        seen = data if isinstance(data, Seen) else see(data, position)
        if seen is None:
            raise LoweringRefusedError(
                f"target {self.target.name} cannot take features apart: that needs the rank of "
                f"their data, which is not known"
            )
        if isinstance(position.stage, Fold):
            seen = fold(self.nodes, seen, position)
        else:
            bare = self._without_bias(ranges, position)
            activations = self.context.activations
            seen = multiply_mode(self.nodes, seen, position, self._chosen, bare, activations)
        if not last:
            return seen
        return position.finish(self.nodes, seen.joined(self.nodes, position.product_output))

    def _chosen(self, x: gs.Tensor, place: Place) -> gs.Tensor:
        return self.target.choose(self.context, place).emit(self.nodes, x, place)

    def _without_bias(
        self, ranges: tuple[Range, Range] | None, position: Position
    ) -> tuple[Range, Range] | None:
        """Return the ranges of a stage whose bias is added behind it; None if that is not known."""
        if ranges is None or position.bias is None or not self.site.is_convolution:
            return ranges  # products of integers ask for the range of their data only
        numbers = self.bias.numbers
        if numbers is None or not numbers.size or position.bias is not self.bias.within:
            return None
        data, (low, high) = ranges
        return data, (low - float(numbers.max()), high - float(numbers.min()))

    def _write(
        self, x: gs.Tensor, place: Place, scaled: Scale | None, before: frozenset[int]
    ) -> gs.Variable:
        """Write a stage, and the factors of its inputs in front of it if it does not take them."""
        if place.bias is not None and place.bias is self.bias.within:
            place = replace(place, bias_numbers=self.bias.numbers)
        if scaled is not None:
            place = replace(place, input_scale=scaled.factors)
        lowering = self.target.choose(self.context, place)
        if scaled is not None and not isinstance(lowering, TernaryOperatorLowering):
            x = self._scale(x, Position(self.site, scaled, False, slid=before))
            place = replace(place, input_scale=None)
        return lowering.emit(self.nodes, x, place)

    def _scale(self, x: gs.Tensor, position: Position) -> gs.Variable:
        if reason := refuses_scaling(x, position):
            raise LoweringRefusedError(f"target {self.target.name} cannot write factors: {reason}")
        return scale(self.nodes, x, position)

    def _branch(
        self,
        stage: Sum,
        x: gs.Tensor,
        output: str | None,
        bias: gs.Tensor | None,
        ends: bool,
        slid: frozenset[int],
    ) -> gs.Tensor:
        """Write the branches, the bias in the first of them, and add their results."""
        first, *others = stage.branches
        total = self._follow(self._ordered(first), x, None, bias, ends, slid)
        nothing = None
        if ends and self.site.node.op_type == "Gemm" and self.nodes.opset < _OPTIONAL_BIAS:
            nothing = self.nodes.new_constant(np.zeros(1, self.nodes.dtype), "nothing")
        for number, other in enumerate(others):
            term = self._follow(self._ordered(other), x, None, nothing, ends, slid)
            name = output if number == len(others) - 1 else None
            same = total.shape if total.shape == term.shape else None  # stacks would be broadcast
            dims = self.site.output_dims if ends else same
            total = self.nodes.add("Add", [total, term], "Sum", dims, None, name)
        return total


def _slid_by(stage: Stage) -> frozenset[int]:
    """Return the spatial axes along which a stage moves the window."""
    if isinstance(stage, Sum):
        steps = [step for branch in stage.branches for step in branch.stages]
        return frozenset[int]().union(*map(_slid_by, steps))
    return frozenset(stage.window if isinstance(stage, Convolution | ModeProduct) else ())


def _data(nodes: Nodes, site: Site, inputs: int) -> gs.Tensor:
    """Return the site's data, transposed first where a Gemm says so."""
    data = nodes.existing(site.data)
    if not site.transpose_data:
        return data
    dims = None
    if site.output_dims is not None:
        rows, columns = site.output_dims
        dims = (rows, inputs) if site.layout is Layout.LAST else (inputs, columns)
    return nodes.add("Transpose", [data], "TransposeData", dims, {"perm": [1, 0]})
