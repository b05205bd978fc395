"""Rounding to codes and back, and products of codes.

Codes are carried in float tensors with whole values, so that gradients pass straight through the
rounding; where a code is at the end of its range because the number lies beyond, none passes
(straight-through estimator, Bengio et al. 2013, https://arxiv.org/abs/1308.3432). Codes that the
file has are whole tensors until a module gives them (`TrainableModel.replace`).
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from onnxlr.training.operators.convolutions import convolved
from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__ = ["rounded"]

_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    **(
        {TensorProto.UINT2: (0, 3), TensorProto.INT2: (-2, 1)}
        if hasattr(TensorProto, "INT2")
        else {}
    ),
}
"""Least and greatest code of a type."""


def rounded(x: Any) -> Any:
    """Return the nearest whole numbers, halves to even; the gradient is that of `x`."""
    return x + (torch.round(x) - x).detach()


def _kind(call: Call, zero_point: int) -> int:
    """Return the type of the codes that a node makes."""
    return int(call.number("output_dtype", 0) or call.kind_of(zero_point) or TensorProto.UINT8)


def _refuses_kind(zero_point: int) -> Any:
    def refuses(call: Call) -> str | None:
        kind = _kind(call, zero_point)
        if kind in _RANGES:
            return None
        return f"codes of type {TensorProto.DataType.Name(kind).lower()} are not covered"

    return refuses


def _refuses_stored(call: Call) -> str | None:
    kind = call.kind_of(0)
    if kind is None or kind in _RANGES:
        return None
    return f"codes of type {TensorProto.DataType.Name(kind).lower()} are not covered"


def _beside(x: Any, values: Any, axis: int, block: int) -> Any:
    """Return one value, those of an axis, or those of blocks, in a shape that broadcasts."""
    if values.numel() == 1 and (values.dim() < 2 or not block):
        return values.reshape(())
    axis %= x.dim()
    if values.dim() == x.dim() and (block or values.dim() > 1):
        size = block or -(-x.shape[axis] // values.shape[axis])
        return values.repeat_interleave(size, axis).narrow(axis, 0, x.shape[axis])
    return values.reshape(-1, *[1] * (x.dim() - axis - 1))


def _to_codes(x: Any, scale: Any, zero: Any, kind: int) -> Any:
    """Return the codes of numbers, within the range of their type."""
    low, high = _RANGES[kind]
    codes = rounded(x / scale)
    return torch.clamp(codes if zero is None else codes + zero.to(codes.dtype), low, high)


@operator("QuantizeLinear", refuses=_refuses_kind(2))
def quantize(run: Run, x: Any, scale: Any, zero: Any = None) -> Any:
    """Return codes, as whole floats."""
    axis, block = run.number("axis", 1), run.number("block_size", 0)
    zero = None if zero is None else _beside(x, zero, axis, block)
    return _to_codes(x, _beside(x, scale, axis, block), zero, _kind(run.call, 2))


@operator("DequantizeLinear", refuses=_refuses_stored)
def dequantize(run: Run, codes: Any, scale: Any, zero: Any = None) -> Any:
    """Return what codes stand for."""
    axis, block = run.number("axis", 1), run.number("block_size", 0)
    numbers = codes.to(scale.dtype)
    if zero is not None:
        numbers = numbers - _beside(codes, zero, axis, block).to(scale.dtype)
    return numbers * _beside(codes, scale, axis, block)


@operator("DynamicQuantizeLinear")
def quantize_dynamically(run: Run, x: Any) -> tuple[Any, Any, Any]:  # noqa: ARG001
    """Return codes from 0 to 255, the scale and the zero point, in the range of the data.

    The range is taken as a constant: no gradient flows through it, and none is lost, as no number
    lies beyond.
    """
    with torch.no_grad():
        low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
        scale = (high - low) / 255
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = torch.clamp(torch.round(-low / scale), 0, 255)
    inside = rounded(x / scale) + zero
    return inside + (inside.clamp(0, 255) - inside).detach(), scale, zero


def _less(codes: Any, zero: Any, floating: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Return codes less their zero point, as floats."""
    numbers = codes if codes.is_floating_point() else codes.to(floating)
    if zero is None:
        return numbers
    zero = zero.to(numbers.dtype)
    return numbers - (zero if shape is None or zero.dim() != 1 else zero.reshape(shape))


@operator("MatMulInteger")
def matmul_integer(run: Run, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    """Multiply codes less their zero points; sums up to 2²⁴ are exact in float32."""
    left = _less(a, a_zero, run.floating, (-1, 1) if a.dim() > 1 else None)
    return left @ _less(b, b_zero, run.floating)


@operator("ConvInteger")
def conv_integer(run: Run, x: Any, kernel: Any, x_zero: Any = None, zero: Any = None) -> Any:
    """Convolve codes less their zero points."""
    shape = (-1, *[1] * (kernel.dim() - 1))
    return convolved(run, _less(x, x_zero, run.floating), _less(kernel, zero, run.floating, shape))


@operator("QLinearMatMul", refuses=_refuses_kind(7))
def qlinear_matmul(
    run: Run,
    a: Any,
    a_scale: Any,
    a_zero: Any,
    b: Any,
    b_scale: Any,
    b_zero: Any,
    scale: Any,
    zero: Any,
) -> Any:
    """Multiply codes, and round the product to codes."""
    column = (-1, 1) if a.dim() > 1 else None
    left = _less(a, a_zero, run.floating, column)
    factor = a_scale.reshape(column) if column and a_scale.dim() == 1 else a_scale
    product = (left @ _less(b, b_zero, run.floating)) * (factor * b_scale)
    return _to_codes(product, scale, zero, _kind(run.call, 7))


@operator("QLinearConv", refuses=_refuses_kind(7))
def qlinear_conv(
    run: Run,
    x: Any,
    x_scale: Any,
    x_zero: Any,
    kernel: Any,
    kernel_scale: Any,
    kernel_zero: Any,
    scale: Any,
    zero: Any,
    bias: Any = None,
) -> Any:
    """Convolve codes, and round the result to codes; the bias counts units of the sums."""
    shape = (-1, *[1] * (kernel.dim() - 1))
    sums = convolved(
        run,
        _less(x, x_zero, run.floating),
        _less(kernel, kernel_zero, run.floating, shape),
        None if bias is None else bias.to(run.floating),
    )
    factor = x_scale * kernel_scale
    factor = factor.reshape(shape[:-1]) if factor.dim() == 1 and factor.numel() > 1 else factor
    return _to_codes(sums * factor, scale, zero, _kind(run.call, 7))
