"""Sampling at places that are given."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__: list[str] = []

_MODES = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}


def _refuses(call: Call) -> str | None:
    mode = call.number("mode", "linear")
    return None if mode in _MODES else f"mode {mode} is not covered"


@operator("GridSample", refuses=_refuses)
def grid_sample(run: Run, x: Any, grid: Any) -> Any:
    """Return the numbers at places between −1 and 1."""
    mode = _MODES[run.number("mode", "linear")]
    corners = bool(run.number("align_corners", 0))
    outside = run.number("padding_mode", "zeros")
    return torch.nn.functional.grid_sample(x, grid, mode, outside, corners)
