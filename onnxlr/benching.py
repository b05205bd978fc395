"""The verb that benches: what models take on disk, to load, in memory and to run, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import onnxruntime as ort

from onnxlr.calibration import (
    DataSource,
    Feeds,
    InputSpec,
    check_feeds,
    label_of,
    load_feeds,
    random_feeds,
    signature,
)
from onnxlr.errors import DataError, ModelError, UsageError
from onnxlr.model import Model, ModelSource, open_source
from onnxlr.model.saving import copy_model
from onnxlr.operators.schema import DOMAIN
from onnxlr.progress import Progress, silent
from onnxlr.runtime import (
    MOST_FEEDS,
    Footprint,
    ModelFile,
    Pace,
    describe_ops,
    load_apart,
    run_heats,
    store_arrays,
)
from onnxlr.scratch import scratch

__all__ = ["BenchResult", "Benched", "bench"]

_HEATS = 3
"""Processes that the rounds are divided among: two sessions of one file can differ by 2 %."""


@dataclass(frozen=True)
class Benched:
    """What one model takes; times are of one run.

    Attributes
    ----------
    model
        Its file or name.
    bytes
        Of the file and its external data.
    load_seconds, memory, peak
        As in `Footprint`.
    seconds, seconds_low, seconds_high, ratio, ratio_low, ratio_high
        As in `Pace`.
    """

    model: str
    bytes: int
    load_seconds: float | None
    memory: int | None
    peak: int | None
    seconds: float
    seconds_low: float
    seconds_high: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @classmethod
    def of(cls, file: ModelFile, taken: Footprint, pace: Pace) -> Benched:
        """Return a model's line."""
        alone = (taken.load_seconds, taken.memory, taken.peak)
        return cls(file.name, file.bytes, *alone, **asdict(pace))


@dataclass(frozen=True)
class BenchResult:
    """Models that ran in turn, on the same inputs.

    Attributes
    ----------
    models
        In the order given.
    data
        What they ran on, in words.
    is_random
        Whether the inputs were made up.
    threads
        Of each model.
    clock
        What times are of: `thread`, the CPU time of the one thread; or `wall`.
    rounds, processes
        In each round every model ran on all inputs; sessions were made anew in each process.
    runtime
        Runtime and version.
    notes
        What a reader must know to judge the numbers.
    """

    models: tuple[Benched, ...]
    data: str
    is_random: bool
    threads: int
    clock: str
    rounds: int
    processes: int
    runtime: str
    notes: tuple[str, ...] = ()


def bench(
    *models: ModelSource,
    data: DataSource | None = None,
    threads: int = 1,
    rounds: int | None = None,
    seed: int = 0,
    isolate: bool = True,
    progress: Progress = silent,
) -> BenchResult:
    """Time models in turn, on the same inputs and as many threads, and tell what else they take.

    Each is loaded in a process of its own first, for its memory and its time to load. Then they run
    in turn, round after round, in some processes that load all of them.

    Parameters
    ----------
    models
        One or more; all must take the inputs of the first.
    data
        Inputs, see `load_feeds`, of which the first four runs are taken; random ones if not given.
    threads
        Of each model.
    rounds
        Rounds that count, 2 at least; as many as fit into some seconds if not given.
    seed
        Of random inputs.
    isolate
        Use child processes; without them memory is not measured.
    progress
        Called before each step.

    Raises
    ------
    UsageError, DataError
        If an argument cannot be followed.
    ModelError
        If a model cannot be handled, loaded or run, or takes other inputs than the first.
    """
    _check(threads, rounds)
    if not models:
        raise UsageError("there is no model to measure, expected one or more")
    with scratch("onnxlr-bench-") as folder:
        first = open_source(models[0])
        entrants = [_Entrant.of(first, folder / "0")]
        for number, source in enumerate(models[1:], 1):
            entrants.append(_Entrant.of(open_source(source), folder / str(number)))
            _check_names(entrants[0], entrants[-1])
        measuring = _Measuring(entrants, folder, threads, isolate, progress)
        description, files, alone = measuring.start(first, data, seed)
        del first  # what runs now needs the memory
        taken = [alone, *(measuring.load(k, files) for k in range(1, len(entrants)))]
        heats = _heats(rounds)
        paces, counted = measuring.race(files, heats)
        return BenchResult(
            tuple(map(Benched.of, (entrant.file for entrant in entrants), taken, paces)),
            description,
            data is None,
            threads,
            "thread" if threads == 1 else "wall",
            counted,
            len(heats) if isolate else 1,
            f"ONNX Runtime {ort.__version__}",
            tuple(measuring.notes(taken, data is None)),
        )


def _check(threads: int, rounds: int | None) -> None:
    if threads < 1:
        raise UsageError(f"threads {threads} is too few, expected a whole number of at least 1")
    if rounds is not None and rounds < 2:
        raise UsageError(
            f"rounds {rounds} is too few, expected a whole number of at least 2: a spread needs two"
        )


@dataclass(frozen=True)
class _Entrant:
    """A model, as far as it must be known: its file, and what it takes."""

    file: ModelFile
    specs: Sequence[InputSpec]
    has_operators: bool

    @classmethod
    def of(cls, model: Model, folder: Path) -> _Entrant:
        """Return a model's; one without a file is stored in a new folder."""
        path, name = model.path, model.name
        if path is None:
            folder.mkdir()
            path = folder / "model.onnx"
            copy_model(model, folder, path.name)
        try:
            size = model.stored_bytes
        except OSError as error:
            raise ModelError(f"{name}: {error.filename}: {error.strerror}") from None
        own = any(opset.domain == DOMAIN for opset in model.proto.opset_import)
        return cls(ModelFile(name, path, size), signature(model), own)


def _check_names(first: _Entrant, other: _Entrant) -> None:
    expected, found = ([spec.name for spec in each.specs] for each in (first, other))
    if sorted(expected) != sorted(found):
        raise ModelError(
            f"{other.file.name}: its inputs are {_listed(found)}, expected those of "
            f"{first.file.name}: {_listed(expected)}"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


@dataclass(frozen=True)
class _Measuring:
    """The steps: each model alone, then all of them in turn."""

    entrants: Sequence[_Entrant]
    folder: Path
    threads: int
    isolate: bool
    progress: Progress

    def start(
        self, first: Model, data: DataSource | None, seed: int
    ) -> tuple[str, list[str], Footprint]:
        """Return what the models run on, its files, and the footprint of the first model."""
        problem: ModelError | None = None
        for description, feeds in _attempts(first, data, seed):
            try:
                for entrant in self.entrants[1:]:
                    _check_fit(entrant, self.entrants[0], feeds)
                files = self._store(feeds)
                return description, files, self.load(0, files)
            except ModelError as error:  # noqa: PERF203  (other inputs may do)
                if data is not None or "cannot be loaded" in str(error):
                    raise
                problem = problem or error
        raise DataError(f"{problem}; random inputs do not fit, give --data") from problem

    def _store(self, feeds: Sequence[Feeds]) -> list[str]:
        files = [self.folder / f"{position}.npz" for position in range(len(feeds))]
        for file, feed in zip(files, feeds, strict=True):
            store_arrays(file, feed)
        return [str(file) for file in files]

    def load(self, number: int, files: Sequence[str]) -> Footprint:
        """Measure a model alone."""
        self._tick(number)
        return load_apart(self.entrants[number].file, files, self.isolate, self.threads)

    def race(self, files: Sequence[str], rounds: Sequence[int | None]) -> tuple[list[Pace], int]:
        """Run all models in turn; return what each takes, and the number of rounds."""
        models = [str(entrant.file.file) for entrant in self.entrants]
        name = self.entrants[0].file.name if len(models) == 1 else "the models together"
        found = run_heats(
            models,
            files,
            self.threads,
            rounds,
            name,
            self.isolate,
            lambda heat: self._tick(len(models) + heat),
        )
        self._tick(len(models) + _HEATS)
        return found

    def _tick(self, done: int) -> None:
        self.progress("measuring", done, len(self.entrants) + _HEATS)

    def notes(self, footprints: Sequence[Footprint], is_random: bool) -> Iterator[str]:
        """Yield what a reader must know."""
        yield from dict.fromkeys(text for one in footprints for text in one.problems)
        if is_random:
            yield "random inputs: the time of a model may depend on its data (give --data)"
        processors = _processors()
        if self.threads > processors:
            many = "s" if processors > 1 else ""
            yield f"{self.threads} threads share {processors} processor{many}"
        problem = describe_ops().problem
        own = [entrant.file.name for entrant in self.entrants if entrant.has_operators]
        if own and problem is not None:
            yield f"the operators of onnxlr ran as functions in {', '.join(own)}: {problem}"


def _heats(rounds: int | None) -> list[int | None]:
    """Return the rounds of each process."""
    if rounds is None:
        return [None] * _HEATS
    count = min(_HEATS, rounds)
    return [(rounds + part) // count for part in range(count)]


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _attempts(
    first: Model, data: DataSource | None, seed: int
) -> Iterator[tuple[str, list[Feeds]]]:
    """Yield what models could run on, with a description; raises DataError."""
    if data is None:
        yield from random_feeds(first, seed)
        return
    feeds = list(islice(load_feeds(data, signature(first)), MOST_FEEDS + 1))
    more, feeds = len(feeds) > MOST_FEEDS, feeds[:MOST_FEEDS]
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds[0].items())
    runs = f"{len(feeds)} run{'s' if len(feeds) > 1 else ''}"
    yield f"{label_of(data)}: {'the first ' if more else ''}{runs}: {shapes}", feeds


def _check_fit(other: _Entrant, first: _Entrant, feeds: Sequence[Feeds]) -> None:
    """Refuse a model that does not take the inputs of the first."""
    try:
        for feed in feeds:
            check_feeds(feed, other.specs, f"what {first.file.name} is run on")
    except DataError as error:
        raise ModelError(f"{other.file.name}: does not take {error}") from None
