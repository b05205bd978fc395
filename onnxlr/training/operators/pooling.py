"""Pooling: what is largest, the mean, or a norm, of each place of a window or of all space."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.operators.windows import Window, padded, window_of
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__: list[str] = []

functional = torch.nn.functional

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _window(run: Run, x: Any) -> tuple[Window, tuple[int, ...]]:
    """Return the window, and what it needs behind the padded data where sizes are rounded up.

    Windows that would begin in the padding behind are left out, as torch and ONNX since opset 22
    say it.
    """
    window = window_of(run, x, run.number("kernel_shape"))
    if not run.number("ceil_mode", 0):
        return window, (0,) * len(window.kernel)
    behind = []
    for axis, size in enumerate(x.shape[2:]):
        stride, extent, begin = window.strides[axis], window.extents[axis], window.begins[axis]
        whole = size + begin + window.ends[axis]
        count = -(-(whole - extent) // stride) + 1
        if (count - 1) * stride >= size + begin:
            count -= 1
        behind.append(max((count - 1) * stride + extent - whole, 0))
    return window, tuple(behind)


def _refuses_places(call: Call) -> str | None:
    if len(call.outputs) > 1 and call.outputs[1]:
        return "the places of largest numbers (its second output) are not covered"
    return None


@operator("MaxPool", refuses=_refuses_places)
def max_pool(run: Run, x: Any) -> Any:
    """Return the largest number in each place of a window."""
    window, behind = _window(run, x)
    ends = tuple(a + b for a, b in zip(window.ends, behind, strict=True))
    padding: tuple[int, ...] = (0,) * len(ends)
    if window.begins == ends and all(2 * p <= k for p, k in zip(ends, window.kernel, strict=True)):
        padding = ends
    else:
        least = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        x = padded(x, window.begins, ends, least)
    if not x.is_floating_point():  # torch pools floats only; these hold small integers exactly
        pooled = _MAX[len(ends)](
            x.to(torch.float64), window.kernel, window.strides, padding, window.dilations
        )
        return pooled.to(x.dtype)
    return _MAX[len(ends)](x, window.kernel, window.strides, padding, window.dilations)


def _sums(x: Any, window: Window, ends: tuple[int, ...]) -> Any:
    """Return the sums over places of a window of data that is padded with zeros."""
    x = padded(x, window.begins, ends)
    axes = len(ends)
    if set(window.dilations) == {1}:
        return _MEAN[axes](x, window.kernel, window.strides) * prod(window.kernel)
    flat = x.reshape(-1, 1, *x.shape[2:])
    ones = x.new_ones(1, 1, *window.kernel)
    none = (0,) * axes
    found = torch.convolution(
        flat, ones, None, window.strides, none, window.dilations, False, none, 1
    )
    return found.reshape(*x.shape[:2], *found.shape[2:])


@operator("AveragePool")
def average_pool(run: Run, x: Any) -> Any:
    """Return the mean in each place of a window, of the data or of the padded data."""
    window, behind = _window(run, x)
    ends = tuple(a + b for a, b in zip(window.ends, behind, strict=True))
    sums = _sums(x, window, ends)
    if not any(window.begins) and not any(ends):
        return sums / prod(window.kernel)
    ones = x.new_ones(1, 1, *x.shape[2:])
    if run.number("count_include_pad", 0):
        ones = padded(ones, window.begins, window.ends, 1.0)
        window, ends = replace(window, begins=(0,) * len(ends)), behind
    return sums / _sums(ones, window, ends)


@operator("LpPool")
def norm_pool(run: Run, x: Any) -> Any:
    """Return the p-norm in each place of a window."""
    window, behind = _window(run, x)
    ends = tuple(a + b for a, b in zip(window.ends, behind, strict=True))
    power = run.number("p", 2)
    return _sums(x.abs() ** power, window, ends) ** (1 / power)


def _space(x: Any) -> list[int]:
    return list(range(2, x.dim()))


@operator("GlobalAveragePool")
def global_average(run: Run, x: Any) -> Any:  # noqa: ARG001
    """Return the means over space."""
    return x.mean(_space(x), keepdim=True) if x.dim() > 2 else x


@operator("GlobalMaxPool")
def global_max(run: Run, x: Any) -> Any:  # noqa: ARG001
    """Return what is largest in space."""
    return x.amax(_space(x), keepdim=True) if x.dim() > 2 else x


@operator("GlobalLpPool")
def global_norm(run: Run, x: Any) -> Any:
    """Return the p-norm over space."""
    power = run.number("p", 2)
    return (x.abs() ** power).sum(_space(x), keepdim=True) ** (1 / power)
