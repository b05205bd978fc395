"""One candidate for each layer, the best that keeps to limits: a multiple-choice knapsack.

Solved by branch and bound. HiGHS works to tolerances and leaves
out small coefficients, so numbers are shifted and scaled before, and what comes back is judged by
sums of the numbers as they were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import fsum, inf, isfinite, isnan

import numpy as np
import numpy.typing as npt
from scipy.optimize import LinearConstraint
from scipy.sparse import csr_matrix

from onnxlr.planning.auto.highs import solve_binary

__all__ = ["Item", "choose"]

_ROUNDING = 1e-12
"""What a sum may be above its limit, of the limit or of its terms: rounding of the sum itself."""

_SCALE = 1e4
"""What a limit is scaled to: HiGHS lets sums be 1e-6 above it."""

_COST_SCALE = 1e6
"""What the largest cost is scaled to: HiGHS stops 1e-6 above the optimum."""

_SPREAD = 1e3
"""Costs are scaled anew where the largest is this many times the sum that was found."""

_CUTS = 20
"""Wrong answers that are excluded one by one, before the limit is lowered instead."""

_NODES = 500
"""Nodes after which the best found is taken: some seconds, usually within parts in a million."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """What a candidate costs, what the sums weigh, or what they may be.

    Attributes
    ----------
    size
        Bytes, or any other measure that adds up over layers.
    seconds
        Of a run.
    damage
        To the model's outputs; of a candidate that must not be chosen, infinite.
    """

    size: float
    seconds: float
    damage: float

    @property
    def values(self) -> tuple[float, float, float]:
        """The three numbers."""
        return self.size, self.seconds, self.damage


def choose(layers: Sequence[Sequence[Item]], weights: Item, limits: Item) -> list[int] | None:
    """Return for each layer the position of its candidate, so that the weighted sum is least.

    Minimises `weights · Σ items` with `Σ items ≤ limits`, each number of its own, but for rounding
    of the sums. Of candidates of a layer that cost the same, one that is nowhere worse in what is
    limited goes first, then the one that comes first. The optimum is exact where branch and bound
    ends within 500 nodes, as it does on measured costs of hundreds of layers; the best that
    it found is returned otherwise.

    Parameters
    ----------
    layers
        Candidates of each layer. Those of infinite damage are never chosen.
    weights
        What each sum counts; finite and not negative.
    limits
        What each sum may be at most; infinite for no limit.

    Returns
    -------
    list or None
        A position for each layer; None if no choice keeps to the limits.

    Raises
    ------
    ValueError
        If numbers are NaN, or infinite where that means nothing.
    """
    _check(layers, weights, limits)
    problem = _Problem(layers, weights, limits)
    if not problem.reduce():
        return None
    found = problem.solve()
    return None if found is None else problem.settled(found)


def _check(layers: Sequence[Sequence[Item]], weights: Item, limits: Item) -> None:
    if any(not isfinite(weight) or weight < 0 for weight in weights.values):
        raise ValueError(f"weights must be finite and not negative, found {weights}")
    if any(isnan(limit) or limit == -inf for limit in limits.values):
        raise ValueError(f"limits must be finite, or infinite for none, found {limits}")
    for layer in layers:
        for item in layer:
            finite = isfinite(item.size) and isfinite(item.seconds)
            if not finite or isnan(item.damage) or item.damage == -inf:
                raise ValueError(f"sizes and seconds must be finite, damages numbers, found {item}")


class _Problem:
    """Candidates that may still be chosen, and what their sums are."""

    def __init__(self, layers: Sequence[Sequence[Item]], weights: Item, limits: Item) -> None:
        self._layers = layers
        self._rows = [row for row in range(3) if limits.values[row] < inf]
        self._limits = [limits.values[row] for row in self._rows]
        self._values = [np.array([item.values for item in layer], float) for layer in layers]
        used = [row for row in range(3) if weights.values[row]]
        scales = np.array([weights.values[row] for row in used])
        self._values = [values.reshape(-1, 3) for values in self._values]
        self._costs: list[Array] = [values[:, used] @ scales for values in self._values]
        self._parts: list[Array] = [values[:, self._rows] for values in self._values]
        self._kept = [np.flatnonzero(values[:, 2] < inf) for values in self._values]
        self._cuts: list[list[tuple[int, int]]] = []
        self._lowered = np.zeros(len(self._rows))

    def reduce(self) -> bool:
        """Drop candidates that no solution has, or that others replace; False if none is left."""
        before = -1
        while (left := sum(map(len, self._kept))) != before:
            if not all(map(len, self._kept)):
                return False
            before, (least, room) = left, self._room()
            if any(space < 0 for space in room):
                return False
            self._kept = [
                kept[(parts[kept] - low <= room).all(axis=1)]
                for kept, parts, low in zip(self._kept, self._parts, least, strict=True)
            ]
        self._kept = [
            kept[_undominated(np.column_stack((costs[kept], parts[kept])))]
            for kept, costs, parts in zip(self._kept, self._costs, self._parts, strict=True)
        ]
        return True

    def _room(self) -> tuple[list[Array], Array]:
        """Return the least of each layer, and how far its sum is from each limit."""
        least = [
            parts[kept].min(axis=0) for kept, parts in zip(self._kept, self._parts, strict=True)
        ]
        room = [
            limit + _slack(limit, column) - fsum(column)
            for limit, column in zip(self._limits, self._columns(least), strict=True)
        ]
        return least, np.array(room)

    def _columns(self, rows: Sequence[Array]) -> list[list[float]]:
        """Return the terms of each limited sum."""
        return [[float(values[k]) for values in rows] for k in range(len(self._rows))]

    def _over(self, choice: Sequence[int]) -> list[int]:
        """Return the limited sums that are above their limit."""
        chosen = [parts[item] for parts, item in zip(self._parts, choice, strict=True)]
        terms = self._columns(chosen)
        return [
            k
            for k, (limit, column) in enumerate(zip(self._limits, terms, strict=True))
            if fsum(column) > limit + _slack(limit, column)
        ]

    def solve(self) -> list[int] | None:
        """Return the best choice, None if there is none."""
        while True:
            found = self._feasible()
            if found is None:
                return None
            lowest = [
                costs[kept].min() for costs, kept in zip(self._costs, self._kept, strict=True)
            ]
            above = fsum(
                costs[item] - low
                for costs, item, low in zip(self._costs, found, lowest, strict=True)
            )
            # A single cost above this sum cannot be part of a better choice.
            worth = [
                kept[costs[kept] - low <= above]
                for costs, kept, low in zip(self._costs, self._kept, lowest, strict=True)
            ]
            widest = max(
                (np.ptp(c[kept]) for c, kept in zip(self._costs, self._kept, strict=True)),
                default=0.0,
            )
            if above <= 0 or widest <= _SPREAD * above:
                return found
            self._kept = worth

    def _feasible(self) -> list[int] | None:
        """Return what HiGHS finds when wrong answers are excluded."""
        while True:
            found = self._answer()
            over = self._over(found) if found is not None else []
            if not over or found is None:
                return found
            if len(self._cuts) < _CUTS:
                self._cuts += [self._cover(found, k) for k in over]
            else:
                self._lowered[over] = 2 * np.maximum(self._lowered[over], 1e-6)

    def _cover(self, choice: Sequence[int], k: int) -> list[tuple[int, int]]:
        """Return candidates chosen, that together are too much for a limit."""
        least, room = self._room()
        excess = [
            (float(parts[item][k] - low[k]), place)
            for place, (parts, item, low) in enumerate(zip(self._parts, choice, least, strict=True))
        ]
        cover: list[tuple[int, int]] = []
        total = 0.0
        for value, place in sorted(excess, key=lambda pair: (-pair[0], pair[1])):
            cover.append((place, choice[place]))
            total += value
            if total > room[k]:
                break
        return cover

    def _answer(self) -> list[int] | None:
        """Return what HiGHS takes for the best choice."""
        counts = [len(kept) for kept in self._kept]
        if sum(counts) == len(counts):
            return [int(kept[0]) for kept in self._kept]
        owners = np.repeat(np.arange(len(counts)), counts)
        one_each = csr_matrix((np.ones(len(owners)), (owners, np.arange(len(owners)))))
        constraints = [LinearConstraint(one_each, 1, 1), *self._limit_rows(), *self._cut_rows()]
        costs = np.concatenate(
            [c[kept] - c[kept].min() for c, kept in zip(self._costs, self._kept, strict=True)]
        )
        widest = costs.max()
        solution = solve_binary(
            costs * (_COST_SCALE / widest if widest > 0 else 1.0), constraints, _NODES
        )
        if solution is None:
            return None
        starts = np.cumsum([0, *counts])
        return [
            int(kept[solution[start : start + len(kept)].argmax()])
            for kept, start in zip(self._kept, starts, strict=False)
        ]

    def _limit_rows(self) -> Iterator[LinearConstraint]:
        least, room = self._room()
        above = [
            parts[kept] - low
            for parts, kept, low in zip(self._parts, self._kept, least, strict=True)
        ]
        for k, space in enumerate(room):
            if fsum(values[:, k].max() for values in above) > space:
                row = np.concatenate([values[:, k] for values in above]) / space * _SCALE
                yield LinearConstraint(csr_matrix(row), -inf, _SCALE - self._lowered[k])

    def _cut_rows(self) -> Iterator[LinearConstraint]:
        for cover in self._cuts:
            members = dict(cover)
            row = np.concatenate(
                [kept == members.get(place, -1) for place, kept in enumerate(self._kept)]
            )
            yield LinearConstraint(csr_matrix(row.astype(float)), -inf, len(cover) - 1)

    def settled(self, choice: list[int]) -> list[int]:
        """Return a choice in which ties go to the first: of candidates, and of layers alike."""
        while (better := self._moved(choice)) != choice:
            choice = better
        alike: dict[tuple[Item, ...], list[int]] = {}
        for place, layer in enumerate(self._layers):
            alike.setdefault(tuple(layer), []).append(place)
        result = list(choice)
        for places in alike.values():
            for place, item in zip(places, sorted(choice[p] for p in places), strict=True):
                result[place] = item
        return result

    def _moved(self, choice: Sequence[int]) -> list[int]:
        """Return a choice after one layer after the other took its cheapest, then first."""
        result = list(choice)
        for place, (kept, costs) in enumerate(zip(self._kept, self._costs, strict=True)):
            own = result[place]
            order = sorted((float(costs[item]), int(item)) for item in kept)
            for _, item in order[: order.index((float(costs[own]), own))]:
                trial = [*result[:place], item, *result[place + 1 :]]
                if not self._over(trial):
                    result = trial
                    break
        return result


def _slack(limit: float, terms: Sequence[float]) -> float:
    return _ROUNDING * max(abs(limit), fsum(map(abs, terms)))


def _undominated(rows: Array) -> npt.NDArray[np.bool_]:
    """Return which rows have no other that is nowhere larger; of equal ones the first."""
    below = (rows[:, None] <= rows[None]).all(axis=2)  # [i, j]: i is nowhere above j
    earlier = np.arange(len(rows))[:, None] < np.arange(len(rows))
    replaced: npt.NDArray[np.bool_] = np.any(below & (~below.T | earlier), axis=0)
    return ~replaced
