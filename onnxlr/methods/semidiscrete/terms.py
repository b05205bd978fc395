"""Terms of a semidiscrete decomposition, the matrix they approximate, and their strengths."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import linalg

__all__ = ["Fitted", "Goal", "Terms"]

Floats = npt.NDArray[np.float32]
Strengths = npt.NDArray[np.float64]

_RIDGE = 1e-6
"""Part of each diagonal entry that is added to the normal equations of the strengths."""


@dataclass(frozen=True)
class Goal:
    """A matrix to approximate, and what its error is measured in.

    Attributes
    ----------
    matrix
        `A`, float32 (inputs, outputs).
    covariance
        `C`, float32 (inputs, inputs): the squared error of `E` is `tr(Eᵀ C E)`. None for the
        identity.
    """

    matrix: Floats
    covariance: Floats | None = None

    @cached_property
    def total(self) -> float:
        """Squared error of no terms at all."""
        return float(np.vdot(self.weigh(self.matrix), self.matrix))

    def weigh(self, matrix: Floats) -> Floats:
        """Return `C M` of a matrix `(inputs, anything)`."""
        return matrix if self.covariance is None else self.covariance @ matrix

    def weigh_rows(self, rows: Floats) -> Floats:
        """Return `M C` of a matrix `(anything, inputs)`."""
        return rows if self.covariance is None else rows @ self.covariance

    def damped(self, part: float) -> Goal:
        """Return the goal with a part of the mean diagonal added to the covariance's diagonal."""
        if self.covariance is None:
            return self
        size = len(self.covariance)
        added = part * float(np.trace(self.covariance)) / size
        return Goal(self.matrix, self.covariance + np.float32(added) * np.eye(size, dtype="f4"))

    def error(self, terms: Terms) -> float:
        """Return the relative error, the root of the squared one over that of no terms."""
        residual = terms.residual(self.matrix)
        wrong = float(np.vdot(self.weigh(residual), residual))
        return float(np.sqrt(max(wrong, 0.0) / self.total)) if self.total > 0 else 0.0


@dataclass(frozen=True)
class Terms:
    """`Σ_k s_k u_k v_kᵀ`.

    Attributes
    ----------
    left, right
        −1, 0 and 1 as float32, `(terms, inputs)` and `(terms, outputs)`: products of matrices take
        most of the time, and they are of floats.
    strengths
        `(terms,)`.
    """

    left: Floats
    right: Floats
    strengths: Strengths

    @classmethod
    def none(cls, inputs: int, outputs: int) -> Terms:
        """Return no terms."""
        empty = np.zeros((0, inputs), np.float32), np.zeros((0, outputs), np.float32)
        return cls(*empty, np.zeros(0))

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.strengths)

    def joined(self, other: Terms) -> Terms:
        """Return these terms and others behind them."""
        return Terms(
            np.concatenate([self.left, other.left]),
            np.concatenate([self.right, other.right]),
            np.concatenate([self.strengths, other.strengths]),
        )

    def filled(self, count: int) -> Terms:
        """Return the terms, and empty ones behind them up to that count."""
        missing = count - self.count
        left, right = ((missing, side.shape[1]) for side in (self.left, self.right))
        empty = np.zeros(left, np.float32), np.zeros(right, np.float32), np.zeros(missing)
        return self.joined(Terms(*empty))

    def present(self) -> Terms:
        """Return those that add something, each with a strength above 0."""
        adds = self.left.any(axis=1) & self.right.any(axis=1) & (self.strengths != 0)
        signs = np.sign(self.strengths[adds])
        left = self.left[adds] * signs.astype(np.float32)[:, None]
        return Terms(left, self.right[adds], np.abs(self.strengths[adds]))

    def scaled_left(self) -> Floats:
        """Return `diag(s) Uᵀ`."""
        return self.left * self.strengths.astype(np.float32)[:, None]

    def scaled_right(self) -> Floats:
        """Return `diag(s) Vᵀ`."""
        return self.right * self.strengths.astype(np.float32)[:, None]

    def residual(self, matrix: Floats) -> Floats:
        """Return a matrix without the sum of the terms."""
        return np.asarray(matrix - self.scaled_left().T @ self.right)


@dataclass(frozen=True)
class Fitted:
    """Terms with their products with the goal, which solving and descending need again and again.

    Attributes
    ----------
    goal, terms
        What they belong to.
    weighed
        `Uᵀ C`, `(terms, inputs)`.
    seen
        `Uᵀ C A`, `(terms, outputs)`.
    common_left, common_right
        `Uᵀ C U` and `Vᵀ V`, `(terms, terms)`.
    """

    goal: Goal
    terms: Terms
    weighed: Floats
    seen: Floats
    common_left: Floats
    common_right: Floats

    @classmethod
    def of(cls, terms: Terms, goal: Goal) -> Fitted:
        """Return terms with their products."""
        weighed = goal.weigh_rows(terms.left)
        return cls(
            goal,
            terms,
            weighed,
            weighed @ goal.matrix,
            weighed @ terms.left.T,
            terms.right @ terms.right.T,
        )

    @property
    def energies(self) -> Strengths:
        """What each term alone adds to the squared norm, `(terms,)`."""
        gram = np.diagonal(self.common_left).astype(np.float64) * np.diagonal(self.common_right)
        return np.asarray(np.square(self.terms.strengths) * gram)

    def with_right(self, right: Floats) -> Fitted:
        """Return the terms with another right side."""
        terms = Terms(self.terms.left, right, self.terms.strengths)
        return replace(self, terms=terms, common_right=right @ right.T)

    def with_left(self, left: Floats) -> Fitted:
        """Return the terms with another left side."""
        own = Fitted.of(Terms(left, self.terms.right[:0], self.terms.strengths), self.goal)
        terms = Terms(left, self.terms.right, self.terms.strengths)
        return replace(own, terms=terms, common_right=self.common_right)

    def solved(self, ridge: float | Strengths = _RIDGE) -> Fitted:
        """Return the terms with the strengths of least error together.

        `(G + ridge) s = b` with `G = (Uᵀ C U) ∘ (Vᵀ V)` and `b = diag(Uᵀ C A V)`; the ridge is
        given as a part of the diagonal of `G`.
        """
        if not self.terms.count:
            return self
        gram = (self.common_left * self.common_right).astype(np.float64)
        wanted = np.einsum("kn,kn->k", self.seen, self.terms.right, dtype=np.float64)
        strengths = _solve(gram, wanted, ridge * np.diagonal(gram))
        return replace(self, terms=Terms(self.terms.left, self.terms.right, strengths))


def _solve(gram: Strengths, wanted: Strengths, ridge: Strengths) -> Strengths:
    """Solve normal equations that may be singular: equal terms share their strength."""
    diagonal = np.diag_indices_from(gram)
    floor = np.finfo(np.float64).tiny
    while True:
        damped = gram.copy()
        damped[diagonal] += np.maximum(ridge, floor)
        try:
            factor = linalg.cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            ridge = np.maximum(10 * ridge, 1e-7 * float(np.diagonal(gram).max(initial=floor)))
            continue
        return np.asarray(linalg.cho_solve(factor, wanted, check_finite=False))
