"""Coordinate descent over the entries of ternary vectors, with everything else held.

The squared error is a quadratic in each entry, so that the best of −1, 0 and 1 is the nearest to
its minimum.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.methods.semidiscrete.terms import Fitted

__all__ = ["descend"]

Floats = npt.NDArray[np.float32]

_BLOCK = 64
"""Coordinates whose changes are applied one by one; further ones get them by one product."""

_TOGETHER = 32
"""Entries of a row that may change at once."""


def descend(fitted: Fitted) -> Fitted:
    """Return the terms after one sweep over both sides, with strengths solved after each."""
    terms, goal = fitted.terms, fitted.goal
    strengths = terms.strengths.astype(np.float32)[:, None]
    right = terms.right.copy()
    gram = fitted.common_left * (strengths * strengths.T)
    _sweep(right, gram, strengths * fitted.seen - gram @ right)
    fitted = fitted.with_right(right).solved()
    terms, scaled = fitted.terms, fitted.terms.scaled_right()
    gram = scaled @ scaled.T
    if goal.covariance is None:
        left = terms.left.copy()
        _sweep(left, gram, scaled @ goal.matrix.T - gram @ left)
    else:
        rows = np.ascontiguousarray(terms.left.T)
        gradient = goal.covariance @ (goal.matrix @ scaled.T) - fitted.weighed.T @ gram
        _sweep_rows(rows, gram, gradient, goal.covariance)
        left = np.ascontiguousarray(rows.T)
    return fitted.with_left(left).solved()


def _sweep(side: Floats, gram: Floats, gradient: Floats) -> None:
    """Change a side whose columns do not depend on each other, term by term; in place.

    Parameters
    ----------
    side
        `(terms, n)`.
    gram
        What the other side's scaled vectors have in common, `(terms, terms)`.
    gradient
        Minus half of it, `(terms, n)`; kept up to date.
    """
    count = len(side)
    step = _inverse(np.diagonal(gram))
    for begin in range(0, count, _BLOCK):
        end = min(begin + _BLOCK, count)
        own = gradient[begin:end].copy()
        changes = np.empty_like(own)
        for term in range(begin, end):
            best = np.clip(np.rint(own[term - begin] * step[term] + side[term]), -1, 1)
            change = best - side[term]
            changes[term - begin], side[term] = change, best
            later = gram[term + 1 : end, term]
            own[term - begin + 1 :] -= later[:, None] * change
        gradient -= gram[:, begin:end] @ changes


def _sweep_rows(rows: Floats, gram: Floats, gradient: Floats, covariance: Floats) -> None:
    """Change a left side whose rows depend on each other by the covariance; in place.

    Parameters
    ----------
    rows
        `(inputs, terms)`.
    gram
        What the right side's scaled vectors have in common, `(terms, terms)`.
    gradient
        Minus half of it, `(inputs, terms)`; kept up to date.
    covariance
        `(inputs, inputs)`.
    """
    inputs = len(rows)
    curvature = np.diagonal(gram)
    for begin in range(0, inputs, _BLOCK):
        end = min(begin + _BLOCK, inputs)
        own = gradient[begin:end]
        seen = np.zeros_like(own)
        for row in range(begin, end):
            weight = float(covariance[row, row])
            here = row - begin
            _settle_row(rows[row], own[here], seen[here], gram, curvature, weight)
            later = covariance[row + 1 : end, row]
            own[here + 1 :] -= later[:, None] * seen[here]
        gradient[end:] -= covariance[end:, begin:end] @ seen


def _settle_row(
    row: Floats, gradient: Floats, seen: Floats, gram: Floats, curvature: Floats, weight: float
) -> None:
    """Change the entries of one row, a few at a time from the first to the last; in place.

    Changes made at once disturb each other; where that would raise the error, half of them are.
    `seen` gets the sum of the changes' rows of `gram`.
    """
    step = _inverse(np.float32(weight) * curvature)
    begin, most = 0, _TOGETHER
    while True:
        best = np.clip(np.rint(row[begin:] + gradient[begin:] * step[begin:]), -1, 1)
        changed = np.flatnonzero(best != row[begin:])
        if not len(changed):
            return
        while True:
            some = changed[:most]
            places = some + begin
            change = best[some] - row[places]
            moved = change @ gram[places]
            gain = 2 * float(change @ gradient[places]) - weight * float(change @ moved[places])
            if gain > 0 or len(some) == 1:
                break
            most = max(len(some) // 2, 1)
        row[places] = best[some]
        seen += moved
        gradient -= np.float32(weight) * moved
        if len(some) == len(changed):
            return
        begin = int(places[-1]) + 1


def _inverse(curvature: Floats) -> Floats:
    """Return `1/c`, and 0 where an entry makes no difference, so that it stays what it is."""
    steps = np.zeros_like(curvature)
    return np.divide(1, curvature, out=steps, where=curvature > np.finfo(np.float32).tiny)
