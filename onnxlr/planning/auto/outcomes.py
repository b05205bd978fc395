"""What whole models turned out to be, and which of them is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from onnxlr.planning.auto.goal import Goal
from onnxlr.planning.auto.solving import Item

__all__ = [
    "BREADTH",
    "CLEARLY",
    "Built",
    "Measurement",
    "Rival",
    "beside",
    "best",
    "cost_of",
    "holds",
]

CLEARLY = 0.985
"""Part of a rival's time that is aimed at: from race to race, times differ by as much."""

BREADTH = 0.02
"""What the other of size and time counts beside the one that is to be small."""


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
    """Simple options that are to be beaten: they meet the goal's limits.

    Attributes
    ----------
    size, latency
        Fractions of the original: of one option, or the least that any has.
    name
        Of the option, or the fastest one.
    """

    size: float
    latency: float
    name: str = ""


def cost_of(goal: Goal, size: float, latency: float) -> float:
    """Return what is to be small of a model that takes these fractions of the original."""
    return {
        "size": size + BREADTH * latency,
        "latency": latency + BREADTH * size,
        "balanced": size + latency,
    }[goal.aim]


def best(goal: Goal, rounds: Sequence[Built], rivals: Sequence[Rival] = ()) -> Built | None:
    """Return the round that meets the goal at the least cost; None if none does.

    One that loses to no rival is preferred, one that does not even if times differ a little more.
    """
    preferred = [beside(goal, rival, part) for rival in rivals for part in (CLEARLY, 1.0)]
    for wanted in (*preferred, goal):
        good = [built for built in rounds if holds(wanted, built)]
        if good and not goal.limits:
            return min(good, key=lambda built: max(built.found.drops.values()))
        if good:
            return min(good, key=lambda built: built.cost(goal))
    return None


def beside(goal: Goal, rival: Rival, part: float) -> Goal:
    """Return the goal of not being larger than a rival, and to take such a part of its time."""
    size = min(goal.max_size or inf, rival.size)
    latency = min(goal.max_latency or inf, rival.latency * part)
    return replace(goal, max_size=min(size, 1.0), max_latency=min(latency, 1.0))


def holds(goal: Goal, built: Built) -> bool:
    """Return whether a round meets all that is asked."""
    found = built.found
    if found.problem is not None:
        return False
    if not goal.holds(found.drops):
        return False
    return found.size <= (goal.max_size or inf) and found.latency <= (goal.max_latency or inf)
