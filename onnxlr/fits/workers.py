"""Who fits the layers of a model: this process or others, with a memory of what was fitted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence
from onnxlr.fits.keys import fit_key
from onnxlr.fits.orders import (
    Order,
    StoredWeight,
    Wish,
    fit_or_reason,
    fit_side_by_side,
    read_pickle,
    write_pickle,
)
from onnxlr.fits.store import FitStore
from onnxlr.layers import Layer, read_weight
from onnxlr.methods import Fit
from onnxlr.model import Model
from onnxlr.progress import silent
from onnxlr.scratch import scratch

__all__ = ["ALONE", "Piece", "Workers", "usual_jobs"]

_LARGE = 1 << 28
"""Bytes of all weights from which on layers are fitted by other processes, asked for or not."""

_TOGETHER = 2_000_000
"""Entries of small layers that one process fits, one after the other."""

_OWN = 200 << 20
"""Bytes of this process beside a layer that it writes."""

_WRITTEN = 20
"""Bytes of this process for each entry of a layer that it writes: its dense approximation in
float64 and as it is stored, and the weight."""


@dataclass(frozen=True)
class Piece:
    """One layer's work.

    Attributes
    ----------
    layer
        The layer.
    evidence
        What is known of it.
    wish
        What is asked.
    """

    layer: Layer
    evidence: Evidence
    wish: Wish


@dataclass(frozen=True)
class Workers:
    """How layers are fitted.

    Attributes
    ----------
    jobs
        Processes that fit side by side; None for one a processor where there is much to do, and
        none where there is little.
    memory
        Bytes that all processes, this one among them, may take together while layers are fitted, as
        far as can be foreseen; None for half of what is free.
    store
        Fits of earlier runs; None for none.
    isolate
        Whether to use other processes at all.
    """

    jobs: int | None = None
    memory: int | None = None
    store: FitStore | None = None
    isolate: bool = True

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"{self.jobs} jobs were asked for, expected 1 or more")
        if self.memory is not None and self.memory < 1:
            raise UsageError(f"memory of {self.memory} bytes was given, expected 1 or more")

    def fit(self, model: Model, piece: Piece) -> Fit | str:
        """Return the fit of one layer in this process, or why there is none.

        Raises
        ------
        ModelError
            If the weight cannot be read.
        """
        weight = read_weight(model, piece.layer)
        key = None if self.store is None else fit_key(weight, piece.evidence, piece.wish)
        found = self.known(key, weight.shape)
        if found is not None:
            return found
        # A copy, because evidence keeps the metrics that it makes, and pieces are many.
        fit = fit_or_reason(weight, piece.wish, replace(piece.evidence))
        if isinstance(fit, Fit) and self.store is not None and key is not None:
            self.store.put(key, fit)
        return fit

    def fits(self, model: Model, pieces: Sequence[Piece]) -> Iterator[Fit | str]:
        """Yield the fit of each layer in order, or why there is none.

        Where other processes fit, each computes with one thread, so that fits are the same however
        many there are.

        Raises
        ------
        ModelError
            If a weight cannot be read.
        RuntimeFailureError
            If a process dies.
        """
        if self.store is not None:
            self.store.prepare()
        if not self._uses_processes(pieces):
            for piece in pieces:
                yield self.fit(model, piece)
            return
        with scratch("onnxlr-fits-") as folder:
            yield from _Batch(self, model, pieces, folder).fits()

    def _uses_processes(self, pieces: Sequence[Piece]) -> bool:
        if not self.isolate or not pieces:
            return False
        wanted = self.jobs is not None or self.memory is not None
        return wanted or sum(_entries(piece) * 4 for piece in pieces) >= _LARGE

    def known(self, key: str | None, shape: Sequence[int] | None) -> Fit | None:
        """Return what the store has of a weight under a key, None if there is none."""
        if key is None or shape is None or self.store is None:
            return None
        return self.store.get(key, shape)

    def room(self, pieces: Sequence[Piece]) -> int:
        """Return the bytes that other processes may take while this one writes layers."""
        memory = _free() // 2 if self.memory is None else self.memory
        largest = max((_entries(piece) for piece in pieces), default=0)
        return max(memory - _OWN - _WRITTEN * largest, 0)


ALONE = Workers()
"""Nothing is asked, and nothing kept."""


class _Batch:
    """Layers that other processes fit, whose fits wait on disk for their turn."""

    def __init__(
        self, workers: Workers, model: Model, pieces: Sequence[Piece], folder: Path
    ) -> None:
        self._workers, self._model, self._pieces = workers, model, pieces
        self._folder = folder
        self._keys: dict[int, str | None] = {}
        self._ordered: list[int] = []
        self._known: set[int] = set()
        self._aside: dict[int, Path] = {}

    def fits(self) -> Iterator[Fit | str]:
        """Yield the fit of each piece in order."""
        turn = 0
        for number, found in self._made(self._orders()):
            if number != turn:
                self._put_aside(number, found)
            else:
                yield found
                turn += 1
            while turn in self._aside or turn in self._known:
                yield self._waiting(turn)
                turn += 1
        yield from map(self._waiting, range(turn, len(self._pieces)))

    def _orders(self) -> Iterator[Order]:
        """Yield what is not known yet."""
        store = self._workers.store
        for number, piece in enumerate(self._pieces):
            key = None
            if store is not None:
                weight = read_weight(self._model, piece.layer)
                key = fit_key(weight, piece.evidence, piece.wish)
            self._keys[number] = key
            if self._workers.known(key, piece.layer.shape) is not None:
                self._known.add(number)
            else:
                self._ordered.append(number)
                yield self._order(number)

    def _order(self, number: int) -> Order:
        piece, key = self._pieces[number], self._keys[number]
        wish = replace(piece.wish, setting=replace(piece.wish.setting, progress=silent))
        weight = StoredWeight.of(piece.layer, self._model)
        keys = () if key is None else (key,)
        return Order(weight, piece.evidence, [wish], self._workers.store, keys)

    def _made(self, orders: Iterable[Order]) -> Iterator[tuple[int, Fit | str]]:
        """Yield fits as processes make them, with the numbers of their pieces."""
        jobs = self._workers.jobs or usual_jobs()
        for place, fit in self._fitted(orders, self._folder, jobs):
            yield self._ordered[place], fit

    def _fitted(
        self, orders: Iterable[Order], folder: Path, jobs: int
    ) -> Iterator[tuple[int, Fit | str]]:
        """Yield fits as processes make them, with the places of their orders."""
        room, name = self._workers.room(self._pieces), self._model.name
        isolate = self._workers.isolate
        done = fit_side_by_side(orders, folder, name, jobs, isolate, room, _TOGETHER)
        for place, (fit,) in done:
            yield place, fit

    def _put_aside(self, number: int, found: Fit | str) -> None:
        self._aside[number] = self._folder / f"fit-{number:06}.pickle"
        write_pickle(self._aside[number], found)

    def _waiting(self, number: int) -> Fit | str:
        """Return a fit that waited for its turn."""
        file = self._aside.pop(number, None)
        if file is not None:
            found: Fit | str = read_pickle(file)
            file.unlink()
            return found
        known = self._workers.known(self._keys[number], self._pieces[number].layer.shape)
        if known is None:  # somebody took it away, while others are still being fitted
            folder = self._folder / f"again-{number:06}"
            folder.mkdir()
            ((_, found),) = self._fitted([self._order(number)], folder, 1)
            return found
        return known


def usual_jobs() -> int:
    """Return how many processes run side by side where nothing is asked: one a processor."""
    return os.cpu_count() or 1


def _entries(piece: Piece) -> int:
    return prod(piece.layer.shape or (0,))


def _free() -> int:
    """Return the bytes of memory that are free, or that the system can free at once."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        said = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(said["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return _UNKNOWN


_UNKNOWN = 8 << 30
"""Bytes taken to be free where the system does not say."""
