"""An int8 matrix decoded by DequantizeLinear with a scale per output column.

ONNX Runtime fuses DequantizeLinear and MatMul into a product whose data is rounded to int8 as well
(outputs differ by about 5e-3 with graph optimisation on and off), so this way is for plans that
allow int8 data, and refuses those that ask for float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.lowering import shared_operand
from onnxlr.stages import Convolution, Linear

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place

__all__ = ["DequantizeLinear"]

_AXIS_OPSET = 13
_FLOAT16_OPSET = 19


class DequantizeLinear:
    """The standard's own way of writing a quantised weight."""

    name = "dequantize_linear"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse below the opset floors, and where ONNX Runtime would not do what was asked."""
        kind = place.stage.weight.format.kind
        if kind != "int8":
            return f"its numbers are kept as {kind}, not int8"
        if context.activations == "float":
            return "ONNX Runtime would round the data to int8, float data was asked"
        if isinstance(place.stage, Convolution):
            return "ONNX Runtime runs a convolution behind it in float, and slower"
        if not isinstance(place.stage, Linear):
            return "it is a table of rows"
        if len(place.stage.shape) > 2:
            return "it has one scale axis, a stack of matrices needs two"
        return _below_floor(context)

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write DequantizeLinear and the product."""
        operand = shared_operand(nodes, place, lambda: _decoded(nodes, place))
        return place.multiply(nodes, x, operand)


def _below_floor(context: Context) -> str | None:
    if context.opset < _AXIS_OPSET:
        return f"a scale per column needs opset {_AXIS_OPSET}, the model has {context.opset}"
    if context.dtype == np.float16 and context.opset < _FLOAT16_OPSET:
        return f"float16 scales need opset {_FLOAT16_OPSET}, the model has {context.opset}"
    if context.dtype not in (np.float32, np.float16):
        return f"DequantizeLinear has no {context.dtype.name} result here"
    return None


def _decoded(nodes: Nodes, place: Place) -> gs.Tensor:
    weight = place.stage.weight
    if weight.scales is None:
        raise ValueError("int8 codes without scales")
    codes = place.arrange(weight.codes)
    scales = weight.scales.astype(nodes.dtype).reshape(-1)
    return nodes.add(
        "DequantizeLinear",
        [nodes.constant(codes, place, "codes"), nodes.constant(scales, place, "scales")],
        "DequantizeLinear",
        codes.shape,
        {"axis": 0 if place.flip else 1},
    )
