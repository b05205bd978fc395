"""Resizing: along one axis after the other, each number from few others.

Coordinates and weights are those of ONNX's specification of Resize; they are computed in float64
on the CPU, so that the same places are taken on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, isclose
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__: list[str] = []

Floats = npt.NDArray[np.float64]

_MODES = ("nearest", "linear", "cubic", "bilinear")
_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)


def _refuses(call: Call) -> str | None:
    mode, where = call.number("mode", "nearest"), _coordinates(call)
    if mode not in _MODES:
        return f"mode {mode} is not covered"
    if where not in _COORDINATES:
        return f"coordinates {where} are not covered"
    return None


def _coordinates(call: Call) -> str:
    usual = "asymmetric" if call.version < 11 else "half_pixel"
    return str(call.number("coordinate_transformation_mode", usual))


@dataclass(frozen=True)
class _Axis:
    """What becomes of one axis: sizes, the factor between them, and the part that is taken."""

    size: int
    result: int
    scale: float
    region: tuple[float, float]


@operator("Upsample", lists=[1], refuses=_refuses)
def upsample(run: Run, x: Any, scales: list[float] | None = None) -> Any:
    """Resize by factors, as Resize did at first."""
    return resize(run, x, scales or run.number("scales"))


@operator("Resize", lists=[1, 2, 3], refuses=_refuses)
def resize(run: Run, x: Any, *given: Any) -> Any:
    """Resize by factors, or to sizes."""
    region, scales, sizes = (None, given[0], None) if len(given) == 1 else (*given, None, None)[:3]
    axes = [axis % x.dim() for axis in run.number("axes") or range(x.dim())]
    outline = _outline(run, [x.shape[axis] for axis in axes], scales, sizes, region)
    for axis, entry in zip(axes, outline, strict=True):
        if entry.result != entry.size or not isclose(entry.scale, 1) or entry.region != (0, 1):
            x = _along(run, x, axis, entry)
    return x


def _outline(run: Run, before: list[int], scales: Any, sizes: Any, region: Any) -> list[_Axis]:
    count = len(before)
    if sizes:
        scales = [size / old for size, old in zip(sizes, before, strict=True)]
        policy = run.number("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            scales = [min(scales) if policy == "not_larger" else max(scales)] * count
            sizes = [int(scale * old + 0.5) for scale, old in zip(scales, before, strict=True)]
    else:
        sizes = [floor(scale * old) for scale, old in zip(scales, before, strict=True)]
    crops = _coordinates(run.call) == "tf_crop_and_resize" and region
    parts = list(zip(region[:count], region[count:], strict=True)) if crops else [(0, 1)] * count
    return [_Axis(*entry) for entry in zip(before, sizes, scales, parts, strict=True)]


def _along(run: Run, x: Any, axis: int, entry: _Axis) -> Any:
    where = _sources(_coordinates(run.call), entry)
    mode = run.number("mode", "nearest")
    if mode == "nearest":
        places = np.clip(_nearest(run, where), 0, entry.size - 1).astype(np.int64)
        found = x.index_select(axis, torch.from_numpy(places).to(x.device))
    else:
        found = _weighted(run, x, axis, entry, where)
    if _coordinates(run.call) == "tf_crop_and_resize":
        outside = torch.from_numpy((where < 0) | (where > entry.size - 1)).to(x.device)
        value = run.number("extrapolation_value", 0.0)
        found = found.masked_fill(outside.reshape(-1, *[1] * (x.dim() - axis - 1)), value)
    return found


def _sources(how: str, entry: _Axis) -> Floats:
    """Return where in the data the numbers of an axis come from."""
    places = np.arange(entry.result, dtype=np.float64)
    last, length = entry.size - 1, entry.scale * entry.size
    if how == "align_corners":
        # Where the length is no whole number, the specification takes it as it is.
        return places * 0 if length == 1 else places * last / (length - 1)
    if how == "asymmetric":
        return places / entry.scale
    if how == "tf_half_pixel_for_nn":
        return (places + 0.5) / entry.scale
    if how == "tf_crop_and_resize":
        start, end = entry.region
        if entry.result == 1:
            return np.full(1, (start + end) * last / 2)
        return start * last + places * (end - start) * last / (length - 1)
    if how == "pytorch_half_pixel" and entry.result == 1:
        return np.zeros(1)
    shift = entry.size / 2 * (1 - entry.result / length) if how == "half_pixel_symmetric" else 0.0
    return shift + (places + 0.5) / entry.scale - 0.5


def _nearest(run: Run, where: Floats) -> Floats:
    usual = "floor" if run.version < 11 else "round_prefer_floor"
    how = run.number("nearest_mode", usual)
    if how == "floor":
        return np.floor(where)
    if how == "ceil":
        return np.ceil(where)
    return np.ceil(where - 0.5) if how == "round_prefer_floor" else np.floor(where + 0.5)


def _weighted(run: Run, x: Any, axis: int, entry: _Axis, where: Floats) -> Any:
    """Return sums of neighbours, each by its weight."""
    spread = 1 / entry.scale if run.number("antialias", 0) and entry.scale < 1 else 1.0
    cubic = run.number("mode") == "cubic"
    reach = ceil((2 if cubic else 1) * spread)
    places = np.floor(where)[:, None] + np.arange(1 - reach, reach + 1)
    distance = np.abs(places - where[:, None]) / spread
    factor = run.number("cubic_coeff_a", -0.75)
    weights = _cubic(distance, factor) if cubic else np.clip(1 - distance, 0, None)
    if run.number("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= entry.size), 0, weights)
    if spread > 1 or run.number("exclude_outside", 0):
        weights = weights / weights.sum(1, keepdims=True)
    taken = torch.from_numpy(np.clip(places, 0, entry.size - 1).astype(np.int64)).to(x.device)
    shares = torch.from_numpy(weights).to(x.device, x.dtype)
    extent = (-1, *[1] * (x.dim() - axis - 1))
    parts = [
        x.index_select(axis, taken[:, entry]) * shares[:, entry].reshape(extent)
        for entry in range(taken.shape[1])
    ]
    return torch.stack(parts).sum(0) if len(parts) > 2 else parts[0] + parts[1]


def _cubic(distance: Floats, factor: float) -> Floats:
    """Return Keys' cubic kernel (1981)."""
    near = ((factor + 2) * distance - (factor + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * factor - 4 * factor
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
