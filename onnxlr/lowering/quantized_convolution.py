"""A convolution of integers: between DequantizeLinear and QuantizeLinear, or an operator."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnxlr.lowering.ranges import grid_constants, grid_of, rounded
from onnxlr.lowering.rows import dims_of
from onnxlr.lowering.window import window_attributes
from onnxlr.stages import Convolution

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.stages import Range

__all__ = ["multiply_quantized", "refuses_bias"]

_AXIS_OPSET = 13
"""The opset from which on DequantizeLinear knows a scale for each output."""

_INT32_FLOATS = (-(2.0**31), 2.0**31 - 2.0**7)
"""Least and largest float32 that is an int32."""


def refuses_bias(opset: int, place: Place) -> str | None:
    """Return why a convolution's bias cannot be added to its sums of integers."""
    if opset < _AXIS_OPSET and place.bias is not None and place.bias_numbers is None:
        return f"a bias that is computed needs opset {_AXIS_OPSET}, the model has {opset}"
    return None


def multiply_quantized(
    nodes: Nodes, x: gs.Tensor, place: Place, ranges: tuple[Range, Range]
) -> gs.Variable:
    """Write a convolution of rounded data by rounded weights, its result rounded as well.

    ONNX Runtime makes it one operator only if all of data, kernel, bias and result are rounded.
    Where DequantizeLinear does not know a scale for each output, that operator is written.
    """
    codes, scales = _kernel(place, ranges)
    if nodes.opset < _AXIS_OPSET:
        return _by_operator(nodes, x, place, ranges, codes, scales)
    data = _restored(nodes, x, place, ranges[0])
    kept = nodes.constant(scales, place, "scales")
    kernel = nodes.add(
        "DequantizeLinear",
        [nodes.constant(codes, place, "codes"), kept],
        "DequantizeWeight",
        codes.shape,
        {"axis": 0},
    )
    bias = place.bias
    if bias is not None:
        bias = _rounded_bias(nodes, bias, place, grid_of(ranges[0])[0] * scales)
    product = replace(place, bias=bias, output=None).multiply(nodes, data, kernel)
    return _restored(nodes, product, place, ranges[1], place.output)


def _by_operator(
    nodes: Nodes,
    x: gs.Tensor,
    place: Place,
    ranges: tuple[Range, Range],
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
) -> gs.Variable:
    """Write QLinearConv."""
    if not isinstance(place.stage, Convolution):
        raise TypeError("not a convolution")
    data, zero_point = rounded(nodes, x, place, ranges[0])
    scale, _ = grid_constants(nodes, place, ranges[0])
    kernel = nodes.constant(codes, place, "codes")
    kept = nodes.constant(scales, place, "scales")
    zeros = nodes.constant(np.zeros(len(scales), np.int8), place, "zeros")
    into, into_zero = grid_constants(nodes, place, ranges[1])
    inputs = [data, scale, zero_point, kernel, kept, zeros, into, into_zero]
    if place.bias is not None:
        if place.bias_numbers is None:
            raise ValueError("a bias that is not constant")
        units = (grid_of(ranges[0])[0] * scales).astype(np.float32)
        counted = np.rint(place.bias_numbers.reshape(-1).astype(np.float64) / units)
        bias = np.clip(counted, *_INT32_FLOATS).astype(np.int32)
        inputs.append(nodes.constant(bias, place, "bias_codes"))
    dims, attributes = place.result_dims, window_attributes(place.site.node, place.stage)
    product = nodes.add("QLinearConv", inputs, "QLinearConv", dims, attributes, dtype=np.uint8)
    restored = [product, into, into_zero]
    return nodes.add("DequantizeLinear", restored, "DequantizeLinear", dims, None, place.output)


def _kernel(
    place: Place, ranges: tuple[Range, Range]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return codes and scales of the kernel; with a bias, none so small that it cannot be kept.

    The bias is rounded in the units of the sums, to an int32: where the weights of an output are
    next to nothing, so would be the units, and the bias would not fit. The least unit that holds
    twice the largest result is far below what the result's 8 bits can tell.
    """
    weight = place.stage.weight
    if weight.scales is None:
        raise ValueError("int8 codes without scales")
    scales: npt.NDArray[Any] = weight.scales.reshape(-1).astype(np.float64)
    if place.bias is None:
        return weight.codes, scales.astype(np.float32)
    largest = max(map(abs, ranges[1]))
    least = np.float32(2 * largest / (2.0**31 * float(grid_of(ranges[0])[0])))
    raised = np.maximum(scales, float(max(least, np.finfo(np.float32).tiny * 2.0**24)))
    column = (scales / raised).reshape(-1, *[1] * (weight.codes.ndim - 1))
    return np.rint(weight.codes * column).astype(np.int8), raised.astype(np.float32)


def _restored(
    nodes: Nodes, x: gs.Tensor, place: Place, range: Range, output: str | None = None
) -> gs.Variable:
    """Return data as its codes stand for it."""
    codes, zero_point = rounded(nodes, x, place, range)
    scale, _ = grid_constants(nodes, place, range)
    dims = dims_of(x, place)
    inputs = [codes, scale, zero_point]
    return nodes.add("DequantizeLinear", inputs, "DequantizeLinear", dims, None, output)


def _rounded_bias(
    nodes: Nodes, bias: gs.Tensor, place: Place, units: npt.NDArray[np.float32]
) -> gs.Variable:
    """Return a bias in whole units of the sums; a constant one is folded down to its codes."""
    dims = units.shape
    scale = nodes.constant(units.astype(np.float32), place, "bias_scale")
    low, high = (nodes.constant(np.float32(bound), place, "bound") for bound in _INT32_FLOATS)
    counted = nodes.add("Div", [bias, scale], "BiasDiv", dims)
    whole = nodes.add("Round", [counted], "BiasRound", dims)
    fitting = nodes.add("Clip", [whole, low, high], "BiasClip", dims)
    to = {"to": int(TensorProto.INT32)}
    codes = nodes.add("Cast", [fitting], "BiasCast", dims, to, dtype=np.int32)
    return nodes.add("DequantizeLinear", [codes, scale], "DequantizeBias", dims, {"axis": 0})
