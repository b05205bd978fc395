"""The dictionary that a fit starts from, and how far apart values of coefficients are."""

from __future__ import annotations

from math import inf

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.methods.atoms.alternation import alternate
from onnxlr.methods.atoms.clustering import ROUNDS, cluster, nearest, sample
from onnxlr.methods.atoms.codes import pursue
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.tiles import Part, Tiles

__all__ = ["dictionary", "dictionary_of", "grid_steps", "step_sizes", "steps"]

Matrix = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

_SAMPLE = 40000
"""Tiles that a dictionary is started from."""

_WEIGHED = 0.75
"""Power of what errors cost that a tile counts by. Where all errors count by themselves it would be
1; where later tiles make up for earlier ones, those that count much leave less to those behind."""

_SHRINKS = np.linspace(0.3, 1.0, 15)
"""Parts of the range of coefficients that are tried: giving up the largest pays in few bits."""


def dictionary(tiles: Tiles, form: Form, seed: int) -> Single:
    """Return atoms to start from, `(atoms, width)`."""
    if form.is_identity:
        return np.eye(form.tile, dtype=np.float32)
    generator = np.random.default_rng(seed)
    points, weights = sample(*_points(tiles), _SAMPLE, generator)
    cost = np.mean([part.left.mean(axis=0) for part in tiles.parts], axis=0)
    return dictionary_of(points, weights, cost, form, generator)


def dictionary_of(
    points: Single,
    weights: Matrix,
    cost: Matrix,
    form: Form,
    generator: np.random.Generator,
    rounds: int = ROUNDS,
) -> Single:
    """Return atoms for points, `(atoms, width)`.

    Of entries that are all 1: centres of the points, and of what they leave where columns have
    several. Of other entries: an orthogonal dictionary in the metric, or where there are more atoms
    than numbers in them, centres of the points' directions.

    Parameters
    ----------
    points
        Shape `(columns, width)`.
    weights
        How much each counts, `(columns,)`.
    cost
        What their errors cost, `(width, width)`.
    form
        The form.
    generator
        Draws the seeds.
    rounds
        Of k-means.
    """
    if form.is_identity:
        return np.eye(form.tile, dtype=np.float32)
    if form.value_bits == 0:
        return _centres(points, weights, form, generator, rounds)
    if form.atoms > form.tile:
        lengths = np.linalg.norm(points, axis=1)
        directions = np.asarray(points / np.where(lengths > 0, lengths, 1)[:, None], np.float32)
        return cluster(directions, weights * lengths**2, form.atoms, generator, rounds)
    root = linalg.cholesky(cost, lower=True)
    weighed = root.T @ (points * np.sqrt(weights / weights.mean())[:, None]).T
    atoms, _ = alternate(weighed, form.atoms, form.nonzeros)
    return np.asarray(linalg.solve_triangular(root, atoms, trans="T", lower=True).T, np.float32)


def steps(part: Part, atoms: Single, form: Form) -> Single:
    """Return the distance of two values for each output, `(outputs,)`; 1 where there is none."""
    outputs = part.numbers.shape[2]
    if not form.has_steps:
        return np.ones(outputs, np.float32)
    cost = part.left.mean(axis=0).astype(np.float32)
    points = part.numbers.swapaxes(1, 2).reshape(-1, form.tile)
    sizes = step_sizes(points, cost, atoms, form, outputs)
    return sizes.astype(np.float32)


def step_sizes(points: Single, cost: Single, atoms: Single, form: Form, outputs: int) -> Matrix:
    """Return the distance of two values of least squared error, `(outputs,)`.

    The error is that of the coefficients that no grid would bind; points are those of the first
    tile of all outputs, then of the next.
    """
    spread = cost @ atoms.T
    _, values = pursue(points @ spread, atoms @ spread, form.nonzeros, inf)
    exact = np.asarray(values).reshape(-1, outputs, form.nonzeros).swapaxes(0, 1)
    exact = exact.reshape(outputs, -1)
    return grid_steps(exact, form.largest)[0]


def grid_steps(exact: Matrix, largest: float | None) -> tuple[Matrix, Matrix]:
    """Return the distance of two values of least squared error, and that error, for each row.

    Parameters
    ----------
    exact
        Coefficients that no grid binds, `(rows, entries)`.
    largest
        The largest value on the grid, in steps.
    """
    if largest is None or not np.isfinite(largest):
        raise ValueError("coefficients have no grid")
    ranges = np.abs(exact).max(axis=1)
    ranges = np.where(ranges > 0, ranges, 1) / largest
    best, least = np.asarray(ranges, np.float64), np.full(len(exact), inf)
    for shrink in _SHRINKS:
        step = (shrink * ranges)[:, None]
        kept = np.clip(np.rint(exact / step), -largest, largest) * step
        wrong = np.square(exact - kept).sum(axis=1)
        best = np.where(wrong < least, step[:, 0], best)
        least = np.minimum(wrong, least)
    return best, least


def _points(tiles: Tiles) -> tuple[Single, Matrix]:
    """Return all tiles of all outputs, `(columns, width)`, and how much each counts.

    A last tile that has fewer inputs of the weight than others is left out.
    """
    points, weights = [], []
    for part, shares in zip(tiles.parts, tiles.shares, strict=True):
        points.append(part.points())
        costs = np.trace(part.left[part.is_whole], axis1=1, axis2=2) ** _WEIGHED
        weights.append(np.outer(costs, shares).reshape(-1))
    return np.concatenate(points), np.concatenate(weights) + np.finfo(np.float64).tiny


def _centres(
    points: Single, weights: Matrix, form: Form, generator: np.random.Generator, rounds: int
) -> Single:
    sizes = [form.atoms // form.nonzeros] * (form.nonzeros - 1)
    sizes.append(form.atoms - sum(sizes))
    found = []
    for count in sizes:
        found.append(cluster(points, weights, count, generator, rounds))
        points = points - found[-1][nearest(points, found[-1])]
    return np.concatenate(found)
