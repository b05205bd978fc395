"""Times chains of products in interleaved rounds, each after its outputs were found right."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from onnxlr.runtime.latency import ratios, time_rounds
from tools.operator_chains import Chain, WrongResultError, build
from tools.operator_contenders import Contender, Floats, Ternary
from tools.operator_tables import READ, Cell

__all__ = [
    "Bench",
    "Effort",
    "attempt",
    "bench_scaling",
    "lengths",
    "measure",
    "say",
    "settled",
]

FEW_ROWS = 32
"""Up to so many rows a chain is as long as its bytes ask, beyond it only as its work allows."""
LONGEST = 512
"""Most nodes of a chain: rounding the data adds up, and in the end leaves nothing of them."""
WORK = 4e9
"""Operations of a chain of many rows, if that is more than one node."""
BATCH = 8
"""Rounds between two looks at how far the ratios vary."""
SETTLED = 0.01
"""Standard error of a ratio's median, relative, at which a case is done."""


@dataclass(frozen=True)
class Effort:
    """How long to time a case."""

    rounds: int | None
    """So many rounds; None to stop when the ratios have settled or the time is over."""
    seconds: float
    megabytes: float


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def lengths(shape: tuple[int, int], most_rows: int, megabytes: float) -> tuple[int, int]:
    """Return how many nodes chains of few and of many rows have.

    Parameters
    ----------
    shape
        `(inputs, outputs)`.
    most_rows
        The most that the chain of many rows is run with.
    megabytes
        Least size of all packed codes of the chain of few rows, if that is at most LONGEST nodes.
    """
    step = 1 if shape[0] == shape[1] else 2
    codes = shape[0] * shape[1] / 4
    few = min(LONGEST, step * math.ceil(megabytes * 2**20 / (step * codes)))
    work = 2.0 * most_rows * shape[0] * shape[1]
    return few, max(step, min(few, step * int(WORK // (step * work))))


def measure(
    runs: Mapping[str, Callable[[object], Any]],
    effort: Effort,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round, until their ratios have settled."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    end = time.monotonic() + effort.seconds
    batch = effort.rounds or BATCH
    while True:
        rows = time_rounds(list(runs.values()), [None], batch, clock)  # type: ignore[list-item]
        for name, row in zip(runs, rows, strict=True):
            taken[name] += row
        if effort.rounds or time.monotonic() > end or settled(list(taken.values())):
            return taken


def settled(taken: Sequence[Sequence[float]]) -> bool:
    """Say whether the medians of all ratios to the first are known well enough."""
    # The standard error of a median is about 1.25 deviations, a deviation 0.74 quartile ranges.
    allowed = SETTLED * len(taken[0]) ** 0.5 / 0.93
    return all(found.high - found.low <= allowed * found.ratio for found in ratios(taken))


class Bench:
    """What was timed, and who computed wrongly."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.cells: list[Cell] = []
        self.wrong: list[str] = []

    def products(
        self,
        contenders: Sequence[Contender],
        shapes: Sequence[tuple[int, int]],
        counts: Sequence[int],
    ) -> None:
        """Time products of all shapes with all numbers of rows."""
        few = [rows for rows in counts if rows <= FEW_ROWS]
        many = [rows for rows in counts if rows > FEW_ROWS]
        for shape in shapes:
            nodes = lengths(shape, max(counts), self.effort.megabytes)
            for number, some in zip(nodes, (few, many), strict=True):
                if some:
                    self._products(contenders, shape, number, some)

    def _products(
        self,
        contenders: Sequence[Contender],
        shape: tuple[int, int],
        nodes: int,
        counts: Sequence[int],
    ) -> None:
        start = time.monotonic()
        label = f"{shape[0]}x{shape[1]}"
        right = self._right(contenders, shape, counts)
        kernels = {c.name: c.isa for c in right if c.isa}
        data = _data(max(counts), shape[0])
        built = {
            c.name: chain
            for c in right
            if (chain := attempt(c.name, partial(build, c, shape, nodes, data)))
        }
        say(f"{label}: {nodes} nodes, built in {time.monotonic() - start:.1f} s")
        for rows in counts:
            # numpy's sum reads as fast as memchr and dot do, 17 GB/s where this was written.
            codes = np.ones(nodes * shape[0] * shape[1] // 32, np.uint64)
            reading = {READ: lambda _, codes=codes: codes.sum()} if rows == 1 else {}
            self.time(label, built, rows, kernels, reading)

    def _right(
        self, contenders: Sequence[Contender], shape: tuple[int, int], counts: Sequence[int]
    ) -> list[Contender]:
        """Return the contenders without those of ours of which a product alone is wrong.

        A chain's outputs cannot be compared as closely: see `Contender.noise`.
        """
        right = []
        for contender in contenders:
            found: list[object] = [True]
            for way in {shape, shape[::-1]} if contender.isa else ():
                data = _data(max(counts), way[0])
                chain = attempt(contender.name, partial(build, contender, way, 1, data))
                label = f"{contender.name} at {way[0]}x{way[1]}"
                found += [chain and self._checked(f"{label}, M={n}", chain, n) for n in counts]
            if all(found):
                right.append(contender)
        return right

    def time(
        self,
        label: str,
        built: Mapping[str, Chain],
        rows: int,
        kernels: Mapping[str, str],
        beside: Mapping[str, Callable[[object], Any]] | None = None,
    ) -> None:
        """Check chains, then time those that are right in rounds of all of them.

        Parameters
        ----------
        label
            The shape's name.
        built
            The chains, by the contender's name.
        rows
            Of their data.
        kernels
            Instruction set of each contender that is ours.
        beside
            What else to run in each round.
        """
        start = time.monotonic()
        runs: dict[str, Callable[[object], Any]] = {}
        for name, chain in built.items():
            run = self._checked(f"{name} at {label}, M={rows}", chain, rows)
            if run:
                runs[name] = run
        if not runs:
            return
        runs.update(beside or {})
        nodes = next(iter(built.values())).nodes
        taken = measure(runs, self.effort)
        ours = {name: isa for name, isa in kernels.items() if name in runs}
        self.cells.append(Cell(label, rows, nodes, taken, ours))
        rounds = len(next(iter(taken.values())))
        say(f"  M={rows}: {rounds} rounds in {time.monotonic() - start:.1f} s")

    def _checked(self, name: str, chain: Chain, rows: int) -> Callable[[object], Any] | None:
        try:
            return chain.runner(rows)
        except WrongResultError as error:
            say(f"  {name} is WRONG and not timed: {error}")
            self.wrong.append(name)
            return None


def _data(rows: int, inputs: int) -> Floats:
    return np.random.default_rng(1).standard_normal((rows, inputs), np.float32)


def attempt(name: str, make: Callable[[], Chain]) -> Chain | None:
    """Return the chain, or say why it cannot be built and return None."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001  # ORT has no class for an operator that is missing
        say(f"  {name} cannot be run: {' '.join(str(error).split())[:300]}")
        return None


def bench_scaling(isas: Sequence[str], counts: Sequence[int], effort: Effort) -> list[Cell]:
    """Time one and two threads against each other, wall clock, 4096x4096.

    One instruction set after the other: the threads of a session stay awake for a while after a
    run, and would take the processors from the next session's.
    """
    shape, cells = (4096, 4096), []
    for rows, isa in product((rows for rows in counts if rows >= FEW_ROWS), isas):
        nodes = lengths(shape, rows, effort.megabytes)[1]
        data = _data(rows, shape[0])
        names = [f"{isa}, {threads}" for threads in (1, 2)]
        pair = [
            attempt(name, partial(build, Ternary(isa), shape, nodes, data, threads))
            for threads, name in enumerate(names, 1)
        ]
        runs = {n: chain.runner(rows) for n, chain in zip(names, pair, strict=True) if chain}
        if len(runs) == len(names):
            say(f"4096x4096, two threads, M={rows}, {isa}")
            taken = measure(runs, effort, time.perf_counter)
            cells.append(Cell("4096x4096", rows, nodes, taken, dict.fromkeys(names, isa)))
    return cells
