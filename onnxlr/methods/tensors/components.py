"""Fits a sum of products of vectors to a tensor: the components of CP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import inf, prod
from operator import mul

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.progress import Progress, silent

__all__ = ["Components", "fit_components", "khatri_rao", "spread"]

Matrix = npt.NDArray[np.float64]

_SWEEPS = 100
"""Rounds over all factors, at most. What a hundred more gain in error is a thirtieth of it."""

_SETTLED = 1e-4
"""A round that lowers the squared error by less than this part of it is one of the last: they end
after `_PATIENCE` of them in a row."""

_PATIENCE = 5

_EXACT = 1e-14
"""Of the tensor's square: below that the squared error is rounding."""

_PENALTY = 3e-4
"""Of the squares of all factors, relative to the squared error. It keeps components from cancelling
each other, and since these are what slows the fit down, the error falls further with it: .229
against .233 (64×64×3×3 kernel, rank 134, 400 rounds), with components of a third of the size. It
vanishes with the error, so that a tensor of that rank is found exactly."""

_FIRM = (1e-6, 3e-5, 1e-3)
"""Penalties one after the other, relative to the tensor's square, where components cancel each
other all the same: the error of some falls forever while they grow."""

_SPREAD_LIMIT = 30.0
"""`spread` above which components are taken to cancel each other; kernels of real models have 2 to
10."""

_JITTER = 0.1
"""Size of what is added to vectors of the start that are zero but for one entry."""

_STEP, _LONGER, _SHORTER = 0.5, 1.15, 0.5
"""How far to go on in the direction of the last round, and how that grows and shrinks."""


@dataclass(frozen=True)
class Components:
    """Factors `(size, rank)`, one for each axis; the tensor is the sum over the last axis.

    Attributes
    ----------
    factors
        In the order of the tensor's axes.
    """

    factors: tuple[Matrix, ...]

    @property
    def norms(self) -> npt.NDArray[np.float64]:
        """Norm of each component."""
        return np.asarray(prod(np.linalg.norm(factor, axis=0) for factor in self.factors))

    def balanced(self) -> Components:
        """Return the same components, each by vectors of one norm."""
        each = [np.linalg.norm(factor, axis=0) for factor in self.factors]
        norm = prod(each) ** (1 / len(each))
        scaled = zip(self.factors, each, strict=True)
        return Components(tuple(f * (norm / np.where(own > 0, own, 1.0)) for f, own in scaled))

    def scaled(self, norm: float) -> Components:
        """Return components in the same directions whose squares add up to those of a norm."""
        total = float(np.linalg.norm(self.norms))
        first, *others = self.factors
        return Components((first * (norm / total), *others)).balanced()

    def beyond(self, other: Components, step: float) -> Components:
        """Return where another's way to these leads on."""
        pairs = zip(self.factors, other.factors, strict=True)
        return Components(tuple(a + step * (a - b) for a, b in pairs))


def spread(components: Components, norm: float) -> float:
    """Return the root of the components' summed squares, relative to the norm of the tensor.

    It is what rounding of the factors is multiplied by; large where components cancel each other,
    as those of tensors do that are limits of ones of lower rank (de Silva and Lim 2008).
    """
    total = float(np.linalg.norm(components.norms))
    return total / norm if norm > 0 else 0.0


def khatri_rao(factors: Sequence[Matrix]) -> Matrix:
    """Return the columnwise Kronecker product of factors, `(product of sizes, rank)`."""
    return reduce(lambda a, b: (a[:, None] * b).reshape(-1, a.shape[1]), factors)


def fit_components(
    tensor: Matrix, split: int, rank: int, seed: int, progress: Progress = silent
) -> Components:
    """Return components of least squared error, by alternating least squares.

    Each round solves for each factor with the Gram matrices of the others (Carroll and Chang 1970,
    Harshman 1970). It goes on in its own direction as long as that lowers the error (Ang et al.
    2019), and starts from the singular vectors of the slices along the two largest axes; where
    components are few, others are tried beside these.

    tensorly's `parafac` does the same rounds by slower products: 50 of them, with its line search,
    take 15 s (0.10) or 32 s (0.8.1) for a 256×256×3×3 kernel at rank 566 on one core, to a relative
    error of .203; these reach that after 40 rounds and 6 s, and .189 after 100 and 9 s.

    Parameters
    ----------
    tensor
        Any number of axes from 2 on.
    split
        How many axes come before the middle: the tensor is multiplied as a matrix of these and of
        the others.
    rank
        Number of components.
    seed
        Of the noise at the start.
    """
    scale = float(np.linalg.norm(tensor))
    if not scale > 0:
        return Components(tuple(np.zeros((size, rank)) for size in tensor.shape))
    fit = _Fit(tensor / scale, split, progress)
    found = fit.best(_starts(fit.tensor, rank, np.random.default_rng(seed)))
    first, *others = found.factors
    return Components((first * scale, *others)).balanced()


def _starts(tensor: Matrix, rank: int, generator: np.random.Generator) -> Iterator[Components]:
    """Yield what to start from, the best guess first.

    One does where components are more than the entries of any mode. Of tensors of few components
    each misses a quarter of those that are exact at worst, and not the same.
    """
    yield _from_slices(tensor, rank, generator)
    if rank > max(tensor.shape):
        return
    yield _from_modes(tensor, rank, generator)
    yield Components(
        tuple(generator.standard_normal((size, rank)) for size in tensor.shape)
    ).scaled(1.0)


def _from_slices(tensor: Matrix, rank: int, generator: np.random.Generator) -> Components:
    """Return the largest singular triplets of the slices, and noise where there are too few."""
    *others, second, first = sorted(range(tensor.ndim), key=lambda axis: (tensor.shape[axis], axis))
    slices = tensor.transpose(*others, second, first)
    triplets = []
    for place in product(*(range(tensor.shape[axis]) for axis in others)):
        left, values, right = linalg.svd(slices[place], full_matrices=False)
        triplets += [(-s, place, left[:, i], right[i]) for i, s in enumerate(values)]
    chosen = sorted(triplets, key=lambda triplet: triplet[:2])[:rank]
    factors = [_JITTER * generator.standard_normal((size, rank)) for size in tensor.shape]
    for column, (value, place, left, right) in enumerate(chosen):
        for axis, position in zip(others, place, strict=True):
            factors[axis][position, column] += 1
        factors[second][:, column] = left * np.sqrt(-value)
        factors[first][:, column] = right * np.sqrt(-value)
    return Components(tuple(factors)).balanced()


def _from_modes(tensor: Matrix, rank: int, generator: np.random.Generator) -> Components:
    """Return the leading singular vectors of the unfoldings, and noise where there are too few."""
    factors = []
    for axis, size in enumerate(tensor.shape):
        unfolding = np.moveaxis(tensor, axis, 0).reshape(size, -1)
        leading = linalg.eigh(unfolding @ unfolding.T)[1][:, ::-1][:, :rank]
        noise = generator.standard_normal((size, rank - leading.shape[1])) / np.sqrt(size)
        factors.append(np.concatenate([leading, noise], axis=1))
    return Components(tuple(factors)).scaled(1.0)


@dataclass(frozen=True)
class _Fit:
    """A tensor of norm 1, and rounds of alternating least squares."""

    tensor: Matrix
    split: int
    progress: Progress

    @property
    def _matrix(self) -> Matrix:
        return self.tensor.reshape(prod(self.tensor.shape[: self.split]), -1)

    def best(self, starts: Iterable[Components]) -> Components:
        """Return the components of least error, with a firmer penalty where they cancel."""
        least, best, begun = inf, None, None
        for start in starts:
            found = self.run(start)
            error, _ = self._error(found, self._projected(found))
            if best is None or error < least:
                least, best, begun = error, found, start
            if least <= _EXACT:
                break
        if best is None or begun is None:
            raise ValueError("nothing to start from")
        for firm in _FIRM:  # anew, since components that are nearly the same part slowly
            if spread(best, 1.0) <= _SPREAD_LIMIT:
                break
            best = self.run(begun, firm)
        return best

    def run(self, start: Components, firm: float = 0.0) -> Components:
        """Return the components after as many rounds as lower the error."""
        state = plain = start
        projected = self._projected(state)
        error, size = self._error(state, projected)
        step, waited = _STEP, 0
        for number in range(_SWEEPS):
            self.progress("fitting components", number, _SWEEPS)
            weight = max(_PENALTY * error, firm)
            before, last = error, plain
            plain = self._round(state, projected, weight)
            bold = plain if number == 0 else plain.beyond(last, step)
            reached = self._projected(bold)
            found, extent = self._error(bold, reached)
            if number and not found + weight * extent < error + weight * size:
                bold, step = plain, step * _SHORTER
                reached = self._projected(bold)
                found, extent = self._error(bold, reached)
            else:
                step *= _LONGER
            state, projected, error, size = bold, reached, found, extent
            waited = waited + 1 if before - error < _SETTLED * before else 0
            if error <= _EXACT or waited >= _PATIENCE:
                break
        return plain

    def _projected(self, at: Components) -> Matrix:
        """Return the tensor's product with the factors behind the middle, `(*front, rank)`."""
        result = self._matrix @ khatri_rao(at.factors[self.split :])
        return result.reshape(*self.tensor.shape[: self.split], -1)

    def _error(self, at: Components, projected: Matrix) -> tuple[float, float]:
        """Return the squared error, and the squared norms of all factors."""
        front = khatri_rao(at.factors[: self.split])
        match = float(np.vdot(projected.reshape(front.shape), front))
        grams = [factor.T @ factor for factor in at.factors]
        own = float(np.sum(reduce(mul, grams)))
        return max(1 - 2 * match + own, 0.0), float(sum(np.trace(gram) for gram in grams))

    def _round(self, at: Components, projected: Matrix, weight: float) -> Components:
        """Return the components after every factor's least squares."""
        factors = list(at.factors)
        front, back = range(self.split), range(self.split, len(factors))
        for axis in front:
            factors[axis] = _solved(factors, axis, _seen(projected, factors, front, axis), weight)
        behind = self._matrix.T @ khatri_rao(factors[: self.split])
        behind = behind.reshape(*self.tensor.shape[self.split :], -1)
        for axis in back:
            factors[axis] = _solved(factors, axis, _seen(behind, factors, back, axis), weight)
        return Components(tuple(factors)).balanced()


def _seen(projected: Matrix, factors: Sequence[Matrix], half: range, axis: int) -> Matrix:
    """Return a half of the tensor multiplied by its other factors, `(size, rank)`."""
    for other in reversed(half):
        if other != axis:
            moved = np.moveaxis(projected, other - half.start, -2)
            projected = np.einsum("...ir,ir->...r", moved, factors[other])
    return projected


def _solved(factors: Sequence[Matrix], axis: int, seen: Matrix, weight: float) -> Matrix:
    """Return one factor's least squares."""
    others = [factor.T @ factor for i, factor in enumerate(factors) if i != axis]
    gram = reduce(mul, others)
    ridge = weight + 1e-13 * float(np.trace(gram)) / len(gram)
    gram[np.diag_indices_from(gram)] += ridge if ridge > 0 else 1.0
    factor = linalg.cho_factor(gram, check_finite=False)
    return np.asarray(linalg.cho_solve(factor, seen.T, check_finite=False).T)
