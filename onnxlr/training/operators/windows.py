"""The window of a convolution or a pooling: its size, its steps, and the padding of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxlr.training.operators.registry import Run
from onnxlr.training.torch_import import torch

__all__ = ["Window", "padded", "window_of"]


@dataclass(frozen=True)
class Window:
    """A window, one number for each axis of space.

    Attributes
    ----------
    kernel, strides, dilations
        As the node has them.
    begins, ends
        What the data is padded with.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """What the window covers."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def symmetric(self) -> bool:
        """Whether there is as much padding before as behind."""
        return self.begins == self.ends


def window_of(run: Run, x: Any, kernel: Sequence[int]) -> Window:
    """Return the window that a node lays over data `(batch, channels, *space)`."""
    axes = len(kernel)
    strides = tuple(run.number("strides") or [1] * axes)
    dilations = tuple(run.number("dilations") or [1] * axes)
    begins = ends = (0,) * axes
    how = run.number("auto_pad", "NOTSET")
    if how == "NOTSET":
        pads = tuple(run.number("pads") or [0] * (2 * axes))
        begins, ends = pads[:axes], pads[axes:]
    elif how != "VALID":
        totals = [
            max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            for size, k, stride, dilation in zip(
                x.shape[2:], kernel, strides, dilations, strict=True
            )
        ]
        less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        begins, ends = (less, more) if how == "SAME_UPPER" else (more, less)
    return Window(tuple(kernel), strides, dilations, begins, ends)


def padded(x: Any, begins: Sequence[int], ends: Sequence[int], value: float = 0) -> Any:
    """Return data with padding along its last axes; what is negative is cut off."""
    if not any(begins) and not any(ends):
        return x
    flat = [size for pair in zip(reversed(begins), reversed(ends), strict=True) for size in pair]
    return torch.nn.functional.pad(x, flat, value=value)
