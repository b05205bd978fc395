"""Latency of models against each other, on one thread if not told otherwise.

The machine's speed drifts, so models are never timed one after the other: each set of inputs is run
by all of them in turn, in an order that moves on by one, and a ratio is taken within a round of all
inputs. On one thread what is counted is its own CPU time; other processes enter it only through
what they share with it, caches above all. Even two sessions of one file can differ by 2 %.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

from onnxlr.runtime.execution import ExecutionError
from onnxlr.runtime.jobs import run_task
from onnxlr.runtime.single_thread import SingleThread
from onnxlr.runtime.storage import read_arrays

__all__ = [
    "Latency",
    "Race",
    "Races",
    "count_rounds",
    "measure_latency",
    "ratios",
    "run_races",
    "time_rounds",
]

_ROUNDS = (5, 15)
"""Least and most rounds that count."""

_SPENT = 1.0
"""Seconds that a race of long runs is to take, as far as the least rounds allow it."""

_ROUND = 1e-3
"""Seconds that each model runs in a round at least: short runs are repeated."""

_REPEATS = 200
"""Most repetitions of a short run in a round."""


@dataclass(frozen=True)
class Race:
    """Models that are timed against each other.

    Attributes
    ----------
    models
        Their files.
    feeds
        Files of inputs; a round runs each model on all of them.
    """

    models: Sequence[str]
    feeds: Sequence[str]


@dataclass(frozen=True)
class Races:
    """A task: run some races, one after the other."""

    races: Sequence[Race]
    function: ClassVar[str] = "onnxlr.runtime.latency:run_races"


@dataclass(frozen=True)
class Latency:
    """Time of one run on all inputs, and what it is of the first model's.

    Attributes
    ----------
    seconds
        Median over the rounds.
    ratio
        Median over the rounds of the ratio to the first model in the same round.
    low, high
        Quartiles of these ratios.
    """

    seconds: float
    ratio: float
    low: float
    high: float

    @property
    def milliseconds(self) -> float:
        """The same time in milliseconds."""
        return 1e3 * self.seconds


def measure_latency(
    races: Sequence[Race], name: str, isolate: bool = True
) -> list[list[Latency] | str]:
    """Time models on one thread, with ONNX Runtime's usual optimisation of graphs.

    Parameters
    ----------
    races
        What to time.
    name
        What messages call the models.
    isolate
        Whether to use a child process, one for all races.

    Returns
    -------
    list
        For each race the latency of each of its models; why it cannot be told, where one of them
        cannot be loaded or run.

    Raises
    ------
    RuntimeFailureError
        If the process dies.
    """
    answer = run_task(Races(races), name, isolate)["races"]
    return [
        found if isinstance(found, str) else [Latency(*numbers) for numbers in found]
        for found in answer
    ]


def run_races(races: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, Any]:
    """Run races as `Races` says; `measure_latency` describes the answer."""
    return {"races": [_latencies(race["models"], race["feeds"]) for race in races]}


def _latencies(models: Sequence[str], feeds: Sequence[str]) -> list[list[float]] | str:
    try:
        runs = [SingleThread(model).run for model in models]
        found = _race(runs, [read_arrays(Path(file)) for file in feeds])
    except ExecutionError as error:
        return str(error)
    return [[one.seconds, one.ratio, one.low, one.high] for one in found]


def _race(
    runs: Sequence[Callable[[Mapping[str, Any]], Any]],
    feeds: Sequence[Mapping[str, Any]],
    clock: Callable[[], float] = time.thread_time,
) -> list[Latency]:
    """Return latencies from as many rounds as their time allows."""
    return ratios(count_rounds(runs, feeds, clock))


def count_rounds(
    runs: Sequence[Callable[[Mapping[str, Any]], Any]],
    feeds: Sequence[Mapping[str, Any]],
    clock: Callable[[], float],
    rounds: int | None = None,
) -> list[list[float]]:
    """Return the seconds of each run on all inputs once, `(runs, rounds)`.

    Parameters
    ----------
    runs, feeds, clock
        As in `time_rounds`; runs shorter than a clock can tell are repeated within a round.
    rounds
        How many rounds count; as many as their time allows if not given.
    """
    trial = [row[0] for row in time_rounds(runs, feeds, 1, clock)]
    repeats = min(max(ceil(_ROUND / max(min(trial), 1e-9)), 1), _REPEATS)
    if rounds is None:
        least, most = _ROUNDS
        rounds = min(max(int(_SPENT / max(sum(trial) * repeats, 1e-9)), least), most)
    taken = time_rounds(runs, list(feeds) * repeats, rounds, clock)
    return [[seconds / repeats for seconds in row] for row in taken]


def time_rounds(
    runs: Sequence[Callable[[Mapping[str, Any]], Any]],
    feeds: Sequence[Mapping[str, Any]],
    rounds: int,
    clock: Callable[[], float] = time.thread_time,
) -> list[list[float]]:
    """Return the seconds of each run in each round, `(runs, rounds)`.

    Parameters
    ----------
    runs
        What to time.
    feeds
        What each of them is called with in a round.
    rounds
        How many rounds to count after the first, which warms up.
    clock
        Seconds since some moment.
    """
    taken: list[list[float]] = [[0.0] * rounds for _ in runs]
    for turn in range(-1, rounds):
        for place, inputs in enumerate(feeds):
            for step in range(len(runs)):
                chosen = (turn + place + step) % len(runs)
                start = clock()
                runs[chosen](inputs)
                if turn >= 0:
                    taken[chosen][turn] += clock() - start
    return taken


def ratios(taken: Sequence[Sequence[float]]) -> list[Latency]:
    """Summarise seconds `(runs, rounds)` of at least two rounds.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    if not taken or len(taken[0]) < 2:
        raise ValueError("a spread needs two rounds or more")
    found = []
    for row in taken:
        # A clock too coarse for such runs tells nothing: a round without time counts as equal.
        pairs = zip(row, taken[0], strict=True)
        relative = [mine / first if first > 0 and mine > 0 else 1.0 for mine, first in pairs]
        low, middle, high = statistics.quantiles(relative, n=4, method="inclusive")
        found.append(Latency(statistics.median(row), middle, low, high))
    return found
