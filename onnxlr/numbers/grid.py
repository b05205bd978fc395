"""The values that codes stand for, for each output and group of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format
from onnxlr.numbers.scales import expand, stored
from onnxlr.numbers.ternary_grid import choose_ternary_grid

__all__ = ["Grid", "IntegerGrid", "Rounded", "choose_grid"]

Matrix = npt.NDArray[np.float64]

_INT8_MAX = 127
_SHRINKS = np.linspace(0.5, 1.0, 26)[::-1]
"""Parts of a group's range that are tried for the least squared error: in few bits, giving up the
largest entries pays."""


class Grid(Protocol):
    """What codes stand for in some groups of inputs, for each output."""

    @property
    def scales(self) -> Matrix:
        """As the model's float type holds them, `(…, groups, outputs)`."""

    @property
    def zero_points(self) -> Matrix | None:
        """Of the same shape; None where there are none."""

    def nearest(self, matrix: Matrix) -> tuple[Matrix, Matrix]:
        """Return the codes nearest to `(inputs, outputs)`, and what they stand for."""


@dataclass(frozen=True)
class Rounded:
    """A matrix or stack in codes.

    Attributes
    ----------
    codes
        Shape `(*batch, inputs, outputs)`, as floats.
    scales, zero_points
        As `Encoded` has them for matrices.
    """

    codes: Matrix
    scales: Matrix
    zero_points: Matrix | None

    @classmethod
    def nearest(cls, matrix: Matrix, grid: Grid) -> Rounded:
        """Return a matrix in the codes nearest to each number."""
        return cls(grid.nearest(matrix)[0], grid.scales, grid.zero_points)


@dataclass(frozen=True)
class IntegerGrid:
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

    def nearest(self, matrix: Matrix) -> tuple[Matrix, Matrix]:
        """Return the nearest codes of a matrix `(*batch, inputs, outputs)`, and their values."""
        codes = self.codes(matrix)
        return codes, self.values(codes)

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


def choose_grid(
    matrix: Matrix,
    format: Format,
    compute: npt.DTypeLike,
    weights: npt.ArrayLike | None = None,
) -> Grid:
    """Return the grid of a matrix `(inputs, outputs)`, or for integers `(*batch, inputs, outputs)`.

    int8 reaches each output's largest magnitude. int4 and int2 take, of several parts of each
    group's range (which includes 0), the one whose rounding has the least squared error. For
    ternary see `choose_ternary_grid`, which is also told what each input's error counts.
    """
    if format.is_ternary:
        return choose_ternary_grid(matrix, format, compute, weights)
    if not format.is_packed:
        peaks = _reduced(np.abs(matrix), np.maximum, format.group)
        return IntegerGrid(format, stored(peaks / _INT8_MAX, compute), None)
    low = np.minimum(_reduced(matrix, np.minimum, format.group), 0)
    high = np.maximum(_reduced(matrix, np.maximum, format.group), 0)
    best, least = None, None
    for grid in _candidates(low, high, format, compute):
        error = _reduced(np.square(grid.nearest(matrix)[1] - matrix), np.add, format.group)
        if best is None or least is None:
            best, least = grid, error
            continue
        better = error < least
        least = np.where(better, error, least)
        best = IntegerGrid(
            format,
            np.where(better, grid.scales, best.scales),
            np.where(better, _zeros(grid), _zeros(best)),
        )
    if best is None:
        raise ValueError("no candidate ranges")
    return best


def _candidates(
    low: Matrix, high: Matrix, format: Format, compute: npt.DTypeLike
) -> Iterator[IntegerGrid]:
    steps = 2**format.bits - 1
    for shrink in _SHRINKS:
        scales = stored(shrink * (high - low) / steps, compute)
        zeros = np.clip(np.rint(-shrink * low / scales), 0, steps)
        yield IntegerGrid(format, scales, zeros)


def _zeros(grid: IntegerGrid) -> Matrix:
    if grid.zero_points is None:
        raise ValueError("a grid of a packed format has zero points")
    return grid.zero_points


def _reduced(matrix: Matrix, reduction: np.ufunc, group: int | None) -> Matrix:
    """Reduce each group, `(*batch, inputs, outputs)` → `(*batch, groups, outputs)`."""
    inputs = matrix.shape[-2]
    starts = np.arange(0, inputs, group or inputs)
    return np.asarray(reduction.reduceat(matrix, starts, axis=-2))
