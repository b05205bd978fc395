"""The values of sums of scaled −1, 0 and 1, and the scales that suit a group of numbers best.

A grid of t terms has `3ᵗ` values in each group of inputs and output, `Σ_t α_t T_t`, which are not
evenly spaced. For one term the best scale is known; for more, nearest values and the closed form
for the scales alternate, as in PT²-LLM (ICLR 2026) for one term and an offset, which is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format
from onnxlr.numbers.scales import stored
from onnxlr.numbers.trits import codes_of, trits_of

__all__ = ["TernaryGrid", "choose_ternary_grid"]

Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_STARTS = ((1.8, 0.8), (1.8, 1.0), (1.5, 0.9), (3.0, 1.0))
"""Ratios of a term's scale to the next one's, and what all add up to as a part of the largest
magnitude: where alternation starts beside the greedy one. It finds the nearest local optimum only:
three terms of Gaussian numbers in groups of 128 end at an error of .075 from the greedy start alone
and at .053 from these."""

_ROUNDS = 4
"""How often scales are solved anew from each start."""

_LAST_ROUNDS = 8
"""How often they are from the best; little changes after that."""

_RIDGE = 1e-12
"""Part of the trace added to the diagonal where two terms may have the same trits everywhere."""


@dataclass(frozen=True)
class TernaryGrid:
    """What ternary codes stand for: the sum of a scale times −1, 0 or 1 over the terms.

    Attributes
    ----------
    format
        The format.
    scales
        Shape `(terms, groups, outputs)`, as the model's float type holds them.
    """

    format: Format
    scales: Matrix

    @property
    def zero_points(self) -> None:
        """No zero points: codes of 0 are in the middle."""
        return None

    @cached_property
    def _levels(self) -> tuple[Matrix, Matrix, npt.NDArray[np.uint8]]:
        """Magnitudes in order, the middles between them, and the codes of those magnitudes."""
        patterns = _patterns(self.format.terms)
        values = np.einsum("pt,tgn->pgn", patterns, self.scales)
        order = np.argsort(np.abs(values), axis=0, kind="stable")
        codes = np.where(
            values < 0, codes_of(-patterns.T)[:, None, None], codes_of(patterns.T)[:, None, None]
        )
        levels = np.take_along_axis(np.abs(values), order, axis=0)
        return (
            levels,
            levels[1:] / 2 + levels[:-1] / 2,
            np.take_along_axis(codes, order, axis=0),
        )

    def nearest(self, matrix: Matrix) -> tuple[Matrix, Matrix]:
        """Return the codes of the values nearest to `(inputs, outputs)`, as floats, and these."""
        levels, middles, table = self._levels
        size = self.format.group or len(matrix)
        most = 3**self.format.terms - 1
        codes, values = np.empty_like(matrix), np.empty_like(matrix)
        for group, start in enumerate(range(0, len(matrix), size)):
            rows = slice(start, start + size)
            magnitudes = np.abs(matrix[rows])
            positions = np.zeros(magnitudes.shape, np.intp)
            for middle in middles[:, group]:
                positions += magnitudes > middle
            positions = positions * matrix.shape[1] + np.arange(matrix.shape[1])
            negative = matrix[rows] < 0
            near, level = table[:, group].ravel()[positions], levels[:, group].ravel()[positions]
            codes[rows] = np.where(negative, most - near, near)
            values[rows] = np.where(negative, -level, level)
        return codes, values

    def values(self, codes: Matrix) -> Matrix:
        """Return what codes `(inputs, outputs)` stand for."""
        groups = np.arange(len(codes)) // (self.format.group or len(codes))
        terms = zip(self.scales, trits_of(codes, self.format.terms), strict=True)
        return np.asarray(sum(scales[groups] * trits for scales, trits in terms))


def choose_ternary_grid(
    matrix: Matrix, format: Format, compute: npt.DTypeLike, weights: npt.ArrayLike | None = None
) -> TernaryGrid:
    """Return scales of little squared error when each number takes its nearest value.

    From several starts, nearest values and the least squares scales for them alternate; the best
    scales seen are kept for each output and group. Numbers that are zero get the least scale.

    Parameters
    ----------
    matrix
        Shape `(inputs, outputs)`.
    format
        A ternary format.
    compute
        Float type that scales are kept in.
    weights
        What the squared error of each input counts, `(inputs,)`; alike if not given.
    """
    inputs = len(matrix)
    size = format.group or inputs
    counts = np.ones(inputs) if weights is None else np.asarray(weights, np.float64)
    found = [
        _fit(matrix[start : start + size], format.terms, counts[start : start + size])
        for start in range(0, inputs, size)
    ]
    return TernaryGrid(format, stored(np.stack(found, axis=1), compute))


def _fit(numbers: Matrix, terms: int, weights: npt.NDArray[np.float64]) -> Matrix:
    """Return the scales of one group, `(terms, outputs)`."""
    # By powers of two, so that squares neither overflow nor vanish and no digit changes.
    size = np.frexp(np.abs(numbers).max(axis=0))[1]
    numbers = np.ldexp(numbers, -size)
    group = _Sorted.of(numbers, weights)
    if terms == 1:
        return np.ldexp(group.best_term()[None], size)
    starts = [_alternated(group, start, _ROUNDS) for start in _starts(numbers, weights, terms)]
    errors, scales = (np.stack(part) for part in zip(*starts, strict=True))
    best = np.take_along_axis(scales, errors.argmin(axis=0)[None, None], axis=0)[0]
    return np.ldexp(_alternated(group, best, _LAST_ROUNDS)[1], size)


def _alternated(group: _Sorted, scales: Matrix, rounds: int) -> tuple[Matrix, Matrix]:
    """Return the least squared error that alternation comes by, `(outputs,)`, and its scales."""
    least, wanted = group.solved(scales)
    best = scales
    for _ in range(rounds):
        tried = wanted
        error, wanted = group.solved(tried)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return least, best


def _starts(numbers: Matrix, weights: npt.NDArray[np.float64], terms: int) -> Iterator[Matrix]:
    """Yield scales: of terms one after the other, each the best for what is left, and others."""
    left, found = numbers, []
    for _ in range(terms):
        scale = _Sorted.of(left, weights).best_term()
        left = left - scale * np.sign(left) * (np.abs(left) > scale / 2)
        found.append(scale)
    yield np.stack(found)
    for ratio, reach in _STARTS:
        parts = ratio ** -np.arange(float(terms))
        yield np.outer(parts / parts.sum() * reach, np.abs(numbers).max(axis=0))


@dataclass(frozen=True)
class _Sorted:
    """Magnitudes of a group in order, so that sums over those between two bounds are differences.

    Attributes
    ----------
    magnitudes
        `(inputs, outputs)`, rising.
    counts, sums
        Weights of the first 0, 1, … inputs in that order, and weighted magnitudes, added up:
        `(inputs + 1, outputs)`.
    total
        Weighted squares, `(outputs,)`.
    """

    magnitudes: Matrix
    counts: Matrix
    sums: Matrix
    total: Matrix

    @classmethod
    def of(cls, numbers: Matrix, weights: npt.NDArray[np.float64]) -> _Sorted:
        """Sort a group `(inputs, outputs)`."""
        order = np.argsort(np.abs(numbers), axis=0, kind="stable")
        magnitudes = np.take_along_axis(np.abs(numbers), order, axis=0)
        own = weights[order]
        nothing = np.zeros((1, numbers.shape[1]))
        return cls(
            magnitudes,
            np.concatenate([nothing, np.cumsum(own, axis=0)]),
            np.concatenate([nothing, np.cumsum(own * magnitudes, axis=0)]),
            np.sum(own * np.square(magnitudes), axis=0),
        )

    def solved(self, scales: Matrix) -> tuple[Matrix, Matrix]:
        """Return the squared error of scales `(terms, outputs)`, and those that solve for them.

        All numbers take their nearest values; for these the error is a quadratic form of the
        scales, of which the minimum is returned.
        """
        patterns = _patterns(len(scales))
        values = patterns @ scales
        order = np.argsort(np.abs(values), axis=0, kind="stable")
        levels = np.take_along_axis(np.abs(values), order, axis=0)
        bounds = self._below((levels[1:] + levels[:-1]) / 2)
        ends = np.zeros((1, scales.shape[1]), np.intp)
        bounds = np.concatenate([ends, bounds, ends + len(self.magnitudes)])
        own, sums = np.empty_like(values), np.empty_like(values)
        for total, part in ((self.counts, own), (self.sums, sums)):
            between = np.diff(np.take_along_axis(total, bounds, axis=0), axis=0)
            np.put_along_axis(part, order, between, axis=0)
        sums *= np.where(values < 0, -1.0, 1.0)
        terms = len(scales)
        products = (patterns[:, :, None] * patterns[:, None, :]).reshape(len(patterns), -1)
        normal = (own.T @ products).reshape(-1, terms, terms)
        right = sums.T @ patterns
        error = self.total + np.einsum("ns,sn->n", np.einsum("nst,tn->ns", normal, scales), scales)
        error -= 2 * np.einsum("ns,sn->n", right, scales)
        trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
        normal += (_RIDGE * trace + np.finfo(np.float64).tiny) * np.eye(terms)
        return error, np.abs(np.linalg.solve(normal, right[..., None])[..., 0].T)

    def best_term(self) -> npt.NDArray[np.float64]:
        """Return the scale of least squared error of a single term, `(outputs,)`.

        Whatever the scale, the largest magnitudes are the ones that are not 0: of as many as have
        the largest `(Σ w |x|)² / Σ w` it is their mean.
        """
        counts = np.maximum((self.counts[-1] - self.counts)[:-1], np.finfo(np.float64).tiny)
        sums = (self.sums[-1] - self.sums)[:-1]
        first = np.argmax(np.square(sums) / counts, axis=0)[None]
        return np.asarray(np.take_along_axis(sums / counts, first, axis=0)[0])

    def _below(self, bounds: Matrix) -> Indices:
        """Return how many magnitudes are at most as large as each bound, by bisection."""
        inputs = len(self.magnitudes)
        found = np.zeros(bounds.shape, np.intp)
        step = 1 << (inputs.bit_length() - 1)
        while step:
            tried = found + step
            reached = np.take_along_axis(self.magnitudes, np.minimum(tried, inputs) - 1, axis=0)
            found = np.where((tried <= inputs) & (reached <= bounds), tried, found)
            step >>= 1
        return found


@cache
def _patterns(terms: int) -> Matrix:
    """Return the trits of every value up to sign, zeros first, `((3ᵗ + 1) / 2, terms)`."""
    every = np.array(list(product((0.0, 1.0, -1.0), repeat=terms)))
    leading = [next((trit for trit in row if trit), 1.0) for row in every]
    found = every[np.array(leading) > 0]
    found.flags.writeable = False
    return np.asarray(found)
