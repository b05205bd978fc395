"""The better fit: growth in blocks, with coordinate descent over all terms in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TypeAlias

import numpy as np

from onnxlr.methods.semidiscrete.descent import descend
from onnxlr.methods.semidiscrete.growth import grow
from onnxlr.methods.semidiscrete.spreading import spread
from onnxlr.methods.semidiscrete.terms import Fitted, Goal, Terms
from onnxlr.progress import Progress, silent

__all__ = ["Alternating", "ErrorOf"]

ErrorOf: TypeAlias = Callable[[Terms], float]
"""Says how far terms are from what they are to approximate."""


@dataclass(frozen=True)
class Effort:
    """How much is done for a matrix.

    Attributes
    ----------
    entries
        Of the largest such matrix, or of its covariance.
    revisions
        Sweeps over all terms for each trit that an entry of the matrix has.
    alternations
        Most times that a block of new terms is found anew.
    sweeps
        In the end, where no number is asked for.
    """

    entries: int
    revisions: int
    alternations: int
    sweeps: int


_GROWING = 3.0
"""Damping of the covariance while terms are added, in mean diagonals. Terms that were fitted to few
directions only would leave residuals in the others that later terms cannot tell from noise."""

_FINISHING = 0.02
"""Damping of the covariance in the end."""

_EFFORTS = (
    Effort(2**20, revisions=8, alternations=8, sweeps=4),
    Effort(2**22, revisions=4, alternations=8, sweeps=2),
    Effort(2**62, revisions=2, alternations=5, sweeps=1),
)
"""For ever larger matrices: the gain is the same, and the time more."""

_QUICK = 2**20
"""Entries of a matrix whose terms are found within a few seconds."""

_LEFT_TO_FINISH = 1.5
"""Part of an error's limit from which on the last sweeps cannot be expected to reach it."""

_EXACT = 1e-5
"""Relative error from which on terms would only follow the rounding of float32."""

_BISECTIONS = 5
"""How often the last step of growth is halved to find the fewest terms that are good enough."""


@dataclass(frozen=True)
class Alternating:
    """Semidiscrete decomposition (Kolda and O'Leary 1998) with revision of all terms.

    Every so many new terms one sweep of coordinate descent goes over all entries found so far, and
    all strengths are solved anew. In the end come a few more sweeps, in a covariance that is
    hardly damped. What is asked as a number of terms does not depend on how many more there were
    to be: the first steps of growth are the same.

    Attributes
    ----------
    goal
        The matrix, its rows scaled such that the covariance's diagonal is near 1.
    sweeps
        Sweeps of coordinate descent in the end; as many as the matrix's size allows if not given.
    seed
        Of the random starts.
    progress
        Told how many terms of a large matrix there are.
    """

    goal: Goal
    sweeps: int | None = None
    seed: int = 0
    progress: Progress = silent

    def of_count(self, count: int) -> Terms:
        """Return that many terms; fewer if they are exact before."""
        grown = Terms.none(*self.goal.matrix.shape)
        step = 0
        while grown.count < count:
            more = self._grown(grown, step, min(self._step, count - grown.count))
            if more.count == grown.count:
                break
            grown, step = more, step + 1
            if self._work > _QUICK:
                self.progress("finding ternary terms", grown.count, count)
            if self._growing.error(grown) <= _EXACT:
                break
        return self._finished(grown)

    def until(self, error: ErrorOf, limit: float, most: int) -> Terms:
        """Return the fewest terms within an error, as far as halving the last step finds them.

        The last ones tried if `most` are not enough.
        """
        grown = before = Terms.none(*self.goal.matrix.shape)
        step = 0
        while grown.count < most:
            more = self._grown(grown, step, min(self._step, most - grown.count))
            if more.count == grown.count:
                break
            before, grown, step = grown, more, step + 1
            if error(grown) <= _LEFT_TO_FINISH * limit:
                finished = self._finished(grown)
                if error(finished) <= limit:
                    return self._fewest(before, step - 1, finished, error, limit)
            if self._growing.error(grown) <= _EXACT:
                break
        return self._finished(grown)

    def _fewest(
        self, before: Terms, step: int, finished: Terms, error: ErrorOf, limit: float
    ) -> Terms:
        """Return the fewest terms between those before the last step and those after it."""
        low, high, best = before.count, finished.count, finished
        for _ in range(_BISECTIONS):
            if high - low < 2:
                break
            middle = (low + high) // 2
            tried = self._finished(self._grown(before, step, middle - before.count))
            if error(tried) <= limit:
                high, best = middle, tried
            else:
                low = middle
        return best

    @property
    def _effort(self) -> Effort:
        return next(effort for effort in _EFFORTS if self._work <= effort.entries)

    @property
    def _work(self) -> int:
        """Entries of the matrix or of its covariance: products with them take most of the time."""
        covariance = self.goal.covariance
        return max(self.goal.matrix.size, 0 if covariance is None else covariance.size)

    @property
    def _step(self) -> int:
        """Terms between two revisions."""
        inputs, outputs = (int(size) for size in self.goal.matrix.shape)
        return max(ceil(inputs * outputs / (inputs + outputs) / self._effort.revisions), 1)

    @cached_property
    def _growing(self) -> Goal:
        return self.goal.damped(_GROWING)

    @cached_property
    def _finishing(self) -> Goal:
        return self.goal.damped(_FINISHING)

    def _grown(self, terms: Terms, step: int, count: int) -> Terms:
        """Return the terms and that many new ones, all revised."""
        random = np.random.default_rng((self.seed, step))
        terms = grow(self._growing, terms, count, random, self._effort.alternations)
        return descend(Fitted.of(terms, self._growing).solved()).terms.present()

    def _finished(self, terms: Terms) -> Terms:
        """Return the terms after the last sweeps, with copies of those that stand out."""
        fitted = Fitted.of(terms, self._finishing).solved()
        for _ in range(self._effort.sweeps if self.sweeps is None else self.sweeps):
            fitted = descend(fitted)
        return spread(fitted).present()
