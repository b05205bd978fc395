"""Solve, build, measure the whole, correct what was wrong about the budget, solve again.

What single layers do adds up only roughly: damages meet in ways that no single layer shows, and a
model takes another time than its layers alone. So the sums are a guide, and every solution is built
and measured. Between the largest damage that held and the least that did not, the next budget is
searched by bisection of its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, sqrt

from onnxlr.planning.auto.goal import Goal
from onnxlr.planning.auto.solving import Item, choose

__all__ = ["Built", "Measurement", "Menu", "Rival", "best", "cost_of", "holds", "search"]

ROUNDS = 8
"""Most models that are built."""

_NEAR = 1.1
"""Ratio of budgets, one that held and one that did not, at which the search is over."""

_BOLD = 8.0
"""Most by which a budget is multiplied or divided from one round to the next."""

_AIM_AT = 0.9
"""Part of what a drop may be that the next budget is to use."""

_BREADTH = 0.02
"""What the other of size and time counts beside the one that is to be small."""


@dataclass(frozen=True)
class Menu:
    """What each layer can be, and what the whole is made of beside its layers.

    Attributes
    ----------
    layers
        For each layer what its candidates take, in bytes, seconds and squared relative error of
        the model's outputs; the first is the layer as it is.
    size, seconds
        Of the original model.
    """

    layers: Sequence[Sequence[Item]]
    size: float
    seconds: float

    @property
    def rest(self) -> Item:
        """What the model takes beside its layers."""
        kept = self.total([0] * len(self.layers))
        return Item(max(self.size - kept.size, 0.0), self.seconds - kept.seconds, 0.0)

    def total(self, chosen: Sequence[int]) -> Item:
        """Return the sums over the layers."""
        items = [row[place] for row, place in zip(self.layers, chosen, strict=True)]
        return Item(
            sum(item.size for item in items),
            sum(item.seconds for item in items),
            sum(item.damage for item in items),
        )

    def predicted(self, chosen: Sequence[int]) -> Item:
        """Return what the whole model should take: fractions of the original, and the damage."""
        total, rest = self.total(chosen), self.rest
        return Item(
            (total.size + rest.size) / self.size,
            max(total.seconds + rest.seconds, 0.0) / self.seconds,
            total.damage,
        )


@dataclass(frozen=True)
class Measurement:
    """What a built model is, measured.

    Attributes
    ----------
    size, latency
        Fractions of the original.
    drops
        By measure of the goal's limits.
    problem
        Why it cannot be used; None if it can.
    """

    size: float = inf
    latency: float = inf
    drops: Mapping[str, float] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Built:
    """One round.

    Attributes
    ----------
    chosen
        The candidate of each layer.
    budget
        The damage that was allowed.
    predicted, found
        What it should be, and is.
    """

    chosen: tuple[int, ...]
    budget: float
    predicted: Item
    found: Measurement

    def cost(self, goal: Goal) -> float:
        """Return what is to be small."""
        return cost_of(goal, self.found.size, self.found.latency)


@dataclass(frozen=True)
class Rival:
    """The simple option that is to be beaten: it meets the goal's limits.

    Attributes
    ----------
    size, latency
        Fractions of the original.
    """

    size: float
    latency: float


def cost_of(goal: Goal, size: float, latency: float) -> float:
    """Return what is to be small of a model that takes these fractions of the original."""
    return {
        "size": size + _BREADTH * latency,
        "latency": latency + _BREADTH * size,
        "balanced": size + latency,
    }[goal.aim]


def search(
    menu: Menu,
    goal: Goal,
    measure: Callable[[tuple[int, ...]], Measurement],
    rival: Rival | None = None,
) -> list[Built]:
    """Return the rounds, in the order they were built; `best` picks among them.

    Parameters
    ----------
    measure
        Builds a model and measures it.
    rival
        A simple option, not to be worse than in size or time, if that can be.
    """
    found: list[Built] = []
    if rival is not None:
        found = _Search(menu, _beside(goal, rival), measure, {}).run()
    known = {built.chosen: built.found for built in found}
    if not any(holds(_beside(goal, rival), built) for built in found):
        found += _Search(menu, goal, measure, known).run()
    return found


def best(goal: Goal, rounds: Sequence[Built]) -> Built | None:
    """Return the round that meets the goal at the least cost; None if none does."""
    good = [built for built in rounds if holds(goal, built)]
    if not goal.limits:
        return min(good, key=lambda built: max(built.found.drops.values()), default=None)
    return min(good, key=lambda built: built.cost(goal), default=None)


def _beside(goal: Goal, rival: Rival | None) -> Goal:
    """Return the goal of not being worse than a rival in anything."""
    if rival is None:
        return goal
    size = min(goal.max_size or inf, rival.size)
    latency = min(goal.max_latency or inf, rival.latency)
    return replace(goal, max_size=min(size, 1.0), max_latency=min(latency, 1.0))


def holds(goal: Goal, built: Built) -> bool:
    """Return whether a round meets all that is asked."""
    found = built.found
    if found.problem is not None:
        return False
    if not goal.holds(found.drops):
        return False
    return found.size <= (goal.max_size or inf) and found.latency <= (goal.max_latency or inf)


class _Search:
    """The state of a search: what budgets held and did not, and how wrong predictions were."""

    def __init__(
        self,
        menu: Menu,
        goal: Goal,
        measure: Callable[[tuple[int, ...]], Measurement],
        known: dict[tuple[int, ...], Measurement],
    ) -> None:
        self.menu, self.goal, self.measure, self.known = menu, goal, measure, dict(known)
        self.held, self.failed = 0.0, inf
        # What was measured beside what was predicted.
        self.more_size, self.more_time = 0.0, 1.0
        self.rounds: list[Built] = []

    def run(self) -> list[Built]:
        """Build and measure until nothing better is to be expected."""
        budget = _first_budget(self.goal)
        for _ in range(ROUNDS):
            chosen = self._solve(budget)
            if chosen is None or any(built.chosen == chosen for built in self.rounds):
                budget = self._between() if chosen is not None else inf
                if not isfinite(budget) or chosen is None:
                    break
                chosen = self._solve(budget)
                if chosen is None or any(built.chosen == chosen for built in self.rounds):
                    break
            built = self._build(chosen, budget)
            self._learn(built)
            following = self._next(built)
            if following is None:
                break
            budget = following
        return self.rounds

    def _solve(self, budget: float) -> tuple[int, ...] | None:
        """Return the best candidates within a budget of damage, None if there are none."""
        menu, goal, rest = self.menu, self.goal, self.menu.rest
        weights = Item(1 / menu.size, 1 / menu.seconds, 0.0)
        if not goal.limits:
            weights = Item(0.0, 0.0, 1.0)
        elif goal.aim == "size":
            weights = replace(weights, seconds=_BREADTH / menu.seconds)
        elif goal.aim == "latency":
            weights = replace(weights, size=_BREADTH / menu.size)
        size = inf
        if goal.max_size is not None:
            size = (goal.max_size - self.more_size) * menu.size - rest.size
        seconds = inf
        if goal.max_latency is not None:
            # Of what should be saved, only a part is, or more.
            kept = menu.total([0] * len(menu.layers)).seconds
            seconds = kept - (1 - goal.max_latency) * menu.seconds / self.more_time
        found = choose(menu.layers, weights, Item(size, seconds, budget))
        return None if found is None else tuple(found)

    def _build(self, chosen: tuple[int, ...], budget: float) -> Built:
        if chosen not in self.known:
            self.known[chosen] = self.measure(chosen)
        built = Built(chosen, budget, self.menu.predicted(chosen), self.known[chosen])
        self.rounds.append(built)
        return built

    def _learn(self, built: Built) -> None:
        """Correct what is predicted of size and time by what was measured."""
        if built.found.problem is not None:
            return
        self.more_size = built.found.size - built.predicted.size
        expected, found = 1 - built.predicted.seconds, 1 - built.found.latency
        if expected > 0.02:
            self.more_time = min(max(found / expected, 0.2), 2.0)

    def _next(self, built: Built) -> float | None:
        """Return the next budget; None if the search is over."""
        found, goal = built.found, self.goal
        if found.problem is not None:
            self.failed = min(self.failed, built.predicted.damage)
            return self._between(built.predicted.damage / _BOLD)
        if not goal.limits:
            return None if holds(goal, built) else inf
        used = _used(goal, found)
        if used > 1:
            self.failed = min(self.failed, built.predicted.damage)
        else:
            self.held = max(self.held, built.predicted.damage)
        if self.failed / max(self.held, 1e-300) < _NEAR:
            return None
        damage = max(built.predicted.damage, 1e-12)
        step = min(max(_AIM_AT / max(used, 1e-12), 1 / _BOLD), _BOLD)
        return self._between(damage * step)

    def _between(self, wish: float = inf) -> float:
        """Return a budget between what held and what did not, near a wish if that is there."""
        if self.held <= 0:
            return min(wish, self.failed / 2)
        if not isfinite(self.failed):
            return max(wish, self.held * _NEAR) if isfinite(wish) else self.held * _BOLD
        if self.held * 1.02 < wish < self.failed / 1.02:
            return wish
        return sqrt(self.held * self.failed)


def _first_budget(goal: Goal) -> float:
    """Return the damage, a squared relative error, that should just meet the limits."""
    if not goal.limits:
        return inf
    return min(_damage_of(limit.measure, limit.drop) for limit in goal.limits)


def _damage_of(measure: str, drop: float) -> float:
    if measure == "relout":
        return drop**2
    return 2 * max(drop, 1e-6)


def _used(goal: Goal, found: Measurement) -> float:
    """Return how much of the damage that is allowed was done: more than 1 if it is too much."""
    shares = []
    for limit in goal.limits:
        drop = max(found.drops[limit.measure], 0.0)
        power = 2 if limit.measure == "relout" else 1
        share = (drop / limit.drop) ** power if limit.drop > 0 else (inf if drop > 0 else 0.0)
        shares.append(share)
    return max(shares)
