"""Every candidate of every layer with what it takes: fitted and measured, or from the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from onnxlr.layers import Layer
from onnxlr.plan import Proposal
from onnxlr.planning.auto.cache import Cache, key_of
from onnxlr.planning.auto.candidates import Candidate, Workshop
from onnxlr.planning.auto.measuring import Bench, Measured
from onnxlr.planning.request import Request
from onnxlr.planning.selection import Selection
from onnxlr.progress import Progress
from onnxlr.rewriting import released_bytes
from onnxlr.version import VERSION

__all__ = ["Entry", "Row", "Tabulation"]


@dataclass(frozen=True)
class Entry:
    """A candidate with its measurements.

    Attributes
    ----------
    candidate
        The candidate.
    measured
        What it takes; None where it cannot be had.
    """

    candidate: Candidate
    measured: Measured | None

    @property
    def error(self) -> float | None:
        """Relative error of the layer's outputs, as measured, or else as the fit knows it."""
        own = None if self.measured is None else self.measured.error
        return self.candidate.fit_error if own is None else own

    @property
    def problem(self) -> str | None:
        """Why it cannot be chosen; None if it can."""
        if self.candidate.refused is not None:
            return self.candidate.refused
        if self.measured is None or self.measured.seconds is None:
            return (self.measured and self.measured.problem) or "its time could not be measured"
        return None


@dataclass(frozen=True)
class Row:
    """A layer and what it could become.

    Attributes
    ----------
    layer
        The layer.
    size, seconds
        What it takes as it is; 0 seconds where that could not be measured.
    entries
        Its candidates.
    """

    layer: Layer
    size: int
    seconds: float
    entries: tuple[Entry, ...]

    @property
    def possible(self) -> tuple[Entry, ...]:
        """The candidates that can be chosen."""
        return tuple(entry for entry in self.entries if entry.problem is None)


@dataclass
class Tabulation:
    """Fills the table.

    Attributes
    ----------
    workshop, bench
        What fits candidates, and what measures them.
    cache
        Measurements by key.
    keys
        Content of each layer's weight, by the layer's name.
    machine
        What times depend on.
    isolate, progress
        As in `onnxlr.rewrite`.
    from_cache
        Candidates that were not measured in this run.
    """

    workshop: Workshop
    bench: Bench
    cache: Cache
    keys: Mapping[str, str]
    machine: Any
    isolate: bool
    progress: Progress
    from_cache: int = 0
    _found: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def rows(self, layers: Sequence[Layer]) -> list[Row]:
        """Return a row for each layer, fitted and measured layer by layer."""
        asked = {layer.name: self.workshop.requests(layer) for layer in layers}
        missing = []
        for layer in layers:
            for request in asked[layer.name]:
                record = self.cache.get(self._key(layer, request))
                if record is None:
                    missing.append((layer, request))
                else:
                    self._restore(layer, request, record)
        self.from_cache = sum(map(len, asked.values())) - len(missing)
        self._measure(layers, missing)
        return [self._row(layer, asked[layer.name]) for layer in layers]

    def _measure(self, layers: Sequence[Layer], missing: Sequence[tuple[Layer, Request]]) -> None:
        """Fit and measure what is not known, a few layers at a time, and keep it."""
        wanted: dict[str, list[Request]] = {}
        for layer, request in missing:
            wanted.setdefault(layer.name, []).append(request)
        # Layers of one size together: no process waits long for another.
        by_name = {layer.name: layer for layer in layers}
        order = sorted(wanted, key=lambda name: released_bytes(by_name[name]), reverse=True)
        for start in range(0, len(order), _TOGETHER):
            batch = [(by_name[name], wanted[name]) for name in order[start : start + _TOGETHER]]
            fitted = self.workshop.fit(
                batch, self.isolate, partial(self._fitting, start, len(order))
            )
            self.progress("measuring candidates", start, len(order))
            measured = self.bench.measure_all(
                [
                    (layer, self._proposals(row))
                    for (layer, _), row in zip(batch, fitted, strict=True)
                ]
            )
            for row, results in zip(fitted, measured, strict=True):
                self._keep(row, results)
        self.progress("measuring candidates", 1, 1)

    def _fitting(self, before: int, total: int, task: str, done: int, _: int) -> None:
        self.progress(task, before + done, total)

    def _proposals(self, candidates: Sequence[Candidate]) -> Iterator[Proposal]:
        """Yield the layer as it is, then what can be had of its candidates."""
        for candidate in candidates:
            if candidate.refused is None:
                yield self.workshop.proposal(candidate)

    def _keep(self, candidates: Sequence[Candidate], results: Sequence[Measured]) -> None:
        remaining = iter(results)
        for candidate in candidates:
            measured = next(remaining) if candidate.refused is None else None
            self._add(Entry(candidate, measured))
            record = candidate.record()
            record["measured"] = None if measured is None else vars(measured)
            self.cache.put(self._key(candidate.layer, candidate.request), record)

    def _restore(self, layer: Layer, request: Request, record: Mapping[str, Any]) -> None:
        measured = record["measured"]
        candidate = self.workshop.restored(layer, request, dict(record))
        self._add(Entry(candidate, None if measured is None else Measured(**measured)))

    def _add(self, entry: Entry) -> None:
        self._found[entry.candidate.layer.name, repr(entry.candidate.request)] = entry

    def _row(self, layer: Layer, requests: Sequence[Request]) -> Row:
        entries = tuple(self._found[layer.name, repr(request)] for request in requests)
        known = [e.measured.original_seconds for e in entries if e.measured is not None]
        seconds = next((value for value in known if value is not None), 0.0)
        return Row(layer, released_bytes(layer), seconds, entries)

    def _key(self, layer: Layer, request: Request) -> str:
        statistics = self.workshop.knowledge.statistics
        inputs = self.bench.inputs.get(layer.name)
        return key_of(
            "candidate",
            VERSION,
            self.workshop.model.sha256,  # its opset says how layers can be written
            self.keys.get(layer.name, layer.name),
            [site.node.op_type for site in layer.sites],
            None if statistics is None else statistics.sha256,
            repr(replace(request, selection=Selection())),
            None if inputs is None else inputs.content,
            self.machine,
        )


_TOGETHER = 8
"""Layers that are measured together: their processes start once, and as many are lost at most when
a run is interrupted."""
