"""Padding."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.operators.windows import padded
from onnxlr.training.torch_import import torch

__all__: list[str] = []


@operator("Pad", lists=[1, 2, 3])
def pad(run: Run, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    """Put numbers before and behind: one number, or those of the data; or take some away."""
    sizes = run.number("pads", run.number("paddings")) if pads is None else pads
    number = run.number("value", 0.0) if value is None else value
    number = number[0] if isinstance(number, list) else number
    places = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    begins, ends = [0] * x.dim(), [0] * x.dim()
    for entry, axis in enumerate(places):
        begins[axis], ends[axis] = sizes[entry], sizes[len(sizes) // 2 + entry]
    mode = run.number("mode", "constant")
    if mode == "constant":
        return padded(x, begins, ends, number)
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            x = x.index_select(axis, _places(mode, x.shape[axis], begin, end).to(x.device))
    return x


def _places(mode: str, size: int, begin: int, end: int) -> Any:
    """Return which entries of an axis padding takes."""
    places = torch.arange(-begin, size + end)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    turned = places % period
    return torch.minimum(turned, period - turned) if size > 1 else torch.zeros_like(places)
