"""The search over whole models, and what is best in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from shutil import rmtree

from onnxlr.errors import GoalNotMetError
from onnxlr.planning.auto.cache import Cache, key_of
from onnxlr.planning.auto.contest import PLANNED, Contest
from onnxlr.planning.auto.goal import Goal
from onnxlr.planning.auto.menu import Menu
from onnxlr.planning.auto.outcomes import Built, Measurement, best, cost_of, holds
from onnxlr.planning.auto.report import Contender, Findings, RoundRecord
from onnxlr.planning.auto.rounds import search
from onnxlr.planning.auto.solving import Item, choose
from onnxlr.planning.auto.table import Entry, Row

__all__ = ["Choices", "Deciding", "Decision", "menu_of"]


@dataclass(frozen=True)
class Choices:
    """The rows of the table as numbers to choose by.

    Attributes
    ----------
    rows
        The layers.
    options
        For each of them what can be chosen: None, which keeps it, and candidates.
    menu
        The numbers, in the same order.
    """

    rows: Sequence[Row]
    options: Sequence[Sequence[Entry | None]]
    menu: Menu

    def entries(self, chosen: Sequence[int]) -> list[Entry | None]:
        """Return what was chosen for each layer."""
        return [row[place] for row, place in zip(self.options, chosen, strict=True)]

    def content(self, chosen: Sequence[int]) -> list[tuple[str, str]]:
        """Return what a chosen plan is known by."""
        return [
            (row.layer.name, "keep" if entry is None else entry.candidate.content)
            for row, entry in zip(self.rows, self.entries(chosen), strict=True)
        ]


@dataclass(frozen=True)
class Decision:
    """What is to become of a model.

    Attributes
    ----------
    chosen
        The place of each layer's option.
    findings
        What was measured.
    ready
        Name of the stock option that is better; None where the plan is.
    """

    chosen: tuple[int, ...]
    findings: Findings
    ready: str | None = None


def menu_of(
    rows: Sequence[Row], sensitivity: dict[str, float], size: float, seconds: float
) -> Choices:
    """Return the rows as numbers.

    Parameters
    ----------
    sensitivity
        By layer, what a relative error of 1 of its outputs does to those of the model.
    size, seconds
        Of the original model.
    """
    options: list[list[Entry | None]] = []
    items: list[list[Item]] = []
    for row in rows:
        options.append([None])
        items.append([Item(row.size, row.seconds, 0.0)])
        for entry in row.possible:
            error = entry.error
            time = None if entry.measured is None else entry.measured.seconds
            if error is None or time is None or not isfinite(error):
                continue
            damage = sensitivity.get(row.layer.name, 1.0) * error**2
            options[-1].append(entry)
            items[-1].append(Item(entry.candidate.size, time, damage))
    return Choices(rows, options, Menu(items, size, seconds))


@dataclass
class Deciding:
    """A decision under way.

    Attributes
    ----------
    choices
        What there is to choose.
    contest
        What the result is compared with.
    goal
        What is asked.
    build
        Writes the model of a plan into a folder.
    folder
        Of built models.
    cache
        What was measured before.
    with_stock
        Whether stock options are compared.
    """

    choices: Choices
    contest: Contest
    goal: Goal
    build: Callable[[Sequence[int], Path], Path]
    folder: Path
    cache: Cache
    with_stock: bool = True
    _builds: int = field(default=0)
    _beside: dict[str, float] = field(default_factory=dict)

    def decide(self, candidates: int, from_cache: int) -> Decision:
        """Search, compare with the simple options, and return the best."""
        stock = self.contest.stock() if self.with_stock else []
        rivals = self.contest.rivals(stock)
        self._beside = {rival.name: rival.latency for rival in rivals}
        rounds = search(self.choices.menu, self.goal, self.measure, rivals)
        built = best(self.goal, rounds, rivals)
        kept = (0,) * len(self.choices.rows)
        chosen = kept if built is None else built.chosen
        contenders = self.contest.final(
            stock,
            [self._planned(built)],
            lambda _: self.write(chosen),
            key_of(self.choices.content(chosen)),
        )
        winner = self._winner(contenders)
        findings = Findings(
            self.goal.words,
            tuple(_mark(each, winner) for each in contenders),
            tuple(self._record(each) for each in {r.chosen: r for r in rounds}.values()),
            candidates,
            from_cache,
        )
        if not self._suffices(winner):
            raise GoalNotMetError(self._nearest(rounds), findings)
        ready = winner.name if winner.is_stock else None
        return Decision(chosen if winner.name == PLANNED else kept, findings, ready)

    def decide_unseen(self, candidates: int, from_cache: int) -> Decision:
        """Return the least of what is safe, where there is nothing to measure whole models on."""
        menu, goal = self.choices.menu, self.goal
        weights = Item(1 / menu.size, 1 / menu.seconds, 0.0)
        weights = {
            "size": replace(weights, seconds=0.0),
            "latency": replace(weights, size=0.0),
        }.get(goal.aim, weights)
        size = inf if goal.max_size is None else goal.max_size * menu.size - menu.rest.size
        seconds = inf
        if goal.max_latency is not None:
            seconds = goal.max_latency * menu.seconds - menu.rest.seconds
        chosen = choose(menu.layers, weights, Item(size, seconds, inf))
        if chosen is None:
            raise GoalNotMetError(
                f"{self.contest.whole.name}: nothing that is safe without data is as small and as "
                "fast as asked; give --calibration for all methods"
            )
        return Decision(tuple(chosen), Findings(goal.words, (), (), candidates, from_cache))

    def measure(self, chosen: tuple[int, ...]) -> Measurement:
        """Build a model and measure it, once for all runs."""
        whole = self.contest.whole
        key = key_of(
            "whole", self.contest.key, list(self._beside.items()), self.choices.content(chosen)
        )
        known = self.cache.get(key)
        if known is None:
            self.contest.progress(f"building model {self._builds + 1}", 0, 1)
            folder = self._new_folder()
            others = [(self.contest.file(name), part) for name, part in self._beside.items()]
            found = whole.measure(lambda folder: self.build(chosen, folder), folder, others)
            rmtree(folder, ignore_errors=True)  # there may be dozens
            self.contest.progress(f"building model {self._builds}", 1, 1)
            known = asdict(found)
            if found.problem is None:
                self.cache.put(key, known)
        return Measurement(**known)

    def write(self, chosen: Sequence[int]) -> Path:
        """Write the model of a plan into a folder of its own and return its file."""
        return self.build(chosen, self._new_folder())

    def _new_folder(self) -> Path:
        self._builds += 1
        folder = self.folder / f"built-{self._builds:03}"
        folder.mkdir(parents=True)
        return folder

    def _planned(self, built: Built | None) -> Contender:
        if built is None:
            return Contender(PLANNED, problem="no plan meets the goal")
        return self.planned(built, PLANNED)

    def planned(self, built: Built, name: str) -> Contender:
        """Return a model that meets the goal as a contender under some name."""
        found = built.found
        size = round(found.size * self.contest.whole.bytes)
        return Contender(
            name, size, found.size, latency=found.latency, drops=found.drops, meets=True
        )

    def _suffices(self, contender: Contender) -> bool:
        """Return whether a model meets everything that is asked."""
        size, latency = contender.size or 1.0, contender.latency or 1.0
        return contender.meets and self.goal.fits(size, latency)

    def _winner(self, contenders: Sequence[Contender]) -> Contender:
        """Return the best that meets everything, the original if nothing does."""
        good = [each for each in contenders if self._suffices(each)]
        return min(good, key=self._cost, default=contenders[0])

    def _cost(self, contender: Contender) -> float:
        if not self.goal.limits:
            return max(contender.drops.values(), default=0.0)
        return cost_of(self.goal, contender.size or 1.0, contender.latency or 1.0)

    def _nearest(self, rounds: Sequence[Built]) -> str:
        """Return a sentence on what came nearest to a goal that nothing meets."""
        name = self.contest.whole.name
        if not rounds:
            return (
                f"{name}: no choice of candidates is as small and as fast as is asked: "
                f"{self.goal.words}"
            )
        last = min(rounds, key=lambda each: (each.found.problem is not None, each.found.size))
        if last.found.problem is not None:
            return f"{name}: no plan meets {self.goal.words}: {last.found.problem}"
        drops = ", ".join(f"{measure} {drop:.3g}" for measure, drop in last.found.drops.items())
        return (
            f"{name}: no plan meets {self.goal.words}; the smallest that was built has "
            f"{last.found.size:.3f} of the size, {last.found.latency:.3f} of the time and drops of "
            f"{drops}"
        )

    def _record(self, built: Built) -> RoundRecord:
        found, predicted = built.found, built.predicted
        return RoundRecord(
            sum(place > 0 for place in built.chosen),
            predicted.size,
            predicted.seconds,
            predicted.damage,
            found.size if isfinite(found.size) else None,
            found.latency if isfinite(found.latency) else None,
            found.drops,
            holds(self.goal, built),
            found.problem,
        )


def _mark(contender: Contender, winner: Contender) -> Contender:
    return contender if contender.name != winner.name else replace(contender, chosen=True)
