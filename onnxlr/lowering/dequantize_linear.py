"""An int8 matrix decoded by DequantizeLinear with a scale per output column.

ONNX Runtime fuses DequantizeLinear and MatMul into a product whose data is rounded to int8 as well
(outputs differ by about 5e-3 with graph optimisation on and off), so this way is for plans that
allow int8 data, and refuses those that ask for float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.lowering import shared_operand

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.stages import Linear

__all__ = ["DequantizeLinear"]

_AXIS_OPSET = 13
_FLOAT16_OPSET = 19


class DequantizeLinear:
    """The standard's own way of writing a quantised weight."""

    name = "dequantize_linear"

    def refuses(self, stage: Linear, context: Context, place: Place) -> str | None:
        """Refuse below the opset floors, and where ONNX Runtime would not do what was asked."""
        if stage.weight.format.kind != "int8":
            return f"its numbers are kept as {stage.weight.format.kind}, not int8"
        if context.activations == "float":
            return "ONNX Runtime would round the data to int8, float data was asked"
        if context.opset < _AXIS_OPSET:
            return f"a scale per column needs opset {_AXIS_OPSET}, the model has {context.opset}"
        if context.dtype == np.float64:
            return "DequantizeLinear has no float64 result"
        if context.dtype == np.float16 and context.opset < _FLOAT16_OPSET:
            return f"float16 scales need opset {_FLOAT16_OPSET}, the model has {context.opset}"
        if len(stage.shape) > 2:
            return "it has one scale axis, a stack of matrices needs two"
        if place.is_kernel:
            return "ONNX Runtime runs a convolution behind it in float, and slower"
        return None

    def emit(self, stage: Linear, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write DequantizeLinear and the product."""
        operand = shared_operand(nodes, stage, place, lambda: _decoded(stage, nodes, place))
        return place.multiply(nodes, x, operand, stage.shape[-2 if place.transposed else -1])


def _decoded(stage: Linear, nodes: Nodes, place: Place) -> gs.Tensor:
    codes = place.arrange(stage.weight.codes)
    if stage.weight.scales is None:
        raise ValueError("int8 codes without scales")
    scales = nodes.constant(stage.weight.scales.astype(nodes.dtype).reshape(-1), "scales")
    return nodes.add(
        "DequantizeLinear",
        [nodes.constant(codes, "codes"), scales],
        "DequantizeLinear",
        codes.shape,
        {"axis": 0 if place.flip else 1},
    )
