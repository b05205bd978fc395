"""Models timed in turn in several processes: sessions are made anew in each.

Two sessions of one file can differ by 2 % for as long as they live, by where their memory happens
to lie; a spread over rounds of one process alone would not show it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from onnxlr.runtime.jobs import run_task
from onnxlr.runtime.latency import count_rounds, ratios
from onnxlr.runtime.single_thread import OnThreads, clock_of
from onnxlr.runtime.storage import read_arrays

__all__ = ["Heat", "Pace", "run_heat", "run_heats"]


@dataclass(frozen=True)
class Heat:
    """A task: some rounds in which each model runs on all inputs.

    Attributes
    ----------
    models
        Their files.
    feeds
        Files of inputs.
    threads
        Of each model.
    rounds
        How many count; as many as their time allows if not given.
    """

    models: Sequence[str]
    feeds: Sequence[str]
    threads: int
    rounds: int | None
    function: ClassVar[str] = "onnxlr.runtime.heats:run_heat"


@dataclass(frozen=True)
class Pace:
    """Time of one run in seconds, the mean over the inputs; median and quartiles over the rounds.

    Attributes
    ----------
    seconds, seconds_low, seconds_high
        Of the time itself: CPU time of the one thread, or wall time of several.
    ratio, ratio_low, ratio_high
        Of the ratio to the first model in the same round.
    """

    seconds: float
    seconds_low: float
    seconds_high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def run_heats(
    models: Sequence[str],
    feeds: Sequence[str],
    threads: int,
    rounds: Sequence[int | None],
    name: str,
    isolate: bool = True,
    tick: Callable[[int], None] = lambda _: None,
) -> tuple[list[Pace], int]:
    """Return what each model takes, and the number of rounds that it is told from.

    Parameters
    ----------
    models, feeds, threads
        As in `Heat`.
    rounds
        Of each heat.
    name
        What messages call the models.
    isolate
        Whether to use a child process for each heat.
    tick
        Called with the number of each heat before it.

    Raises
    ------
    RuntimeFailureError
        If a model cannot be loaded or run, or the process dies.
    """
    taken: list[list[float]] = [[] for _ in models]
    for number, count in enumerate(rounds):
        tick(number)
        found = run_task(Heat(models, feeds, threads, count), name, isolate)["seconds"]
        for row, more in zip(taken, found, strict=True):
            row.extend(seconds / len(feeds) for seconds in more)
    return paces_of(taken), len(taken[0])


def paces_of(seconds: Sequence[Sequence[float]]) -> list[Pace]:
    """Summarise the seconds of runs, `(models, rounds)`, of two rounds or more."""
    found = []
    for row, ratio in zip(seconds, ratios(seconds), strict=True):
        low, middle, high = statistics.quantiles(row, n=4, method="inclusive")
        found.append(Pace(middle, low, high, ratio.ratio, ratio.low, ratio.high))
    return found


def run_heat(
    models: Sequence[str], feeds: Sequence[str], threads: int, rounds: int | None
) -> dict[str, Any]:
    """Return `seconds` of each model in each round, `(models, rounds)`, for all inputs together.

    Raises
    ------
    ExecutionError
        If a model cannot be loaded or run.
    """
    runs = [OnThreads(model, threads).run for model in models]
    inputs = [read_arrays(Path(file)) for file in feeds]
    return {"seconds": count_rounds(runs, inputs, clock_of(threads), rounds)}
