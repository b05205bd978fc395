"""The values that codes stand for: a scale, and a zero point, for each output and group."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format

__all__ = ["Grid", "choose_grid", "expand"]

Matrix = npt.NDArray[np.float64]

_INT8_MAX = 127
_SHRINKS = np.linspace(0.5, 1.0, 26)[::-1]
"""Parts of a group's range that are tried for the least squared error: in few bits, giving up the
largest entries pays."""


@dataclass(frozen=True)
class Grid:
    """What codes stand for: `(code − zero point) · scale`.

    Attributes
    ----------
    format
        The format.
    scales
        Shape `(*batch, groups, outputs)`, as the model's float type holds them.
    zero_points
        Of the same shape, whole numbers; None for int8.
    """

    format: Format
    scales: Matrix
    zero_points: Matrix | None

    def codes(self, matrix: Matrix) -> Matrix:
        """Return the nearest codes of a matrix `(*batch, inputs, outputs)`, as floats."""
        inputs, group = matrix.shape[-2], self.format.group
        scaled = np.rint(matrix / expand(self.scales, inputs, group))
        if self.zero_points is None:
            return np.asarray(np.clip(scaled, -_INT8_MAX, _INT8_MAX))
        zeros = expand(self.zero_points, inputs, group)
        return np.asarray(np.clip(scaled + zeros, 0, 2**self.format.bits - 1))

    def values(self, codes: Matrix) -> Matrix:
        """Return what codes stand for."""
        inputs, group = codes.shape[-2], self.format.group
        if self.zero_points is not None:
            codes = codes - expand(self.zero_points, inputs, group)
        return np.asarray(codes * expand(self.scales, inputs, group))


def expand(values: npt.NDArray[Any], inputs: int, group: int | None) -> npt.NDArray[Any]:
    """Repeat `(*batch, groups, outputs)` for every input of a group; leave one row to broadcast."""
    if group is None:
        return values
    return np.repeat(values, group, axis=-2)[..., :inputs, :]


def choose_grid(matrix: Matrix, format: Format, compute: npt.DTypeLike) -> Grid:
    """Return the grid of a matrix `(*batch, inputs, outputs)`.

    int8 reaches each output's largest magnitude. int4 and int2 take, of several parts of each
    group's range (which includes 0), the one whose rounding has the least squared error.
    """
    smallest = Format(np.dtype(compute).name).smallest
    if not format.is_packed:
        peaks = _reduced(np.abs(matrix), np.maximum, format.group)
        return Grid(format, _stored(peaks / _INT8_MAX, smallest, compute), None)
    low = np.minimum(_reduced(matrix, np.minimum, format.group), 0)
    high = np.maximum(_reduced(matrix, np.maximum, format.group), 0)
    best, least = None, None
    for grid in _candidates(low, high, format, smallest, compute):
        error = _reduced(np.square(grid.values(grid.codes(matrix)) - matrix), np.add, format.group)
        if best is None or least is None:
            best, least = grid, error
            continue
        better = error < least
        least = np.where(better, error, least)
        best = Grid(
            format,
            np.where(better, grid.scales, best.scales),
            np.where(better, _zeros(grid), _zeros(best)),
        )
    if best is None:
        raise ValueError("no candidate ranges")
    return best


def _candidates(
    low: Matrix, high: Matrix, format: Format, smallest: float, compute: npt.DTypeLike
) -> Iterator[Grid]:
    steps = 2**format.bits - 1
    for shrink in _SHRINKS:
        scales = _stored(shrink * (high - low) / steps, smallest, compute)
        zeros = np.clip(np.rint(-shrink * low / scales), 0, steps)
        yield Grid(format, scales, zeros)


def _zeros(grid: Grid) -> Matrix:
    if grid.zero_points is None:
        raise ValueError("a grid of a packed format has zero points")
    return grid.zero_points


def _stored(scales: Matrix, smallest: float, compute: npt.DTypeLike) -> Matrix:
    """Return scales as the model's float type will hold them."""
    return np.maximum(scales, smallest).astype(compute).astype(np.float64)


def _reduced(matrix: Matrix, reduction: np.ufunc, group: int | None) -> Matrix:
    """Reduce each group, `(*batch, inputs, outputs)` → `(*batch, groups, outputs)`."""
    inputs = matrix.shape[-2]
    starts = np.arange(0, inputs, group or inputs)
    return np.asarray(reduction.reduceat(matrix, starts, axis=-2))
