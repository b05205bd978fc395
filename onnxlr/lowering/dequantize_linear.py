"""An integer matrix decoded by DequantizeLinear, with scales for columns or for groups of inputs.

ONNX Runtime fuses DequantizeLinear and MatMul into a product whose data is rounded to int8 as well
(outputs differ by about 5e-3 with graph optimisation on and off), so this way is for plans that
allow int8 data, and refuses those that ask for float. Groups need ONNX Runtime 1.20. Where it does
not fuse them, as on the left of a product or where a matrix is transposed, it decodes the matrix at
each run and multiplies in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from onnxlr.lowering.lowering import shared_operand
from onnxlr.lowering.rows import refuses_rows
from onnxlr.stages import Convolution, Linear

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.numbers import Format

__all__ = ["DequantizeLinear"]

_AXIS_OPSET = 13
_FLOAT16_OPSET = 19
_GROUP_OPSETS = {"int8": 21, "int4": 21, "int2": 25}


class DequantizeLinear:
    """The standard's own way of writing a quantised weight."""

    name = "dequantize_linear"
    activations = "dynamic_int8"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse below the opset floors, and where ONNX Runtime would not do what was asked."""
        kept = place.stage.weight.format
        if kept.is_float:
            return f"its numbers are kept as {kept.kind}, not as integers"
        if context.activations == "float":
            return "ONNX Runtime would round the data to int8, float data was asked"
        if context.activations != "dynamic_int8":
            return f"it knows no ranges, {context.activations} data was asked"
        if isinstance(place.stage, Convolution):
            return "ONNX Runtime runs a convolution behind it in float, and slower"
        if not isinstance(place.stage, Linear):
            return "it is a table of rows"
        if len(place.stage.shape) > 2:
            return "it has one scale axis, a stack of matrices needs two"
        return _refuses_groups(place, kept) or _below_floor(context, kept)

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write DequantizeLinear and the product."""
        operand = shared_operand(nodes, place, lambda: _decoded(nodes, place))
        return place.multiply(nodes, x, operand)


def _refuses_groups(place: Place, kept: Format) -> str | None:
    if kept.group is None:
        return None if kept.kind == "int8" else f"{kept.kind} without groups is never fused"
    if place.flip:
        return refuses_rows(place) or "ONNX Runtime would multiply in float, and slower"
    return None


def _below_floor(context: Context, kept: Format) -> str | None:
    floor = _AXIS_OPSET if kept.group is None else _GROUP_OPSETS[kept.kind]
    if context.opset < floor:
        what = "a scale per column" if kept.group is None else f"{kept.kind} in groups"
        return f"{what} needs opset {floor}, the model has {context.opset}"
    if context.dtype == np.float16 and context.opset < _FLOAT16_OPSET:
        return f"float16 scales need opset {_FLOAT16_OPSET}, the model has {context.opset}"
    if context.dtype not in (np.float32, np.float16):
        return f"DequantizeLinear has no {context.dtype.name} result here"
    return None


def _decoded(nodes: Nodes, place: Place) -> gs.Tensor:
    weight = place.stage.weight
    if weight.scales is None:
        raise ValueError("integer codes without scales")
    codes = place.arrange(weight.codes)
    if weight.format.is_packed:
        codes = codes.astype(_standard_type(weight.format))
    scales = place.arrange(weight.scales).astype(nodes.dtype)
    attributes = {"axis": 0 if place.flip else 1}
    if weight.format.group is None:
        scales = scales.reshape(-1)
    else:
        attributes = {"axis": 0, "block_size": weight.format.group}
    inputs = [nodes.constant(codes, place, "codes"), nodes.constant(scales, place, "scales")]
    if weight.zero_points is not None:
        zeros = place.arrange(weight.zero_points).astype(_standard_type(weight.format))
        inputs.append(nodes.constant(zeros, place, "zero_points"))
    return nodes.add("DequantizeLinear", inputs, "DequantizeLinear", codes.shape, attributes)


def _standard_type(kept: Format) -> np.dtype[Any]:
    """Return the numpy type that a packed kind has in the standard."""
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, f"u{kept.kind}"))
    return found
