"""Weighted least squares for every row of a factor at once, by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Rows"]

Matrix = npt.NDArray[np.float64]

_STEPS = 10
"""Conjugate gradient steps for each half of an alternation: fewer take more alternations, more
take longer for the same error (measured on 384×1536, rank 154)."""

_PROXIMAL = 1e-6
"""The ridge towards the old factor, as a share of the mean diagonal of the normal equations."""


@dataclass(frozen=True)
class Rows:
    """The least squares problems of all rows of one factor.

    Attributes
    ----------
    weight
        Shape `(rows, columns)`.
    share
        Importance divided by the largest of its row, which does not change the row's solution.
    """

    weight: Matrix
    share: Matrix

    @classmethod
    def of(cls, weight: Matrix, importance: Matrix) -> Rows:
        """Normalise; the matrices may be transposed views and are copied in their own order."""
        largest = importance.max(axis=1, keepdims=True)
        share = importance / np.where(largest > 0, largest, 1.0)
        return cls(np.ascontiguousarray(weight), np.ascontiguousarray(share))

    def solve(self, factor: Matrix, fixed: Matrix) -> Matrix:
        """Return `a_i = (B D_i Bᵀ + μ_i I)⁻¹ (B D_i w_i + μ_i a_i)` for every row, nearly.

        By preconditioned conjugate gradients on the change of `a_i`, from zero. Each step lowers
        the proximal objective of each row, hence the weighted error never rises wherever it stops,
        and it takes two matrix products in place of a Gram matrix for each row, whose
        `rows · columns · rank²` operations are most of the time of the direct solution.

        Parameters
        ----------
        factor
            The old rows `a_i`, shape `(rows, rank)`.
        fixed
            `B`, shape `(rank, columns)`.
        """
        diagonal = self.share @ np.square(fixed).T
        ridge = _PROXIMAL * diagonal.mean(axis=1, keepdims=True)
        # a row without importance has a zero diagonal, and a zero gradient
        diagonal = np.where(diagonal + ridge > 0, diagonal + ridge, 1.0)
        gradient = (self.share * (self.weight - factor @ fixed)) @ fixed.T
        direction = gradient / diagonal
        slope = np.einsum("ij,ij->i", gradient, direction)
        answer: Matrix = factor.copy()
        for _ in range(min(_STEPS, len(fixed))):
            spread = direction @ fixed
            spread *= self.share
            image = spread @ fixed.T + ridge * direction
            curvature = np.einsum("ij,ij->i", direction, image)
            step = _quotient(slope, curvature)[:, None]
            answer += step * direction
            gradient -= step * image
            scaled = gradient / diagonal
            previous, slope = slope, np.einsum("ij,ij->i", gradient, scaled)
            direction = scaled + _quotient(slope, previous)[:, None] * direction
        return answer


def _quotient(numerator: Matrix, denominator: Matrix) -> Matrix:
    """Return the quotient; 0, which ends a row's conjugate gradients, where nothing is left."""
    left = denominator > np.finfo(np.float64).tiny
    return np.asarray(np.where(left, numerator / np.where(left, denominator, 1.0), 0.0))
