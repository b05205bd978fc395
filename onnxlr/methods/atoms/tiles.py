"""A weight as tiles to be described, in the order they are treated, and what their errors cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.methods.scaled_rows import smallest_kept
from onnxlr.metrics import Metric, row_importance, unfold_inputs
from onnxlr.numbers import Format
from onnxlr.numbers.gptq import Feedback

__all__ = ["Part", "Tiles"]

Matrix = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

_PADDED = 1e-6
"""What the error of an input costs that the last tile has and the weight has not, of the mean."""


@dataclass(frozen=True)
class Part:
    """The inputs of some outputs: a matrix, or one group of a convolution.

    Tiles are in the order they are treated, those of large inputs first: what they lose, others
    make up for.

    Attributes
    ----------
    numbers
        The weight over the root mean square of each output, `(tiles, width, outputs)`.
    hessian
        What errors cost, of mean diagonal 1: `(tiles · width, tiles · width)`, or the diagonal.
    root
        The upper Cholesky factor of its inverse; None for a diagonal.
    order
        The position of each tile among the inputs, `(tiles,)`.
    is_whole
        Whether a tile has no inputs beside the weight's, `(tiles,)`.
    unit
        The mean diagonal of what errors cost, before it was divided by it.
    """

    numbers: Single
    hessian: Matrix
    root: Matrix | None
    order: npt.NDArray[np.int64]
    is_whole: npt.NDArray[np.bool_]
    unit: float

    @classmethod
    def of(cls, weight: Matrix, hessian: Matrix | None, width: int) -> Part:
        """Return the tiles of `(inputs, outputs)` under a covariance, a diagonal, or none."""
        inputs, outputs = weight.shape
        count = -(-inputs // width)
        missing = count * width - inputs
        plain = np.ones(inputs) if hessian is None else hessian
        diagonal = plain if plain.ndim == 1 else np.diagonal(plain)
        unit = float(diagonal.mean()) or 1.0
        diagonal = np.append(diagonal / unit, np.full(missing, _PADDED))
        whole = np.pad(weight, ((0, missing), (0, 0))).reshape(count, width, outputs)
        order = np.argsort(-diagonal.reshape(count, width).sum(axis=1), kind="stable")
        rows = (order[:, None] * width + np.arange(width)).reshape(-1)
        numbers = np.ascontiguousarray(whole[order], dtype=np.float32)
        is_whole = (order + 1) * width <= inputs
        if plain.ndim == 1:
            return cls(numbers, diagonal[rows], None, order, is_whole, unit)
        real = rows < inputs
        exact = (plain / unit)[np.ix_(rows[real], rows[real])]
        feedback = Feedback.of(exact)
        hessian = np.diag(diagonal[rows])
        root = np.diag(1 / np.sqrt(np.where(real, 1.0, diagonal[rows])))
        # one tile of all inputs has none behind it whose making up must be kept within bounds
        hessian[np.ix_(real, real)] = feedback.damped if count > 1 else _regular(exact)
        root[np.ix_(real, real)] = feedback.root
        return cls(numbers, hessian, root, order, is_whole, unit)

    @property
    def width(self) -> int:
        """Inputs of a tile."""
        return int(self.numbers.shape[1])

    @property
    def flat(self) -> Single:
        """The numbers as one matrix, `(tiles · width, outputs)`."""
        return self.numbers.reshape(-1, self.numbers.shape[2])

    @cached_property
    def left(self) -> Matrix:
        """What an error of a tile still costs when later tiles have made up for it.

        The Schur complements of their Hessian, `(tiles, width, width)`: `R⁻¹ R⁻ᵀ` for the block `R`
        of the root.
        """
        if len(self.numbers) == 1 and self.root is not None:
            return self.hessian[None]
        return np.stack([solved @ solved.T for solved in self.solved])

    @cached_property
    def solved(self) -> Matrix:
        """Inverses of the root's blocks, `(tiles, width, width)`."""
        count, width, _ = self.numbers.shape
        if self.root is None:
            roots = np.sqrt(self.hessian).reshape(count, width)
            return np.asarray(roots[:, :, None] * np.eye(width))
        found = np.empty((count, width, width))
        for tile in range(count):
            own = slice(tile * width, tile * width + width)
            found[tile] = linalg.solve_triangular(self.root[own, own], np.eye(width), lower=False)
        return found

    @cached_property
    def single_root(self) -> Single | None:
        """The root in float32."""
        return None if self.root is None else self.root.astype(np.float32)

    @cached_property
    def single_hessian(self) -> Single:
        """The Hessian in float32."""
        return self.hessian.astype(np.float32)

    def cost(self, wrong: Single) -> Single:
        """Return `H E` of errors `(tiles · width, outputs)`."""
        if self.root is None:
            return np.asarray(self.single_hessian[:, None] * wrong)
        return np.asarray(self.single_hessian @ wrong)

    def points(self) -> Single:
        """Return the tiles of all outputs, `(columns, width)`, but the last where it is shorter."""
        whole = self.numbers[self.is_whole]
        return np.ascontiguousarray(whole.swapaxes(1, 2)).reshape(-1, self.width)


@dataclass(frozen=True)
class Tiles:
    """A weight's tiles.

    Attributes
    ----------
    parts
        One for each matrix that has inputs of its own; all have as many outputs.
    units
        The root mean square of each output, in the float type scales are kept in, `(outputs,)`.
    compute
        That type.
    """

    parts: Sequence[Part]
    units: Matrix
    compute: np.dtype[Any]

    @classmethod
    def of(
        cls,
        weight: npt.NDArray[Any],
        metric: Metric,
        groups: int | None,
        width: int,
        compute: np.dtype[Any],
    ) -> Tiles:
        """Return the tiles of a matrix `(inputs, outputs)` or kernel."""
        matrices = unfold_inputs(weight, groups)
        if metric.covariance is None and metric.importance is None:
            # groups that count alike are as good as one
            matrices = matrices.swapaxes(0, 1).reshape(1, matrices.shape[1], -1)
        squares = np.square(matrices / _largest(matrices)).mean(axis=1).reshape(-1)
        units = np.sqrt(squares) * _largest(matrices)
        units = kept_scales(units, compute)  # of an output of zeros the smallest there is
        hessians = _hessians(metric, groups, len(matrices))
        divided = matrices / units.reshape(len(matrices), 1, -1)
        parts = [
            Part.of(part, hessian, width) for part, hessian in zip(divided, hessians, strict=True)
        ]
        return cls(parts, units, compute)

    @property
    def outputs(self) -> int:
        """Outputs of one part."""
        return int(self.parts[0].numbers.shape[2])

    @property
    def shares(self) -> Single:
        """How much each output's squared error counts, `(parts, outputs)`, of mean 1."""
        squares = np.square(self.units / self.units.max()).reshape(len(self.parts), -1)
        costs = np.array([[part.unit] for part in self.parts])
        shares = squares * (costs / costs.max())
        return np.asarray(shares / (float(shares.mean()) or 1.0), np.float32)


def kept_scales(scales: Matrix, compute: np.dtype[Any]) -> Matrix:
    """Return scales as a float type holds them, none of them 0 or infinite."""
    largest = Format(compute.name).largest
    rounded = np.clip(scales, smallest_kept(compute), largest).astype(compute)
    return np.asarray(rounded, np.float64)


def _regular(hessian: Matrix) -> Matrix:
    """Return a covariance that has a Cholesky factor, though it may be singular."""
    jitter = np.finfo(np.float64).eps * max(float(np.trace(hessian)), 1.0)
    return np.asarray(hessian + jitter * np.eye(len(hessian)))


def _largest(matrices: Matrix) -> float:
    """Return the largest magnitude, 1 of zeros."""
    return float(np.abs(matrices).max()) or 1.0


def _hessians(metric: Metric, groups: int | None, parts: int) -> Sequence[Matrix | None]:
    if metric.covariance is not None:
        return list(metric.covariance)
    if metric.importance is not None:
        return list(row_importance(unfold_inputs(metric.importance, groups)))
    return [None] * parts
