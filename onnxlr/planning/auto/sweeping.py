"""Plans for a series of drops, out of one table of candidates, beside the simple options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from onnxlr.calibration import Sources
from onnxlr.errors import UsageError
from onnxlr.model import Model
from onnxlr.plan import Choice, Plan
from onnxlr.planning.auto.cache import key_of
from onnxlr.planning.auto.contest import ORIGINAL, PLANNED
from onnxlr.planning.auto.decision import Deciding
from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.outcomes import Built, best, cost_of
from onnxlr.planning.auto.prepared import Prepared
from onnxlr.planning.auto.preparing import prepare
from onnxlr.planning.auto.report import Contender
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.auto.rounds import search
from onnxlr.progress import Progress
from onnxlr.scratch import scratch

__all__ = ["SweepPoint", "SweepResult", "front", "limits_of", "sweep_budgets"]

_USUAL = (0.001, 0.003, 0.01, 0.03, 0.1)
_USUAL_RELOUT = (0.05, 0.08, 0.15, 0.25, 0.45)
"""Distances at which cosines drop by about as much as `_USUAL` says: their squares, halved."""


@dataclass(frozen=True)
class SweepPoint:
    """A model that was compared with the others in one run.

    Attributes
    ----------
    name
        What it is.
    kind
        `planned`, `stock` (ONNX Runtime's own tools made it) or `original`.
    budget
        What it may lose at most; None where it was not made to a budget.
    bytes, size
        Of its files, and as a fraction of the original's.
    milliseconds, latency, latency_low, latency_high
        Time of one run on one thread, its ratio to the original's and the quartiles of that.
    drop
        What it loses.
    rewritten
        Layers that the plan rewrites.
    on_front
        Whether no other is better in one of size, latency and drop and as good in the others.
    plan
        What makes it; None for others than planned ones.
    plan_file
        Where that was written; None where it was not.
    problem
        Why there is no such model, or why it cannot be used.
    """

    name: str
    kind: str
    budget: float | None = None
    bytes: int | None = None
    size: float | None = None
    milliseconds: float | None = None
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    drop: float | None = None
    rewritten: int | None = None
    on_front: bool = False
    plan: Plan | None = None
    plan_file: Path | None = None
    problem: str | None = None

    @property
    def costs(self) -> tuple[float, float, float] | None:
        """Size, latency and drop; None where one of them is not known."""
        if self.size is None or self.latency is None or self.drop is None:
            return None
        return self.size, self.latency, self.drop


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes
    ----------
    model
        The model's name.
    goal
        What was made small within each budget.
    measure
        What drops are measured in.
    points
        The original, the plans by rising budgets, and the stock options.
    candidates, from_cache
        Numbers of candidates of layers, and of those that were not measured in this run.
    built
        Models that were built and measured for it, or known from the cache.
    """

    model: str
    goal: str
    measure: str
    points: tuple[SweepPoint, ...]
    candidates: int
    from_cache: int
    built: int


def limits_of(measure: str, budgets: Sequence[float]) -> tuple[Limit, ...]:
    """Return the limits of a sweep, rising, each once; the usual ones if there are no budgets.

    Raises
    ------
    UsageError
        If the measure does not exist, or a budget makes no sense for it.
    """
    usual = _USUAL_RELOUT if measure == "relout" else _USUAL
    limits = [Limit(measure, float(drop)) for drop in budgets or usual]
    for limit in limits:
        limit.check()
    return tuple(sorted(set(limits), key=lambda limit: limit.drop))


def front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Return for each point whether none is as good in every cost and better in one."""
    return [not any(_dominates(other, each) for other in costs) for each in costs]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def sweep_budgets(
    model: Model,
    request: AutoRequest,
    limits: Sequence[Limit],
    sources: Sources,
    reopen: Callable[[], Model],
    plan_of: Callable[[Prepared, Mapping[str, Choice]], Plan],
    isolate: bool,
    progress: Progress,
) -> SweepResult:
    """Find the plan of the least cost within each of some limits, and compare them in one race.

    Layers are fitted and measured once, and each search goes on from the models that were built for
    the limits before it.

    Parameters
    ----------
    request
        What is asked, with the largest limit in its goal.
    limits
        On one measure, rising.
    plan_of
        Returns the plan of some choices by the names of layers.

    Raises
    ------
    UsageError, DataError
        If the request contradicts itself, a pattern matches no layer, or a source cannot be used.
    ModelError
        If the model cannot be run.
    """
    if sources.calibration is None:
        raise UsageError("a sweep needs calibration data to measure models on")
    with (
        scratch("onnxlr-sweep-") as folder,
        prepare(model, request, sources, reopen, isolate, progress, folder) as prepared,
    ):
        return _Sweep(prepared, request, limits).carry_out(model.name, plan_of)


class _Sweep:
    """A sweep under way."""

    def __init__(self, prepared: Prepared, request: AutoRequest, limits: Sequence[Limit]) -> None:
        self._prepared, self._limits = prepared, limits
        self._aim, self._measure = request.goal.aim, limits[0].measure
        # Stock options are compared whatever they lose.
        anything = Goal(self._aim, (Limit(self._measure, inf),))
        self._contest = prepared.contest(anything)
        self._stock = self._contest.judged() if request.stock else []
        self._deciding = Deciding(
            prepared.choices,
            self._contest,
            anything,
            prepared.build,
            prepared.folder,
            prepared.cache,
        )
        self._built: list[Built] = []

    def carry_out(
        self, name: str, plan_of: Callable[[Prepared, Mapping[str, Choice]], Plan]
    ) -> SweepResult:
        """Search, race, and return all points."""
        prepared = self._prepared
        for limit in self._limits:
            self._built += search(
                prepared.choices.menu, self._goal(limit), self._deciding.measure, seen=self._built
            )
        original, others, planned = self._raced(self._candidates())
        points = [
            _point(original, self._measure, "original"),
            *(self._planned_point(limit, planned, plan_of) for limit in self._limits),
            *(_point(each, self._measure, "stock") for each in others),
        ]
        return SweepResult(
            name,
            self._aim,
            self._measure,
            _with_front(points),
            prepared.candidates,
            prepared.from_cache,
            len({built.chosen for built in self._built}),
        )

    def _goal(self, limit: Limit) -> Goal:
        return Goal(self._aim, (limit,))

    def _candidates(self) -> list[Built]:
        """Return the best model within each limit, each once."""
        found = [best(self._goal(limit), self._built) for limit in self._limits]
        return list({built.chosen: built for built in found if built is not None}.values())

    def _raced(
        self, candidates: Sequence[Built]
    ) -> tuple[Contender, list[Contender], list[tuple[Built, Contender]]]:
        """Return the original, the stock options, and planned models, timed in one race."""
        by_name = {f"{PLANNED} {number}": built for number, built in enumerate(candidates, 1)}
        contenders = self._contest.final(
            self._stock,
            [self._deciding.planned(built, name) for name, built in by_name.items()],
            lambda name: self._deciding.write(by_name[name].chosen),
            key_of([self._prepared.choices.content(built.chosen) for built in candidates]),
        )
        found = {each.name: each for each in contenders}
        return (
            found[ORIGINAL],
            [each for each in contenders if each.is_stock],
            [(built, found[name]) for name, built in by_name.items()],
        )

    def _planned_point(
        self,
        limit: Limit,
        planned: Sequence[tuple[Built, Contender]],
        plan_of: Callable[[Prepared, Mapping[str, Choice]], Plan],
    ) -> SweepPoint:
        """Return the planned model that costs least within a limit, by what the race says."""
        name = f"{PLANNED}, drop ≤ {limit.drop:g}"
        goal = self._goal(limit)
        runs = [pair for pair in planned if pair[1].problem is None and any(pair[0].chosen)]
        kept = cost_of(goal, 1.0, 1.0)
        good = [
            (built, contender)
            for built, contender in runs
            if goal.holds(contender.drops) and self._cost(contender) < kept
        ]
        if not good:
            problems = [each.problem for _, each in planned if each.problem is not None]
            why = (
                problems[0] if problems else "nothing that holds to it is better than the original"
            )
            return SweepPoint(name, "planned", limit.drop, problem=why)
        built, contender = min(good, key=lambda pair: self._cost(pair[1]))
        choices = {
            layer.name: self._prepared.choice(layer, built.chosen)
            for layer in self._prepared.layers
        }
        return replace(
            _point(contender, self._measure, "planned"),
            name=name,
            budget=limit.drop,
            rewritten=sum(place > 0 for place in built.chosen),
            plan=plan_of(self._prepared, choices),
        )

    def _cost(self, contender: Contender) -> float:
        return cost_of(self._goal(self._limits[0]), contender.size or 1.0, contender.latency or 1.0)


def _point(contender: Contender, measure: str, kind: str) -> SweepPoint:
    return SweepPoint(
        contender.name,
        kind,
        bytes=contender.bytes,
        size=contender.size,
        milliseconds=contender.milliseconds,
        latency=contender.latency,
        latency_low=contender.latency_low,
        latency_high=contender.latency_high,
        drop=contender.drops.get(measure),
        problem=contender.problem,
    )


def _with_front(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """Return the points, marked where they are on the front."""
    known = [each.costs for each in points if each.costs is not None]
    marks = iter(front(known))
    return tuple(
        replace(each, on_front=next(marks)) if each.costs is not None else each for each in points
    )
