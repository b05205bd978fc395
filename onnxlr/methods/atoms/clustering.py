"""Atoms to start from: weighted k-means of a sample of tiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxlr.methods.atoms.closest import closest

__all__ = ["ROUNDS", "cluster", "nearest", "sample"]

Single = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

ROUNDS = 12
"""Rounds of k-means: tiles are described anew behind them anyway."""
_CHUNK = 1 << 17


def sample(
    points: Single, weights: Vector, size: int, generator: np.random.Generator
) -> tuple[Single, Vector]:
    """Return some points and weights that stand for all.

    Half of them are drawn evenly, half by their weighted squared length (lightweight coresets,
    Bachem et al., KDD 2018): a few weights many times as large as all others cost most of the
    error, and an even sample would miss them.
    """
    if len(points) <= size:
        return points, weights
    lengths = weights * np.square(points).sum(axis=1)
    total = float(lengths.sum())
    odds = weights / weights.sum()
    if total > 0:
        odds = (odds + lengths / total) / 2
    drawn = generator.choice(len(points), size, p=odds / odds.sum())
    chosen, counts = np.unique(drawn, return_counts=True)
    return points[chosen], weights[chosen] * counts / odds[chosen] / size


def nearest(points: Single, atoms: Single) -> npt.NDArray[np.int64]:
    """Return the nearest atom of each point."""
    return closest(points, np.ascontiguousarray(atoms.T), np.square(atoms).sum(axis=1))


def cluster(
    points: Single,
    weights: Vector,
    count: int,
    generator: np.random.Generator,
    rounds: int = ROUNDS,
) -> Single:
    """Return `count` atoms `(count, width)` of little weighted squared distance to points.

    Lloyd's algorithm from seeds that are drawn by their weighted squared distance to those before
    (k-means++, Arthur and Vassilvitskii, SODA 2007). An atom that has lost all points takes the one
    that is described worst.
    """
    atoms = _seeds(points, weights, count, generator)
    for _ in range(rounds):
        own = nearest(points, atoms)
        mass = np.bincount(own, weights, count)
        for place in range(points.shape[1]):
            sums = np.bincount(own, weights * points[:, place], count)
            means = sums / np.where(mass > 0, mass, 1.0)
            atoms[:, place] = np.where(mass > 0, means, atoms[:, place])
        lost = np.flatnonzero(mass == 0)
        if len(lost):
            wrong = weights * np.square(points - atoms[own]).sum(axis=1)
            worst = np.argsort(-wrong, kind="stable")[: len(lost)]
            atoms[lost[: len(worst)]] = points[worst]
    return atoms


def _seeds(points: Single, weights: Vector, count: int, generator: np.random.Generator) -> Single:
    """Return seeds: the first is 0, later ones are drawn several at once."""
    seeds = np.zeros((count, points.shape[1]), np.float32)
    lengths = np.square(points).sum(axis=1)
    distances = lengths.astype(np.float64)
    filled = 1
    while filled < count:
        odds = weights * distances
        total = float(odds.sum())
        if not total > 0:
            break
        more = min(max(filled // 4, 1), count - filled)
        new = points[generator.choice(len(points), more, p=odds / total)]
        seeds[filled : filled + more] = new
        rows = max(_CHUNK // more, 1)
        half = np.square(new).sum(axis=1) / 2
        for first in range(0, len(points), rows):
            own = slice(first, first + rows)
            closest = lengths[own] - 2 * (points[own] @ new.T - half).max(axis=1)
            distances[own] = np.minimum(distances[own], np.maximum(closest, 0))
        filled += more
    return seeds
