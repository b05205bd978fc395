"""The singular values of a weight in a metric, and factors of any rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.linalg import blas
from tensorly.tenalg.svd import svd_flip

from onnxlr.metrics import Weighing

__all__ = ["Spectrum", "energies"]

Matrix = npt.NDArray[np.float64]

_LARGE = 256
"""Smaller sides from which on a few singular values are found faster than all."""

_ROWS = 512
"""Rows that are in float64 at a time."""


@dataclass(frozen=True)
class Spectrum:
    """Singular value decomposition `L W R = U diag(s) Vᵀ` of one weight or a stack of them.

    Attributes
    ----------
    left
        `L⁻¹ U`, shape `(*batch, inputs, k)` with k the smaller side.
    values
        Singular values, descending, shape `(*batch, k)`.
    right
        `Vᵀ R⁻¹`, shape `(*batch, k, outputs)`.
    total
        Sum of the squares of all singular values, where these are only the largest; None where
        they are all.
    """

    left: Matrix
    values: Matrix
    right: Matrix
    total: float | None = None

    @classmethod
    def of(
        cls, weight: npt.NDArray[Any], weighings: Sequence[Weighing], most: int | None = None
    ) -> Spectrum:
        """Decompose a weight of shape `(*batch, inputs, outputs)`, in float64.

        Parameters
        ----------
        most
            Singular values that are asked for, all if not given; k may be larger.
        """
        *batch, inputs, outputs = weight.shape
        matrices = weight.reshape(-1, inputs, outputs)
        wanted = _wanted(min(inputs, outputs), most)
        parts = [
            _decompose(matrix, weighing, wanted)
            for matrix, weighing in zip(matrices, weighings, strict=True)
        ]
        left, values, right, totals = (_stacked(part) for part in zip(*parts, strict=True))
        return cls(
            left.reshape(*batch, inputs, -1),
            values.reshape(*batch, -1),
            right.reshape(*batch, -1, outputs),
            None if wanted == min(inputs, outputs) else float(totals.sum()),
        )

    @property
    def full_rank(self) -> int:
        """The smaller side of the weight."""
        return int(min(self.left.shape[-2], self.right.shape[-1]))

    def energies(self) -> Matrix:
        """Return the share of the squared singular values in the first 1, 2, … of them.

        A stack counts as one: its matrices share the rank. A weight of zeros has all its energy in
        any of them.
        """
        squares, total = self._squares()
        return np.cumsum(squares) / total if total > 0 else np.ones(len(squares))

    def errors(self) -> Matrix:
        """Return the relative error of ranks 1, 2, … up to k."""
        squares, total = self._squares()
        if not total > 0:
            return np.zeros(len(squares))
        left = 0.0 if self.total is None else max(total - float(squares.sum()), 0.0)
        behind = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0) + left
        return np.asarray(np.sqrt(behind / total))

    def _squares(self) -> tuple[Matrix, float]:
        """Return the squares of the values, summed over a stack, and the sum of all there are."""
        squares = np.square(self.values).reshape(-1, self.values.shape[-1]).sum(axis=0)
        return squares, float(squares.sum()) if self.total is None else self.total

    def factors(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return the first `rank` singular vectors on both sides, the values on the left."""
        left = self.left[..., :, :rank] * self.values[..., None, :rank]
        return left, self.right[..., :rank, :]


def energies(weight: npt.NDArray[Any]) -> Matrix:
    """Return the share of the squared singular values in the first 1, 2, … of them.

    The same as `Spectrum.energies` of a weight `(*batch, inputs, outputs)` in which every entry
    counts alike, without singular vectors, which take most of the time and memory.
    """
    inputs, outputs = weight.shape[-2:]
    squares = np.zeros(min(inputs, outputs))
    for matrix in weight.reshape(-1, inputs, outputs):
        gram = _gram(matrix if outputs <= inputs else matrix.T)
        found = linalg.eigvalsh(gram, lower=True, overwrite_a=True, check_finite=False)
        squares += np.maximum(found[::-1], 0.0)
    total = squares.sum()
    return np.cumsum(squares) / total if total > 0 else np.ones(len(squares))


def _wanted(full: int, most: int | None) -> int:
    """Return how many singular values to find: of few, or of most, all take no longer."""
    if most is None or full < _LARGE or most > full // 2:
        return full
    return max(most, 1)


def _stacked(parts: Sequence[Any]) -> npt.NDArray[Any]:
    """Return arrays as a stack; one is not copied for that."""
    return np.asarray(parts[0])[None] if len(parts) == 1 else np.stack(parts)


def _decompose(
    matrix: npt.NDArray[Any], weighing: Weighing, wanted: int
) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Decompose by the eigenvectors of the smaller Gram matrix.

    The larger factor is the weight projected on the eigenvectors, so that any rank is an exact
    orthogonal projection, and the full rank the weight itself, whatever the small eigenvalues lost.
    It takes a fraction of the time and memory of a full decomposition of a large matrix. Of float64
    there is the Gram matrix, the eigenvectors and their products; the weight is taken row by row.

    Returns
    -------
    left, values, right, total
        The last is the sum of the squares of all singular values.
    """
    weight = matrix if weighing.is_identity else weighing.weigh(matrix.astype(np.float64))
    inputs, outputs = weight.shape
    if outputs <= inputs:
        vectors, total = _eigenvectors(weight, wanted)
        right, left = vectors.T, _product(weight, vectors)
        values = np.linalg.norm(left, axis=0)
        left /= np.where(values > 0, values, 1.0)
    else:
        left, total = _eigenvectors(weight.T, wanted)
        right = _product(weight.T, left).T
        values = np.linalg.norm(right, axis=1)
        right /= np.where(values > 0, values, 1.0)[:, None]
    order = np.argsort(-values, kind="stable")
    if np.any(order[1:] < order[:-1]):
        left, right = left[:, order], right[order]
    _flip(left, right)
    left, right = weighing.restore(left, right)
    return left, values[order], right, np.asarray(total)


def _eigenvectors(weight: npt.NDArray[Any], wanted: int) -> tuple[Matrix, float]:
    """Return eigenvectors of `Wᵀ W`, those of the largest eigenvalues first, and its trace."""
    size, gram = weight.shape[1], _gram(weight)
    total = float(np.trace(gram))
    given: dict[str, Any] = {"lower": True, "check_finite": False}
    if wanted < size:
        # By bisection and inverse iteration; the usual algorithm finds all of them in any case.
        subset = (size - wanted, size - 1)
        _, vectors = linalg.eigh(
            gram, **given, overwrite_a=True, subset_by_index=subset, driver="evx"
        )
    else:
        _, vectors = linalg.eigh(gram, **given, overwrite_a=True)
    return vectors[:, ::-1], total


def _gram(weight: npt.NDArray[Any]) -> Matrix:
    """Return the lower half of `Wᵀ W`, in float64."""
    size = weight.shape[1]
    gram: Matrix = np.zeros((size, size), order="F")
    for rows in _blocks(weight):
        gram = blas.dsyrk(1.0, rows.T, beta=1.0, c=gram, lower=1, overwrite_c=True)
    return gram


def _product(weight: npt.NDArray[Any], vectors: Matrix) -> Matrix:
    """Return `W V`, in float64."""
    product = np.empty((len(weight), vectors.shape[1]))
    begin = 0
    for rows in _blocks(weight):
        product[begin : begin + len(rows)] = rows @ vectors
        begin += len(rows)
    return product


def _blocks(weight: npt.NDArray[Any]) -> Iterator[Matrix]:
    """Yield the rows of a matrix some at a time, in float64 and in the order of C."""
    for begin in range(0, len(weight), _ROWS):
        yield np.ascontiguousarray(weight[begin : begin + _ROWS], np.float64)


def _flip(left: Matrix, right: Matrix) -> None:
    """Fix the signs of singular vectors, in place."""
    for begin in range(0, len(right), _ROWS):
        some = slice(begin, begin + _ROWS)
        left[:, some], right[some] = svd_flip(left[:, some], right[some])
