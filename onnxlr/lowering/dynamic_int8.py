"""int8 weights, and data that is rounded to 8 bits as it comes: the runtime finds its range.

ONNX Runtime fuses the nodes into its own DynamicQuantizeMatMul. A range is that of a whole tensor,
so that rows much smaller than others lose precision. On x86 processors without VNNI instructions
ONNX Runtime adds pairs of products in 16 bits, which may saturate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.integer_product import (
    column_scales,
    integer_product,
    refuses_integers,
    refuses_matrix,
)
from onnxlr.lowering.rows import dims_of, multiply_rows
from onnxlr.stages import Convolution

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.model.shapes import Dim

__all__ = ["DynamicInt8"]

_OPSET = 11


class DynamicInt8:
    """DynamicQuantizeLinear, MatMulInteger, and the sums scaled."""

    name = "dynamic_int8"
    activations = "dynamic_int8"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse other activations, convolutions, and what is below the opset floor."""
        if context.activations != "dynamic_int8":
            return f"it rounds data to int8 as it comes, {context.activations} data was asked"
        if reason := refuses_integers(context, place):
            return reason
        if isinstance(place.stage, Convolution):
            return "ONNX Runtime's ConvInteger takes several times as long as a float convolution"
        if reason := refuses_matrix(place):
            return reason
        if context.opset < _OPSET:
            return f"DynamicQuantizeLinear needs opset {_OPSET}, the model has {context.opset}"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the rounding of the data, the product of integers, and its scaling."""

        def product(rows: gs.Tensor, dims: Sequence[Dim] | None, output: str | None) -> gs.Variable:
            codes, scale, zero_point = nodes.quantized(rows, dims_of(rows, place))
            columns = column_scales(place).astype(np.float32)
            scales = nodes.constant(columns, place, "scales")
            factors = nodes.add("Mul", [scale, scales], "Scale", columns.shape)
            return integer_product(nodes, place, (codes, zero_point), factors, dims, output)

        return multiply_rows(nodes, x, place, product)
