"""Terms that stand out, in several copies: what lies between the factors is rounded to int8.

The sums `s_k u_kᵀ x` of one row share a step of 1/127 of the largest. A few of them stand out by
far where an input or a weight does, and then the others are hardly resolved. A term in `c` copies
of a `c`-th of its strength computes the same, and stands out `c` times less.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.methods.semidiscrete.descent import descend
from onnxlr.methods.semidiscrete.terms import Fitted, Terms

__all__ = ["spread"]

_MOST = 0.1
"""Part of all terms that copies may take the place of."""

_STEPS = 127.0

_SWEEPS = 2
"""Sweeps of coordinate descent after the weakest terms have gone."""


def spread(fitted: Fitted) -> Terms:
    """Return as many terms, of which those that stand out are copies, and the weakest are gone.

    As many copies are made as lower the error of fit and rounding together; none where nothing
    stands out. The error of fit is expected to double for each trit a weight that is left out, as
    it halves with each in growth; where it grows by more, the terms are left as they are. That of
    rounding is the variance of equal steps.
    """
    spare = _worthwhile(fitted) if fitted.terms.count else 0
    if not spare:
        return fitted.terms
    terms, left = fitted.terms, fitted.terms.count - spare
    strongest = np.sort(np.argsort(-fitted.energies, kind="stable")[:left])
    kept = Terms(terms.left[strongest], terms.right[strongest], terms.strengths[strongest])
    fewer = Fitted.of(kept, fitted.goal).solved()
    for _ in range(_SWEEPS):
        fewer = descend(fewer)
    copies = np.ones(left, np.int64)
    sizes = _sizes(fewer)
    for _ in range(spare):
        copies[np.argmax(sizes / copies)] += 1
    if _squared(fewer) + _rounding(fewer, copies) >= _squared(fitted) + _rounding(fitted):
        return fitted.terms
    terms = fewer.terms
    return Terms(
        np.repeat(terms.left, copies, axis=0),
        np.repeat(terms.right, copies, axis=0),
        np.repeat(terms.strengths / copies, copies),
    )


def _worthwhile(fitted: Fitted) -> int:
    """Return how many copies lower the error of fit and rounding together most."""
    count = fitted.terms.count
    inputs, outputs = fitted.goal.matrix.shape
    trits = (inputs + outputs) / (inputs * outputs)
    squared, sizes = _squared(fitted), _sizes(fitted)
    copies = np.ones(count, np.int64)
    errors = []
    for spare in range(int(_MOST * count) + 1):
        errors.append(squared * 4 ** (spare * trits) + _rounding(fitted, copies))
        copies[np.argmax(sizes / copies)] += 1
    return int(np.argmin(errors))


def _squared(fitted: Fitted) -> float:
    """Return the squared error of the fit."""
    return fitted.goal.error(fitted.terms) ** 2 * fitted.goal.total


def _rounding(fitted: Fitted, copies: npt.NDArray[np.int64] | None = None) -> float:
    """Return the squared error of rounding the sums of terms in so many copies each."""
    made = np.ones(fitted.terms.count, np.int64) if copies is None else copies
    steps = _squared_peak(_sizes(fitted) / made) / _STEPS**2
    return steps / 12 * float(np.square(made) @ np.diagonal(fitted.common_right).astype(np.float64))


def _sizes(fitted: Fitted) -> npt.NDArray[np.float64]:
    """Return the root mean square of each term's sum."""
    squares = np.maximum(np.diagonal(fitted.common_left).astype(np.float64), 0.0)
    return np.asarray(np.abs(fitted.terms.strengths) * np.sqrt(squares))


def _squared_peak(sizes: npt.NDArray[np.float64]) -> float:
    """Return the mean square of the largest of normal variables of these sizes, nearly.

    `max_j r_j² (1 + 2 ln j)` for sizes in descending order: the largest size itself where one
    stands out, and the maximum of so many where they are alike.
    """
    descending = np.sort(sizes)[::-1]
    places = np.arange(1, len(sizes) + 1)
    return float((np.square(descending) * (1 + 2 * np.log(places))).max(initial=0.0))
