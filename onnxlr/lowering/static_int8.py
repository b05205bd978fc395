"""int8 weights, and data that is rounded to 8 bits in a range that calibration has found.

A matrix is a product of integers, written as such: behind DequantizeLinear, a MatMul that an Add
follows is fused to a Gemm by ONNX Runtime before it sees the integers, and then takes four times
as long as in float. A convolution has no such operator for runtimes to be fast at, and is written
as the standard has it, between DequantizeLinear and QuantizeLinear, which ONNX Runtime fuses into
QLinearConv; as that operator itself in opsets 10 to 12, where DequantizeLinear has one scale only.
On x86 processors without VNNI instructions ONNX Runtime adds pairs of products in 16 bits, which
may saturate.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.integer_product import (
    column_scales,
    integer_product,
    refuses_integers,
    refuses_matrix,
)
from onnxlr.lowering.quantized_convolution import multiply_quantized, refuses_bias
from onnxlr.lowering.ranges import grid_of, rounded
from onnxlr.lowering.rows import multiply_rows
from onnxlr.stages import Convolution

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.model.shapes import Dim
    from onnxlr.stages import Range

__all__ = ["StaticInt8"]

_OPSET = 10


class StaticInt8:
    """QuantizeLinear with known ranges before MatMulInteger, or around a convolution."""

    name = "static_int8"
    activations = "static_int8"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse other activations, unknown ranges, and what is below the opset floor."""
        if context.activations != "static_int8":
            return f"it rounds data to int8 in known ranges, {context.activations} data was asked"
        if reason := refuses_integers(context, place):
            return reason
        if place.ranges is None or not all(map(isfinite, (*place.ranges[0], *place.ranges[1]))):
            return "ranges of its data are not known (give calibration data)"
        if isinstance(place.stage, Convolution):
            reason = _refuses_convolution(place) or refuses_bias(context.opset, place)
        else:
            reason = refuses_matrix(place)
        if reason is None and context.opset < _OPSET:
            return f"int8 data in known ranges needs opset {_OPSET}, the model has {context.opset}"
        return reason

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the rounding of the data and the product of integers."""
        if place.ranges is None:
            raise ValueError("no ranges")
        if isinstance(place.stage, Convolution):
            return multiply_quantized(nodes, x, place, place.ranges)
        data: Range = place.ranges[0]

        def product(rows: gs.Tensor, dims: Sequence[Dim] | None, output: str | None) -> gs.Variable:
            codes, zero_point = rounded(nodes, rows, place, data)
            factors = (grid_of(data)[0] * column_scales(place)).astype(np.float32)
            scales = nodes.constant(factors, place, "scales")
            return integer_product(nodes, place, (codes, zero_point), scales, dims, output)

        return multiply_rows(nodes, x, place, product)


def _refuses_convolution(place: Place) -> str | None:
    weight = place.stage.weight
    if place.spreads:
        return "ONNX Runtime has no transposed convolution of integers"
    if weight.scales is None or weight.scales.shape[1] > 1:
        return f"a sum has one scale, the weight has one for each {weight.format.group} inputs"
    return None
