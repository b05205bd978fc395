"""Makes the files that rows ask for, and measures their size, score and latency."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import onnxlr
from tools.measured_rows import Again, Ours, Row
from tools.measured_tasks import Task, write_feeds
from tools.timing import compare_latency

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from onnxlr.records import LayerRecord

__all__ = ["Bench", "Counts", "Result"]

ANY = "cosine>=0"
"""The tolerance of onnxlr's rows: how far outputs differ is what is measured here."""


@dataclass(frozen=True)
class Counts:
    """Sums over the layers that a row rewrote; of arithmetic for one position, and no time."""

    layers: int
    weights: int
    """Entries of the original weights."""
    trits: int
    nonzeros: int
    additions: int
    multiplications: int

    @classmethod
    def of(cls, records: Iterable[LayerRecord]) -> Counts | None:
        """Add up records; None where no layer has become ternary."""
        known = [record for record in records if record.trits_per_weight is not None]
        if not known:
            return None
        sizes = [prod(record.shape or ()) for record in known]
        trits = (record.trits_per_weight or 0 for record in known)
        return cls(
            len(known),
            sum(sizes),
            round(sum(each * size for each, size in zip(trits, sizes, strict=True))),
            *(
                sum(getattr(record, name) or 0 for record in known)
                for name in ("nonzeros", "additions", "multiplications")
            ),
        )


@dataclass
class Result:
    """One row of the table; what could not be measured is None."""

    name: str
    megabytes: float | None = None
    score: float | None = None
    milliseconds: float | None = None
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    seconds: float | None = None
    error: str | None = None
    fit_seconds: float | None = None
    """Of `seconds`, what it took to approximate the weights and to judge them."""
    counts: Counts | None = None


@dataclass
class _FitTime:
    """A progress callback that notes how long it takes from the first layer to the proofs."""

    started: float | None = None
    seconds: float | None = None

    def __call__(self, task: str, done: int, total: int) -> None:  # noqa: ARG002
        now = time.perf_counter()
        if task == "factorizing" and self.started is None:
            self.started = now
        if task == "verifying" and self.started is not None and self.seconds is None:
            self.seconds = now - self.started


@dataclass(frozen=True)
class Bench:
    """A task with its inputs on disk, and a folder for what is made."""

    task: Task
    folder: Path
    calibration: Path
    comparison: Path
    rounds: int
    plans: dict[str, onnxlr.Plan] = field(default_factory=dict)
    """Of the rows made so far, by name."""

    @property
    def statistics(self) -> Path:
        """What the layers' inputs are like, observed once for all rows."""
        return self.folder / "statistics.npz"

    def observe(self) -> Result:
        """Observe the layers' inputs, and say how long that took."""
        start = time.perf_counter()
        onnxlr.observe(self.task.model, self.calibration, self.statistics, mask=self.task.mask)
        return Result("(statistics for all calibrated rows)", seconds=time.perf_counter() - start)

    @classmethod
    def prepare(cls, task: Task, folder: Path, rounds: int) -> Bench:
        """Write the task's inputs below `folder`."""
        calibration = write_feeds(task.calibration, folder / "calibration")
        comparison = write_feeds(task.comparison, folder / "comparison")
        return cls(task, folder, calibration, comparison, rounds)

    def original(self) -> Result:
        """Measure the model itself."""
        result = Result("original")
        self.weigh(self.task.model, result)
        self.time([(result, self.task.model)])
        return result

    def measure(self, row: Row, number: int) -> Result:
        """Make the file of a row and measure it; never raises for what the row does."""
        result, path = self.make(row, number)
        if path is not None:
            try:
                self.time([(result, path)])
            except Exception as error:  # noqa: BLE001  # a row may fail in any way
                result.error = _line(error)
        return result

    def make(self, row: Row, number: int) -> tuple[Result, Path | None]:
        """Make the file of a row, and measure its size and score; never raises for the row.

        Returns
        -------
        tuple
            What was found but the latency, and the file, if there is one that runs.
        """
        result = Result(row.name)
        output = self.folder / f"{number:02}.onnx"
        start = time.perf_counter()
        try:
            self._make(row, output, result)
        except Exception as error:  # noqa: BLE001  # a row may fail in any way, and the next is due
            result.error = _line(error)
        result.seconds = time.perf_counter() - start
        if not output.exists():
            return result, None
        try:
            self.weigh(output, result)
        except Exception as error:  # noqa: BLE001
            result.error = _line(error)
            return result, None
        return result, output

    def weigh(self, path: Path, result: Result) -> None:
        """Measure the size and the score of a file."""
        result.megabytes = sum(file.stat().st_size for file in _files(path)) / 1e6
        result.score = self.task.score(path)

    def time(self, made: Sequence[tuple[Result, Path]]) -> None:
        """Time files and the original in the same rounds."""
        paths = [path for _, path in made]
        taken = compare_latency([self.task.model, *paths], self.task.timing, self.rounds)
        for (result, _), own in zip(made, taken[1:], strict=True):
            result.milliseconds = own.milliseconds
            result.latency, result.latency_low, result.latency_high = own.ratio, own.low, own.high

    def _make(self, row: Row, output: Path, result: Result) -> None:
        if not isinstance(row, Ours | Again):
            row.make(self.task.model, output)
            return
        arguments: dict[str, Any] = {}
        if isinstance(row, Ours):
            arguments |= row.arguments
        elif row.of in self.plans:
            arguments |= {"plan": replace(self.plans[row.of], target=row.target)}
        else:
            raise ValueError(f"it follows the plan of '{row.of}', which was not made before")
        if row.calibrated:
            arguments |= {"statistics": self.statistics, "calibration": self.calibration}
            arguments |= {"mask": self.task.mask} if self.task.mask else {}
        watch = _FitTime()
        arguments |= {"tolerance": ANY, "keep": True, "data": self.comparison, "progress": watch}
        done = onnxlr.rewrite(self.task.model, output, **arguments)
        result.fit_seconds = watch.seconds
        result.counts = Counts.of(done.layers)
        self.plans[row.name] = done.plan


def _files(model: Path) -> list[Path]:
    data = model.with_name(f"{model.name}.data")
    return [model, data] if data.exists() else [model]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
