"""What forms would lose, estimated from a sample of tiles before any of them is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.methods.atoms.alternation import alternate
from onnxlr.methods.atoms.clustering import nearest
from onnxlr.methods.atoms.codes import Codes, pursue
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.start import dictionary_of, grid_steps, step_sizes
from onnxlr.methods.atoms.tiles import Tiles
from onnxlr.metrics import Frobenius, Metric, Weighing, row_importance, unfold_inputs
from onnxlr.numbers import encode

__all__ = ["Estimate"]

Matrix = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

_SAMPLE = 3000
_EACH = 8
"""Tiles that a dictionary is made of for an estimate: so many, or as many for each atom."""

_ROUNDS = 4


@dataclass(frozen=True)
class Estimate:
    """Predicts the errors of forms of one weight, so that they can be put in order.

    Tiles that make up for each other lose what they lose alone, times the geometric mean of what
    inputs cost: error feedback leaves an input the squared diagonal of a Cholesky factor, and their
    product is the determinant in any order.

    Attributes
    ----------
    weight
        A matrix `(inputs, outputs)` or kernel.
    metric
        What errors are measured in.
    groups
        Of a convolution.
    compute
        Float type that scales are kept in.
    seed
        Of the sample.
    """

    weight: npt.NDArray[Any]
    metric: Metric
    groups: int | None
    compute: np.dtype[Any]
    seed: int

    def error(self, form: Form, enough: float = inf) -> float:
        """Return the expected squared error, relative to that of nothing at all, in the metric.

        Of sums of whole columns it is that of orthogonal atoms, with coefficients rounded to the
        grid; no more than a lower bound where that is above `enough`.
        """
        if not self.is_whole(form):
            return self._factor * self._distortion(form)
        bound = self._tail(form.atoms)
        return bound if bound > enough else self._of_whole(form)

    def is_whole(self, form: Form) -> bool:
        """Return whether columns are sums of fewer whole columns, as in a product of low rank."""
        is_one = form.tile >= self._parts.shape[1]
        return is_one and form.value_bits > 0 and form.atoms < form.tile

    @cached_property
    def _parts(self) -> Matrix:
        return unfold_inputs(self.weight, self.groups)

    @cached_property
    def _weighings(self) -> list[Weighing]:
        metric, count = self.metric, len(self._parts)
        if metric.covariance is not None:
            return [Weighing.of(rows) for rows in metric.covariance]
        if metric.importance is not None:
            rows = row_importance(unfold_inputs(metric.importance, self.groups))
            return [Weighing.of(own) for own in rows]
        return [Weighing()] * count

    @cached_property
    def _weighed(self) -> Matrix:
        """The weight of all parts side by side, in a metric of all of them.

        They have one dictionary. What their inputs cost together is the mean of what it is of each,
        apart from how much: exact for one part, and without covariances.
        """
        lefts = [weighing.left for weighing in self._weighings]
        if len(lefts) == 1 or any(left is None for left in lefts):
            pairs = zip(self._weighings, self._parts, strict=True)
            return np.concatenate([weighing.weigh(part) for weighing, part in pairs], axis=1)
        costs = [
            np.diag(one**2) if one.ndim == 1 else one.T @ one for one in lefts if one is not None
        ]
        sizes = [float(np.trace(cost)) for cost in costs]
        shared = sum(cost / size for cost, size in zip(costs, sizes, strict=True)) / len(costs)
        apart = [np.sqrt(size) * part for size, part in zip(sizes, self._parts, strict=True)]
        return Weighing.of(np.asarray(shared)).weigh(np.concatenate(apart, axis=1))

    @cached_property
    def _factor(self) -> float:
        """What a relative squared error of the numbers costs."""
        cost = total = 0.0
        for weighing, part in zip(self._weighings, self._parts, strict=True):
            left = np.ones(1) if weighing.left is None else weighing.left
            diagonal = np.abs(left if left.ndim == 1 else np.diagonal(left))
            mean = float(np.exp(2 * np.log(diagonal).mean()))
            weighed = weighing.weigh(part)
            cost += mean * float(np.vdot(part, part))
            total += float(np.vdot(weighed, weighed))
        return cost / (total or 1.0)

    @cached_property
    def _spectrum(self) -> Matrix:
        """Squared singular values of the weighed matrix, the largest first."""
        matrix = self._weighed
        gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
        return np.asarray(np.maximum(linalg.eigvalsh(gram)[::-1], 0.0))

    def _tail(self, rank: int) -> float:
        """Return what no product of so many atoms has, whatever their coefficients are."""
        return float(self._spectrum[rank:].sum()) / (float(self._spectrum.sum()) or 1.0)

    def _of_whole(self, form: Form) -> float:
        """Return what sums of orthogonal atoms leave, and what the grid of coefficients adds."""
        atoms, taken = alternate(self._weighed, form.atoms, form.nonzeros)
        left = float(np.sum(np.square(self._weighed - atoms @ taken)))
        if form.has_steps:
            left += float(grid_steps(taken.T, form.largest)[1].sum())
        return left / (float(np.vdot(self._weighed, self._weighed)) or 1.0)

    def _distortion(self, form: Form) -> float:
        """Return the relative squared error of tiles that do not make up for each other.

        Tiles that the dictionary is made of lose less than if it were made of all, others lose
        about as much more: the mean of both is near the truth.
        """
        tiles = Tiles.of(self.weight, Frobenius(), self.groups, form.tile, self.compute)
        generator = np.random.default_rng(self.seed)
        points = tiles.parts[0].points()
        most = 2 * max(_SAMPLE, _EACH * form.atoms)
        own = points[generator.permutation(len(points))[:most]]
        half = (len(own) + 1) // 2
        cost = np.eye(form.tile)
        made_of = own[:half]
        found = dictionary_of(made_of, np.ones(half), cost, form, generator, _ROUNDS)
        if not form.is_identity:
            found = encode(found, form.format, self.compute).decode().astype(np.float32)
        step = 1.0
        if form.has_steps:
            step = float(step_sizes(made_of, cost.astype(np.float32), found, form, 1)[0])
        scaled = own / np.float32(step)
        if form.takes_one:
            codes = Codes(form.atoms, nearest(scaled, found)[:, None], None)
        else:
            taken = pursue(scaled @ found.T, found @ found.T, form.nonzeros, form.largest)
            codes = Codes(form.atoms, *taken)
        wrong = np.square(scaled - codes.combine(found)).sum(axis=1)
        lengths = np.square(scaled).sum(axis=1)
        total = float(lengths.mean()) or 1.0
        halves = [wrong[:half], wrong[half:] if half < len(wrong) else wrong]
        return sum(float(part.mean()) for part in halves) / 2 / total
