"""The published direct transition, as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg
from tensorly.tenalg.svd import randomized_svd

from onnxlr.methods.semidiscrete.alternating import ErrorOf
from onnxlr.methods.semidiscrete.terms import Fitted, Goal, Terms
from onnxlr.methods.semidiscrete.ternarization import published_ternary

__all__ = ["Published"]

_RANDOMIZED = 1024**2
"""Entries from which on singular vectors are those of a randomised decomposition."""

_RIDGE = 1e-5


@dataclass(frozen=True)
class Published:
    """The direct transition of *Ternary Singular Value Decomposition*.

    Again and again: the first singular vectors of what is left are made ternary by a threshold,
    added, and the strengths of all terms solved together, with a ridge of
    `1e-5 · √(Σ G² / K)`.

    Attributes
    ----------
    matrix
        float32 (inputs, outputs).
    seed
        Of the randomised decomposition of large matrices.
    """

    matrix: npt.NDArray[np.float32]
    seed: int = 0

    def of_count(self, count: int) -> Terms:
        """Return that many terms; fewer if they are exact before."""
        return self._grown(count, lambda _: False)

    def until(self, error: ErrorOf, limit: float, most: int) -> Terms:
        """Return terms, so many at a time, until they are within an error, or `most`."""
        return self._grown(most, lambda terms: error(terms) <= limit)

    def _grown(self, count: int, is_enough: Callable[[Terms], bool]) -> Terms:
        inputs, outputs = self.matrix.shape
        stride = max(1, inputs * outputs // (inputs + outputs) // 20)
        goal = Goal(self.matrix)
        terms = Terms.none(inputs, outputs)
        while terms.count < count:
            residual = terms.residual(self.matrix)
            new = _transition(residual, min(stride, count - terms.count), self.seed).present()
            if not new.count:
                break
            terms = _solved(Fitted.of(terms.joined(new), goal))
            if is_enough(terms):
                break
        return terms.present()


def _transition(residual: npt.NDArray[np.float32], count: int, seed: int) -> Terms:
    """Return terms of strength 1 from the first singular vectors of a residual."""
    exact = residual.astype(np.float64)
    count = min(count, *exact.shape)
    if exact.size > _RANDOMIZED:
        left, values, right = randomized_svd(exact, n_eigenvecs=count, random_state=seed)
    else:
        left, values, right = linalg.svd(exact, full_matrices=False)
    present = int(np.count_nonzero(values[:count] > 0))
    if not present:
        return Terms.none(*exact.shape)
    pairs = [(published_ternary(left[:, k]), published_ternary(right[k])) for k in range(present)]
    one, other = (np.stack(side) for side in zip(*pairs, strict=True))
    return Terms(one, other, np.ones(present))


def _solved(fitted: Fitted) -> Terms:
    gram = (fitted.common_left * fitted.common_right).astype(np.float64)
    ridge = _RIDGE * np.sqrt(np.square(gram).sum() / len(gram))
    return fitted.solved(float(ridge) / np.diagonal(gram)).terms
