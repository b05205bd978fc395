"""Writes a chain at one site, from the site's data to its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from onnxlr.layers import Layout, Site
from onnxlr.lowering.biases import Bias
from onnxlr.lowering.context import Context
from onnxlr.lowering.nodes import Nodes
from onnxlr.lowering.place import Place
from onnxlr.lowering.position import Position
from onnxlr.lowering.scaling import refuses_scaling, scale
from onnxlr.lowering.targets import LoweringRefusedError, Target
from onnxlr.lowering.ternary_operator import TernaryOperatorLowering
from onnxlr.stages import Adjustment, Chain, Convolution, Range, Scale, Stage, Stored, Sum

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
        return chain.stages[::-1] if self.site.transposed else chain.stages

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
        scaled: Scale | None = None
        for position, stage in enumerate(stages):
            last = position == len(stages) - 1
            name, added = (output, bias) if last else (None, None)
            if isinstance(stage, Sum):
                x = self._branch(stage, x, name, added, ends and last, slid)
                slid |= _slid_by(stage)
                continue
            if isinstance(stage, Scale):
                if not last and isinstance(stages[position + 1], Stored):
                    scaled = stage  # an operator that scales its inputs itself may take it
                else:
                    x = self._scale(x, Position(self.site, stage, ends and last, added, name, slid))
                continue
            if not isinstance(stage, Stored):
                raise TypeError(f"{type(stage).__name__} is no stage that can be written")
            before = slid
            if isinstance(stage, Convolution):
                slid |= frozenset(stage.window)
            known = None if ranges is None else (ranges[position], ranges[position + 1])
            place = Place(self.site, stage, ends and last, added, name, slid, known)
            x = self._write(x, place, scaled, before)
            scaled = None
        return x

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
            dims = self.site.output_dims if ends else None
            total = self.nodes.add("Add", [total, term], "Sum", dims, None, name)
        return total


def _slid_by(stage: Sum) -> frozenset[int]:
    """Return the spatial axes along which a sum's branches move the window."""
    steps = [step for branch in stage.branches for step in branch.stages]
    return frozenset(a for step in steps if isinstance(step, Convolution) for a in step.window)


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
