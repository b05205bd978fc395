"""New terms for what is left of a matrix, a block at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.methods.semidiscrete.terms import Fitted, Goal, Terms
from onnxlr.methods.semidiscrete.ternarization import nearest_ternary

__all__ = ["grow"]

Floats = npt.NDArray[np.float32]

_BLOCK = 32
"""Terms found at once; twice as many of large matrices, which are read from memory each time."""

_LARGE = 2**20
"""Entries of a matrix that caches hold."""

_GAIN = 0.01
"""Alternations end when the block explains less than this part more than the time before."""


def grow(
    goal: Goal, terms: Terms, count: int, random: np.random.Generator, alternations: int
) -> Terms:
    """Return terms with new ones behind them, for what they leave of the goal's matrix.

    Parameters
    ----------
    goal
        What to approximate, and what the error is measured in.
    terms
        Those there are.
    count
        How many to add; fewer are if nothing is left.
    random
        Draws the starts.
    alternations
        Most times that both sides of a block are found anew.
    """
    wanted = terms.count + count
    residual = terms.residual(goal.matrix)
    weighed = goal.weigh(residual)
    while terms.count < wanted:
        size = min(_BLOCK if residual.size <= _LARGE else 2 * _BLOCK, wanted - terms.count)
        block = _block(goal, residual, weighed, size, random, alternations)
        if not block.count:
            break
        # Behind a residual, so that what the block sees of the goal is what it sees of that.
        block = Fitted.of(block, Goal(residual, goal.covariance)).solved().terms
        residual = block.residual(residual)
        if goal.covariance is None:
            weighed = residual
        else:
            weighed = weighed - goal.weigh_rows(block.scaled_left()).T @ block.right
        terms = terms.joined(block)
    return terms


def _block(
    goal: Goal,
    residual: Floats,
    weighed: Floats,
    count: int,
    random: np.random.Generator,
    alternations: int,
) -> Terms:
    """Return new terms for a residual `R`, given with `C R`.

    The right vectors start as random signs. Then all left vectors are found anew, one after the
    other, each for what the residual and the other terms of the block leave of it, and all right
    ones likewise. That finds what one term at a time finds, and takes its products with the
    residual together, as products of matrices.

    Left vectors are fitted to `R v` and not to its gradient `C R v`: among vectors that the metric
    hardly tells apart, that is the sparse one.
    """
    inputs, outputs = residual.shape
    right = random.integers(0, 2, (count, outputs)).astype(np.float32) * 2 - 1
    left = np.zeros((count, inputs), np.float32)
    strengths = np.zeros(count)
    explained = 0.0
    for _ in range(alternations):
        _renew(left, strengths, right @ residual.T, right @ right.T)
        seen = left @ weighed
        _renew(right, strengths, seen, goal.weigh_rows(left) @ left.T)
        now = float(strengths @ np.einsum("kn,kn->k", seen, right, dtype=np.float64))
        if now <= explained * (1 + _GAIN):
            break
        explained = now
    return Terms(left, right, strengths).present()


def _renew(side: Floats, strengths: npt.NDArray[np.float64], seen: Floats, other: Floats) -> None:
    """Find the vectors of one side anew, and their strengths; in place.

    Parameters
    ----------
    side
        `(terms, n)`.
    seen
        Products of the residual with the other side's vectors, `(terms, n)`.
    other
        What the other side's vectors have in common, `(terms, terms)`.
    """
    for term in range(len(side)):
        norm = float(other[term, term])
        if norm <= 0:
            side[term], strengths[term] = 0, 0.0
            continue
        taken = strengths * other[term]
        taken[term] = 0
        vector, product = nearest_ternary(seen[term] - taken.astype(np.float32) @ side)
        side[term] = vector
        entries = np.count_nonzero(vector)
        strengths[term] = product / (entries * norm) if entries else 0.0
