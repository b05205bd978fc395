"""ONNX Runtime's product with weights of few bits in groups."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.quantised import rounded
from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__: list[str] = []

_GROUP_INDEX = 4


def _refuses(call: Call) -> str | None:
    if call.number("bits", 4) not in (2, 4, 8):
        return f"weights of {call.number('bits', 4)} bits are not covered"
    if len(call.inputs) > _GROUP_INDEX and call.inputs[_GROUP_INDEX]:
        return "groups in an order of their own (input g_idx) are not covered"
    return None


def _taken_apart(packed: Any, bits: int) -> Any:
    """Return codes along the last axis; the first of each byte lies in its lowest bits."""
    shifts = torch.arange(0, 8, bits, device=packed.device)
    apart = packed.to(torch.int64).unsqueeze(-1) >> shifts & (2**bits - 1)
    return apart.flatten(-2)


@operator("MatMulNBits", domain="com.microsoft", refuses=_refuses)
def matmul_nbits(
    run: Run,
    x: Any,
    packed: Any,
    scales: Any,
    zeros: Any = None,
    order: Any = None,  # noqa: ARG001
    bias: Any = None,
) -> Any:
    """Multiply data `(…, K)` by a matrix `(N, K)` of codes, less their zero points, and scales.

    Codes are unpacked once, or given as a float tensor `(N, K)` through which gradients flow. At
    accuracy level 4 each group of a row is rounded to int8 in a range of its own, which gradients
    pass straight through.
    """
    bits, group = run.number("bits", 4), run.number("block_size")
    size, outputs = run.number("K"), run.number("N")
    groups = -(-size // group)
    codes = packed.to(x.dtype) if packed.is_floating_point() else packed
    if not packed.is_floating_point():
        codes = run.kept(
            1,
            packed,
            lambda: _taken_apart(packed.reshape(outputs, -1), bits)[:, :size].to(x.dtype),
        )
    numbers = codes - _repeated(_points(run, zeros, x.dtype), group, size)
    weight = numbers * _repeated(scales.reshape(outputs, groups).to(x.dtype), group, size)
    if run.number("accuracy_level", 0) == 4:
        x = _in_groups(x, group)
    return torch.nn.functional.linear(x, weight, bias)


def _repeated(values: Any, group: int, size: int) -> Any:
    if not isinstance(values, torch.Tensor):
        return values
    return values.repeat_interleave(group, 1)[:, :size]


def _points(run: Run, zeros: Any, floating: Any) -> Any:
    """Return the zero point of each group `(N, groups)`, or the one of all."""
    bits, outputs = run.number("bits", 4), run.number("N")
    if zeros is None:
        return float(1 << (bits - 1))
    if zeros.is_floating_point():
        return zeros.reshape(outputs, -1)
    groups = -(-run.number("K") // run.number("block_size"))
    return _taken_apart(zeros.reshape(outputs, -1), bits)[:, :groups].to(floating)


def _in_groups(x: Any, group: int) -> Any:
    """Round groups of rows to int8 codes, and back."""
    size = x.shape[-1]
    whole = torch.nn.functional.pad(x, (0, -size % group)).unflatten(-1, (-1, group))
    step = whole.detach().abs().amax(-1, keepdim=True) / 127
    step = torch.where(step > 0, step, torch.ones_like(step))
    return (rounded(whole / step) * step).flatten(-2)[..., :size]
