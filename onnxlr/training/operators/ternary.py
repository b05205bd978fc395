"""The ternary operators of docs/operators.md, at both levels of accuracy."""

from __future__ import annotations

from math import prod
from typing import Any

from onnxlr.operators import unpack, unpack_kernel
from onnxlr.operators.schema import DOMAIN
from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.operators.windows import padded, window_of
from onnxlr.training.torch_import import torch

__all__: list[str] = []

functional = torch.nn.functional


def _scaled_sum(run: Run, ternary: Any, scales: Any) -> Any:
    """Return the sum of all terms (inputs, outputs) of matrices (terms, inputs, outputs)."""
    rows = scales.repeat_interleave(run.number("group_size"), 1)[:, : ternary.shape[1]]
    return (ternary * rows).sum(0)


def _rounded_rows(rows: Any, axis: int) -> Any:
    """Round rows along an axis to int8 and back; gradients pass straight through."""
    with torch.no_grad():
        largest = rows.abs().amax(axis, keepdim=True).clamp_min(1e-30)
        change = torch.round(rows * (127 / largest)) * (largest / 127) - rows
    return rows + change


@operator("TernaryMatMul", domain=DOMAIN)
def ternary_matmul(run: Run, x: Any, codes: Any, scales: Any, input_scale: Any, bias: Any) -> Any:
    """Multiply by ternary matrices; codes may be given unpacked, float `(terms, K, N)`."""
    ternary = codes
    if not codes.is_floating_point():
        ternary = run.kept(1, codes, lambda: _unpacked(run, codes).to(x.device, x.dtype))
    rows = x * input_scale
    if run.number("accuracy_level") == 4:
        rows = _rounded_rows(rows, -1)
    return rows @ _scaled_sum(run, ternary, scales) + bias


def _unpacked(run: Run, codes: Any) -> Any:
    found = unpack(codes.cpu().numpy(), run.number("K"), run.number("N"))
    return torch.from_numpy(found)


@operator("TernaryConv", domain=DOMAIN)
def ternary_conv(run: Run, x: Any, codes: Any, scales: Any, input_scale: Any, bias: Any) -> Any:
    """Convolve with ternary kernels.

    Codes may be given unpacked, float `(terms, N, channels / group, *kernel)`.
    """
    ternary = codes
    if not codes.is_floating_point():
        ternary = run.kept(1, codes, lambda: _kernels(run, codes).to(x.device, x.dtype))
    kernel = _summed_kernel(run, ternary, scales)
    x = x * input_scale.reshape(-1, *[1] * (x.dim() - 2))
    window = window_of(run, x, kernel.shape[2:])
    x = padded(x, window.begins, window.ends)
    none, group = (0,) * len(window.kernel), run.number("group")
    if run.number("accuracy_level") == 0:
        return torch.convolution(
            x, kernel, bias, window.strides, none, window.dilations, False, none, group
        )
    patches, space = _patches(x, window)
    patches = _rounded_rows(patches.reshape(len(x), group, -1, prod(space)), 2)
    product = kernel.reshape(group, run.number("N") // group, -1) @ patches
    return product.reshape(len(x), -1, *space) + bias.reshape(-1, *[1] * len(space))


def _kernels(run: Run, codes: Any) -> Any:
    channels = run.number("channels") // run.number("group")
    shape = (run.number("N"), channels, *run.number("kernel_shape"))
    return torch.from_numpy(unpack_kernel(codes.cpu().numpy(), shape))


def _summed_kernel(run: Run, ternary: Any, scales: Any) -> Any:
    """Return the sum of kernels; scales go by the order of a patch, the channel last."""
    last = ternary.movedim(2, -1)  # terms, outputs, *kernel, channels
    matrices = last.flatten(2).mT
    return _scaled_sum(run, matrices, scales).mT.reshape(last.shape[1:]).movedim(-1, 1)


def _patches(x: Any, window: Any) -> tuple[Any, tuple[int, ...]]:
    """Return patches (batch, channels · positions, places) of data, and the places' dims."""
    axes = len(window.kernel)
    flat = x if axes == 2 else x.unsqueeze(2)
    front = (1,) * (2 - axes)
    found = functional.unfold(
        flat,
        front + window.kernel,
        dilation=front + window.dilations,
        stride=front + window.strides,
    )
    space = tuple(
        (size - extent) // stride + 1
        for size, extent, stride in zip(x.shape[2:], window.extents, window.strides, strict=True)
    )
    return found, space
