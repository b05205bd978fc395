"""Latency of model files against each other, on one thread.

The machine's speed drifts, so models are never timed one after the other: each set of inputs is run
by all of them in turn, in an order that moves on by one, and a ratio is taken within a round of all
inputs. What is counted is the thread's own CPU time; other processes enter it only through what
they share with it, caches above all. A model finds its weights where the others left the caches, as
in a program that does something else besides. Even two sessions of one file can differ by 2 %.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

import onnxlr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Latency", "compare_latency", "ratios", "time_rounds"]


@dataclass(frozen=True)
class Latency:
    """Time of one round of all inputs, and what it is of the first model's."""

    milliseconds: float
    """Median over the rounds."""
    ratio: float
    """Median over the rounds of the ratio to the first model in the same round."""
    low: float
    """First quartile of those ratios."""
    high: float
    """Third quartile of those ratios."""


def compare_latency(
    models: Sequence[Path], feeds: Sequence[Mapping[str, Any]], rounds: int = 15
) -> list[Latency]:
    """Time model files on the same inputs; the ratios are to the first of them.

    Parameters
    ----------
    models
        The files.
    feeds
        Inputs; a round runs a model once on each.
    rounds
        How often; one more round, not counted, warms up.
    """
    return ratios(time_rounds([_runner(model) for model in models], feeds, rounds))


def _runner(model: Path) -> Callable[[Mapping[str, Any]], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxlr.session(model, ["CPUExecutionProvider"], options)
    return lambda inputs: session.run(None, dict(inputs))


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
        How many rounds to count after the first.
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
    """Summarise seconds `(runs, rounds)`; at least two rounds.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    if not taken or len(taken[0]) < 2:
        raise ValueError("a spread needs two rounds or more")
    found = []
    for row in taken:
        relative = [mine / first for mine, first in zip(row, taken[0], strict=True)]
        low, middle, high = statistics.quantiles(relative, n=4, method="inclusive")
        found.append(Latency(1e3 * statistics.median(row), middle, low, high))
    return found
