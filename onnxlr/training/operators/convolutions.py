"""Convolutions, of any number of axes that torch has."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.operators.windows import padded, window_of
from onnxlr.training.torch_import import torch

functional = torch.nn.functional

__all__ = ["convolved"]


def convolved(run: Run, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Return the convolution of data with a kernel, in the window that the node has.

    Parameters
    ----------
    run
        Of the node.
    x
        Float `(batch, channels, *space)`.
    kernel
        Float `(outputs, channels / group, *kernel)`.
    bias
        Float `(outputs)`, or None.
    """
    window = window_of(run, x, kernel.shape[2:])
    padding = window.begins
    if not window.symmetric:
        x, padding = padded(x, window.begins, window.ends), (0,) * len(padding)
    # by these names autocast knows it
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(padding) - 1]
    group = run.number("group", 1)
    return convolve(x, kernel, bias, window.strides, padding, window.dilations, group)


@operator("Conv")
def convolution(run: Run, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Return the convolution of data with a kernel."""
    return convolved(run, x, kernel, bias)


@operator("ConvTranspose")
def transposed_convolution(run: Run, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Return what a convolution spreads: all of it, cut as padding or a wanted shape say."""
    axes = kernel.dim() - 2
    strides = run.number("strides") or [1] * axes
    dilations = run.number("dilations") or [1] * axes
    further = run.number("output_padding") or [0] * axes
    full = [
        stride * (size - 1) + (k - 1) * dilation + 1
        for size, k, stride, dilation in zip(
            x.shape[2:], kernel.shape[2:], strides, dilations, strict=True
        )
    ]
    begins, ends = _cut(run, x, [a + b for a, b in zip(full, further, strict=True)], strides)
    ends = [end - more for end, more in zip(ends, further, strict=True)]
    none, group = [0] * axes, run.number("group", 1)
    if begins == ends and min(begins) >= 0:
        return torch.convolution(x, kernel, bias, strides, begins, dilations, True, none, group)
    whole = torch.convolution(x, kernel, None, strides, none, dilations, True, none, group)
    found = padded(whole, [-size for size in begins], [-size for size in ends])
    return found if bias is None else found + bias.reshape(-1, *[1] * axes)


def _cut(run: Run, x: Any, full: list[int], strides: list[int]) -> tuple[list[int], list[int]]:
    """Return how much of the full result is left out before and behind, along each axis."""
    how, wanted = run.number("auto_pad", "NOTSET"), run.number("output_shape")
    if wanted is None and how in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    if wanted is None:
        pads = run.number("pads") if how == "NOTSET" else None
        pads = pads or [0] * (2 * len(full))
        return pads[: len(full)], pads[len(full) :]
    totals = [size - asked for size, asked in zip(full, wanted[-len(full) :], strict=True)]
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (less, more) if how == "SAME_UPPER" else (more, less)
