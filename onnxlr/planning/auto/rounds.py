"""Solve, build, measure the whole, correct what was wrong about the budget, solve again.

What single layers do adds up only roughly: damages meet in ways that no single layer shows, and a
model takes another time than its layers alone. So the sums are a guide, and every solution is built
and measured. Between the largest damage that held and the least that did not, the next budget is
searched by bisection of its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite, isnan, sqrt

from onnxlr.planning.auto.goal import Goal
from onnxlr.planning.auto.menu import Menu
from onnxlr.planning.auto.outcomes import (
    BREADTH,
    CLEARLY,
    Built,
    Measurement,
    Rival,
    beside,
    holds,
)
from onnxlr.planning.auto.solving import Item, choose

__all__ = ["ROUNDS", "search"]

ROUNDS = 8
"""Most models that are built."""

_NEAR = 1.1
"""Ratio of budgets, one that held and one that did not, at which the search is over."""

_BOLD = 8.0
"""Most by which a budget is multiplied or divided from one round to the next."""

_MORE = 8.0
"""Most by which a whole model gains more than its layers alone, whose weights stay in the cache."""

_RUIN = 1e3
"""Damage that is never asked for: outputs would be far from the original's whatever comes."""

_AIM_AT = 0.9
"""Part of what a drop may be that the next budget is to use."""

_LEFT_OVER = 0.8
"""Part of what a drop may be that is used where a search ends, unless more was tried twice."""

_SPENT = 0.97
"""Part of the size or time that is allowed from which on no model is sought that takes more."""


def search(
    menu: Menu,
    goal: Goal,
    measure: Callable[[tuple[int, ...]], Measurement],
    rivals: Sequence[Rival] = (),
    seen: Sequence[Built] = (),
) -> list[Built]:
    """Return the rounds, in the order they were built; `best` picks among them.

    Parameters
    ----------
    measure
        Builds a model and measures it.
    rivals
        What is not to be lost to in size or time, if that can be; the hardest first.
    seen
        Models that were built for other limits on the same measures: the search goes on from them.
    """
    found: list[Built] = []
    for rival in rivals:
        wanted = beside(goal, rival, CLEARLY)
        found += _Search(menu, wanted, measure, _known(found)).run()
        if any(holds(wanted, built) for built in found):
            return found
    known = _known([*found, *seen])
    return found + _Search(menu, goal, measure, known, seen).run()


def _known(rounds: Sequence[Built]) -> dict[tuple[int, ...], Measurement]:
    return {built.chosen: built.found for built in rounds}


class _Search:
    """The state of a search: what budgets held and did not, and how wrong predictions were."""

    def __init__(
        self,
        menu: Menu,
        goal: Goal,
        measure: Callable[[tuple[int, ...]], Measurement],
        known: dict[tuple[int, ...], Measurement],
        seen: Sequence[Built] = (),
    ) -> None:
        self.menu, self.goal, self.measure, self.known = menu, goal, measure, dict(known)
        self.held, self.failed = 0.0, inf
        # What was measured beside what was predicted.
        self.more_size, self.more_time = 0.0, 1.0
        self.doubted = False
        self.rounds: list[Built] = []
        self.seen = [built for built in seen if built.found.problem is None]

    def run(self) -> list[Built]:
        """Build and measure until nothing better is to be expected."""
        budget = self._start()
        for _ in range(ROUNDS):
            found = None if budget is None else self._unbuilt(budget)
            if found is None:
                break
            built = self._build(*found)
            self._learn(built)
            budget = self._next(built)
        return self.rounds

    def _start(self) -> float | None:
        """Return the first budget; None if what was seen leaves nothing to search for."""
        if not self.seen:
            return _first_budget(self.goal)
        parts = [(built, _used(self.goal, built.found)) for built in self.seen]
        damages = [(built.predicted.damage, part <= 1) for built, part in parts]
        self.failed = min((damage for damage, holds in damages if not holds), default=inf)
        self.held = max((d for d, holds in damages if holds and d < self.failed), default=0.0)
        return self._next(min(parts, key=lambda pair: abs(_AIM_AT - pair[1]))[0])

    def _unbuilt(self, budget: float) -> tuple[tuple[int, ...], float] | None:
        """Return candidates that were not built yet, and the budget that they are best for.

        Budgets between two choices all give the one that was built: they are passed over. Where no
        choice is possible within a budget, the least damage that makes one possible is taken, as
        damages can be predicted far too high: what seems to be too much may hold.
        """
        most = self._most()
        while True:
            chosen = self._solve(budget)
            if chosen is None:
                chosen = self._solve(inf, Item(0.0, 0.0, 1.0)) or self._fastest(budget)
                if chosen is None or any(built.chosen == chosen for built in self.rounds):
                    return None
                return chosen, self.menu.total(chosen).damage
            if all(built.chosen != chosen for built in self.rounds):
                return chosen, budget
            if budget >= most:
                return None
            self.held = max(self.held, budget)
            if self.failed / max(self.held, 1e-300) < _NEAR:
                return None
            budget = self._between()

    def _fastest(self, budget: float) -> tuple[int, ...] | None:
        """Return the fastest candidates within a budget, where none seem to be fast enough.

        Layers alone can seem to take a smaller part of the model's time than they do: built, they
        say how much the whole gains.
        """
        if self.goal.max_latency is None:
            return None
        menu, limits = self.menu, Item(self._size_limit(), inf, budget)
        found = choose(menu.layers, Item(0.0, 1 / menu.seconds, 0.0), limits)
        return None if found is None else tuple(found)

    def _most(self) -> float:
        """Return the damage of taking the worst candidate of each layer."""
        damages = ([i.damage for i in row if isfinite(i.damage)] for row in self.menu.layers)
        return min(sum(max(row, default=0.0) for row in damages), _RUIN)

    def _weights(self) -> Item:
        """Return what counts in the choice of candidates."""
        menu, goal = self.menu, self.goal
        weights = Item(1 / menu.size, 1 / menu.seconds, 0.0)
        if not goal.limits:
            return Item(0.0, 0.0, 1.0)
        if goal.aim == "size":
            return replace(weights, seconds=BREADTH / menu.seconds)
        if goal.aim == "latency":
            return replace(weights, size=BREADTH / menu.size)
        return weights

    def _solve(self, budget: float, weights: Item | None = None) -> tuple[int, ...] | None:
        """Return the best candidates within a budget of damage, None if there are none."""
        menu, goal = self.menu, self.goal
        seconds = inf
        if goal.max_latency is not None:
            # Of what should be saved, only a part is, or more.
            kept = menu.total([0] * len(menu.layers)).seconds
            seconds = kept - (1 - goal.max_latency) * menu.seconds / self.more_time
        limits = Item(self._size_limit(), seconds, budget)
        found = choose(menu.layers, weights or self._weights(), limits)
        return None if found is None else tuple(found)

    def _size_limit(self) -> float:
        """Return the bytes that layers may take together."""
        if self.goal.max_size is None:
            return inf
        return (self.goal.max_size - self.more_size) * self.menu.size - self.menu.rest.size

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
            self.more_time = min(max(found / expected, 0.2), _MORE)

    def _next(self, built: Built) -> float | None:
        """Return the next budget; None if the search is over."""
        found, goal = built.found, self.goal
        if not goal.limits:
            if found.problem is not None:
                # Asked for a little less, it is another model.
                self.more_size, self.more_time = self.more_size + 0.02, self.more_time * 0.95
            return None if holds(goal, built) and _is_spent(goal, found) else inf
        if found.problem is not None:
            self.failed = min(self.failed, built.predicted.damage)
            return self._between(built.predicted.damage / _BOLD)
        used = _used(goal, found)
        if used > 1:
            self.failed = min(self.failed, built.predicted.damage)
        else:
            self.held = max(self.held, built.predicted.damage)
        if self.failed / max(self.held, 1e-300) < _NEAR:
            if used > _LEFT_OVER or self.doubted:
                return None
            # Of two plans of one damage one may lose half as much as the other.
            self.failed, self.doubted = inf, True
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
    drop = max(drop, 1e-6)
    return drop**2 if measure == "relout" else 2 * drop


def _is_spent(goal: Goal, found: Measurement) -> bool:
    """Return whether hardly any of the size or the time that is allowed is left over."""
    size, latency = found.size / (goal.max_size or inf), found.latency / (goal.max_latency or inf)
    return max(size, latency) > _SPENT


def _used(goal: Goal, found: Measurement) -> float:
    """Return how much of the damage that is allowed was done: more than 1 if it is too much."""
    shares = []
    for limit in goal.limits:
        drop = max(found.drops[limit.measure], 0.0)
        power = 2 if limit.measure == "relout" else 1
        share = (drop / limit.drop) ** power if limit.drop > 0 else (inf if drop > 0 else 0.0)
        shares.append(inf if isnan(share) else share)
    return max(shares)
