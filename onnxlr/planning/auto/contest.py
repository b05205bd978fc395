"""The plan's model beside the simple options: the original, and what stock tools make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from onnxlr.errors import ModelError
from onnxlr.planning.auto.building import Whole
from onnxlr.planning.auto.cache import Cache, key_of
from onnxlr.planning.auto.goal import Goal
from onnxlr.planning.auto.outcomes import Rival, cost_of
from onnxlr.planning.auto.report import Contender
from onnxlr.planning.auto.stock import STOCK, files_of, make_stock
from onnxlr.progress import Progress

__all__ = ["ORIGINAL", "PLANNED", "Contest"]

ORIGINAL, PLANNED = "original", "onnxlr"


@dataclass
class Contest:
    """Models that are compared in one run.

    Attributes
    ----------
    whole
        What they are measured by.
    goal
        What they are judged by.
    fitted
        Files of inputs that stock tools calibrate on.
    folder
        Of the files that they make.
    cache
        What was measured before.
    key
        What all measurements depend on; limits are no part of it.
    progress
        Told of each step.
    """

    whole: Whole
    goal: Goal
    fitted: Sequence[str]
    folder: Path
    cache: Cache
    key: str
    progress: Progress
    _made: dict[str, Path | str] = field(default_factory=dict)

    def stock(self) -> list[Contender]:
        """Return what stock tools make, measured; those that meet no limits are not timed."""
        limits = [repr(limit) for limit in self.goal.limits]
        key = key_of("stock", self.key, limits, [option.name for option in STOCK])
        known = self.cache.get(key)
        if known is not None:
            return [Contender(**entry) for entry in known]
        contenders = self.judged()
        good = [contender for contender in contenders if contender.meets]
        files = {name: path for name, path in self._files().items() if isinstance(path, Path)}
        timed = {each.name: each for each in self._timed(good, files)}
        found = [timed.get(each.name, each) for each in contenders]
        if all(each.latency is not None for each in timed.values()):
            self.cache.put(key, [asdict(each) for each in found])
        return found

    def judged(self) -> list[Contender]:
        """Return what stock tools make, with sizes and drops; none is timed."""
        key = key_of("judged", self.key, [option.name for option in STOCK])
        known = self.cache.get(key)
        if known is None:
            known = [asdict(self._judged(name, made)) for name, made in self._files().items()]
            self.cache.put(key, known)
        found = [Contender(**entry) for entry in known]
        return [
            replace(each, meets=each.problem is None and self.goal.holds(each.drops))
            for each in found
        ]

    def final(
        self,
        stock: Sequence[Contender],
        planned: Sequence[Contender],
        file: Callable[[str], Path],
        content: str,
    ) -> list[Contender]:
        """Return the original, what meets the limits timed in one race with it, and the others.

        Parameters
        ----------
        stock
            What `stock` or `judged` returned.
        planned
            The plans' models, as they were measured when they were built.
        file
            Writes one of them, by its name, and returns its file; called where not all were timed
            before.
        content
            What they are: plans that are the same take the same.
        """
        everyone = [self._original(), *stock, *planned]
        good = [each for each in everyone[1:] if each.meets]
        key = key_of("final", self.key, content, [each.name for each in good])
        known = self.cache.get(key)
        if known is None:
            made = self._files() if any(each.is_stock for each in good) else {}
            files = {name: path for name, path in made.items() if isinstance(path, Path)}
            files |= {each.name: file(each.name) for each in planned if each.meets}
            timed = self._timed(good, files)
            known = {each.name: asdict(each) for each in timed}
            if all(each.latency is not None for each in timed):
                self.cache.put(key, known)
        return [Contender(**known[e.name]) if e.name in known else e for e in everyone]

    def file(self, name: str) -> Path:
        """Return the file of a stock option that there is."""
        made = self._files()[name]
        if isinstance(made, str):
            raise ModelError(f"{self.whole.name}: {name} could not be made again: {made}")
        return made

    def _files(self) -> dict[str, Path | str]:
        """Return by name what stock tools make, or why they cannot; made once."""
        if not self._made:
            self.folder.mkdir(exist_ok=True)
            self.progress("quantising with ONNX Runtime's tools", 0, 1)
            made = make_stock(self.whole.original, self.folder, self.fitted, self.whole.isolate)
            self._made = dict(made)
            self.progress("quantising with ONNX Runtime's tools", 1, 1)
        return self._made

    def _judged(self, name: str, made: Path | str) -> Contender:
        """Return a stock option with its size and drops."""
        if isinstance(made, str):
            return Contender(name, is_stock=True, problem=made)
        self.progress(f"measuring {name}", 0, 1)
        drops = self.whole.drops(made)
        self.progress(f"measuring {name}", 1, 1)
        if isinstance(drops, str):
            return Contender(name, is_stock=True, problem=drops)
        size = sum(file.stat().st_size for file in files_of(made))
        return Contender(name, size, size / self.whole.bytes, drops=drops, is_stock=True)

    def _original(self) -> Contender:
        zeros = dict.fromkeys((limit.measure for limit in self.whole.limits), 0.0)
        return Contender(ORIGINAL, self.whole.bytes, 1.0, drops=zeros, meets=True)

    def _timed(self, contenders: Sequence[Contender], files: Mapping[str, Path]) -> list[Contender]:
        """Return contenders timed in one race with the original, which comes first."""
        self.progress(f"timing {len(contenders) + 1} models", 0, 1)
        times = self.whole.race([files[each.name] for each in contenders])
        self.progress(f"timing {len(contenders) + 1} models", 1, 1)
        if isinstance(times, str):
            return [replace(each, problem=times, meets=False) for each in contenders]
        return [
            replace(
                each,
                milliseconds=time.milliseconds,
                latency=time.ratio,
                latency_low=time.low,
                latency_high=time.high,
            )
            for each, time in zip([self._original(), *contenders], times, strict=True)
        ]

    def rivals(self, stock: Sequence[Contender]) -> list[Rival]:
        """Return what is to be beaten: all stock options that meet the limits, or the best."""
        good = [
            Rival(each.size, each.latency, each.name)
            for each in stock
            if each.meets and each.size is not None and each.latency is not None
        ]
        if not good:
            return []
        fastest = min(good, key=lambda each: each.latency)
        smallest = min(good, key=lambda each: each.size)
        single = min(good, key=lambda each: cost_of(self.goal, each.size, each.latency))
        every = replace(fastest, size=smallest.size)
        return [every] if every == single else [every, single]
