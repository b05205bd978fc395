"""Candidates of a layer, run as small models on what the layer really takes: error and time.

Errors are of the layer's own output. Times are of the layer alone on one thread, raced against the
original layer alone; what has the same structure on the same data takes the same time, and is timed
once. A layer that is used at several sites takes its first site's time at each of those that take
data of the same dimensions; sites with other data do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxlr.errors import ModelError, UsageError
from onnxlr.layers import Layer
from onnxlr.model import Model
from onnxlr.model.saving import write_model
from onnxlr.plan import Proposal
from onnxlr.planning.alone import Alone, write_alone, write_original
from onnxlr.planning.auto.cache import Cache, key_of
from onnxlr.planning.auto.inputs import Inputs
from onnxlr.planning.auto.trials import Group, Trial, compare, time_trials
from onnxlr.progress import Progress, silent
from onnxlr.runtime import store_arrays
from onnxlr.scratch import Scratch

__all__ = ["Bench", "Measured"]

_DISK = 512 << 20
"""Bytes of small models after which they are measured and deleted, before more are written."""


@dataclass(frozen=True)
class Measured:
    """What a candidate costs and loses.

    Attributes
    ----------
    error
        Relative L2 distance of the layer's output to that of the original layer on real inputs;
        None where these are not known, or where it could not be run.
    seconds, original_seconds
        Time of the layer with the candidate, and as it is; None where it could not be told.
    problem
        Why something could not be measured; None where all was.
    """

    error: float | None
    seconds: float | None
    original_seconds: float | None
    problem: str | None = None


@dataclass(frozen=True)
class Bench:
    """Where candidates are measured.

    Attributes
    ----------
    model
        The original model.
    sizes
        Of symbolic dimensions, where inputs were not seen.
    inputs
        By the names of layers, what they take. The first run is what they are timed on.
    target
        Name of the target.
    cache
        What was measured before, and is measured now.
    machine
        What times and the last bits of outputs depend on, beside ONNX Runtime's version: a value
        that JSON can hold.
    isolate
        Whether models run in child processes.
    progress
        Told of each layer.
    """

    model: Model
    sizes: Mapping[str, int]
    inputs: Mapping[str, Inputs]
    target: str
    cache: Cache
    machine: Any = None
    isolate: bool = True
    progress: Progress = silent

    def measure(self, layer: Layer, proposals: Iterable[Proposal]) -> list[Measured]:
        """Measure one layer's candidates; `measure_all` is faster for several layers."""
        return self.measure_all([(layer, proposals)])[0]

    def measure_all(
        self, groups: Iterable[tuple[Layer, Iterable[Proposal]]]
    ) -> list[list[Measured]]:
        """Measure the candidates of layers, with few processes for all of them.

        Groups and proposals are asked for one after the other, and none is kept: only their small
        models are, on disk, until they were run.

        Parameters
        ----------
        groups
            Layers with their candidates. One that keeps the layer has no error and its time.

        Returns
        -------
        list
            For each layer what its candidates came to, in their order.

        Raises
        ------
        ModelError
            If a weight cannot be read.
        """
        found: list[list[Measured]] = []
        pending = list(groups) if isinstance(groups, Sequence) else groups
        total = len(pending) if isinstance(pending, list) else 0
        batch = _Batch(self)
        try:
            for layer, proposals in pending:
                self.progress("measuring layers", len(found) + len(batch.entries), total)
                batch.enter(layer, proposals)
                if batch.size > _DISK:
                    found += batch.finish()
                    batch = _Batch(self)
            found += batch.finish()
        except BaseException:
            batch.drop()
            raise
        self.progress("measuring layers", len(found), total or len(found))
        return found

    def key(self, kind: str, *parts: object) -> str:
        """Return the key of a measurement on this machine with this ONNX Runtime."""
        return key_of(kind, *parts, ort.__version__, self.machine)


@dataclass(frozen=True)
class _Candidate:
    """Keys of a candidate's measurements, or why there are none; nothing for a layer kept."""

    error: str | None = None
    time: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class _Entry:
    """A layer whose candidates are being measured, with the key of its own time."""

    original: str
    sites: int
    is_real: bool
    candidates: list[_Candidate]


class _Batch:
    """Layers whose small models lie in one folder.

    Attributes
    ----------
    entries
        The layers.
    size
        Bytes of the models.
    compared, timed
        What is to be run. A model is timed only where the error of that key could be measured.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.entries: list[_Entry] = []
        self.size = 0
        self.compared: list[Trial] = []
        self.timed: list[tuple[Trial, str | None]] = []
        self._pending = set[str]()
        self._files = 0
        self._folder = Scratch("onnxlr-bench-")

    def enter(self, layer: Layer, proposals: Iterable[Proposal]) -> None:
        """Write what of a layer was not measured yet."""
        bench = self.bench
        inputs = bench.inputs.get(layer.name, Inputs(missing="they were not looked at"))
        work = _Layer(self, layer, inputs)
        candidates = [work.enter(proposal) for proposal in proposals]
        work.enter_original()
        self.entries.append(_Entry(work.time, _sites(layer), inputs.missing is None, candidates))

    def is_new(self, key: str) -> bool:
        """Return whether something was never measured, and is not about to be."""
        if key in self._pending or self.bench.cache.get(key) is not None:
            return False
        self._pending.add(key)
        return True

    def write(self, alone: Alone) -> str:
        """Write a small model and return its file."""
        folder = self._new("model")
        folder.mkdir()
        write_model(alone.model, folder, "layer.onnx")
        self.size += sum(file.stat().st_size for file in folder.iterdir())
        return str(folder / "layer.onnx")

    def feed(self, alone: Alone) -> str:
        """Write random inputs and return their file."""
        file = self._new("feed.npz")
        store_arrays(file, alone.feed())
        return str(file)

    def _new(self, name: str) -> Path:
        self._files += 1
        return self._folder.path / f"{self._files:06}-{name}"

    def drop(self) -> None:
        """Delete everything; may be called again."""
        self._folder.remove()

    def finish(self) -> list[list[Measured]]:
        """Run everything, delete it, and return what it came to."""
        cache, name, isolate = self.bench.cache, self.bench.model.name, self.bench.isolate
        with self._folder:
            for key, value in compare(self.compared, name, isolate).items():
                cache.put(key, value)
            timed = []
            for trial, check in self.timed:
                failed = cache.get(check) if check is not None else None
                if failed is not None and "problem" in failed:
                    cache.put(trial.key, failed)
                else:
                    timed.append(trial)
            for key, value in time_trials(timed, name, isolate).items():
                cache.put(key, value)
        return [
            [_measured(cache, entry, one) for one in entry.candidates] for entry in self.entries
        ]


class _Layer:
    """A layer whose candidates are being written."""

    def __init__(self, batch: _Batch, layer: Layer, inputs: Inputs) -> None:
        self._batch, self._inputs = batch, inputs
        bench = batch.bench
        self._original = write_original(layer, bench.model, bench.sizes, inputs.data)
        self._structure, self._content = self._original.structure, self._original.content
        self.time = bench.key("seconds", self._structure)

    @cached_property
    def group(self) -> Group:
        """The original and its inputs, written where something is to be run."""
        files = self._inputs.files or (self._batch.feed(self._original),)
        return Group(self._batch.write(self._original), files)

    def enter_original(self) -> None:
        """See to the time of the layer as it is."""
        if self._batch.is_new(self.time):
            trial = Trial(self.group, self.time, self.group.original)
            self._batch.timed.append((trial, None))

    def enter(self, proposal: Proposal) -> _Candidate:
        """See to the error and the time of a candidate."""
        batch = self._batch
        bench = batch.bench
        if proposal.chain is None:
            return _Candidate()
        try:
            alone = write_alone(proposal, bench.model, bench.target, bench.sizes, self._inputs.data)
        except (UsageError, ModelError) as error:
            return _Candidate(problem=str(error))
        error_key = bench.key("error", alone.content, self._content, self._inputs.content)
        time_key = bench.key("ratio", alone.structure, self._structure)
        wanted = batch.is_new(error_key), batch.is_new(time_key)
        if any(wanted):
            file = batch.write(alone)
            if wanted[0]:
                batch.compared.append(Trial(self.group, error_key, file))
            if wanted[1]:
                batch.timed.append((Trial(self.group, time_key, file), error_key))
        return _Candidate(error_key, time_key)


def _measured(cache: Cache, entry: _Entry, candidate: _Candidate) -> Measured:
    """Return what the cache knows of a candidate."""
    original: Mapping[str, Any] = cache.get(entry.original) or {}
    before = original["seconds"] * entry.sites if "seconds" in original else None
    if candidate.problem is not None:
        return Measured(None, None, before, candidate.problem)
    if candidate.error is None or candidate.time is None:
        return Measured(0.0, before, before, original.get("problem"))
    error: Mapping[str, Any] = cache.get(candidate.error) or {}
    time: Mapping[str, Any] = cache.get(candidate.time) or {}
    problems = [found["problem"] for found in (error, time, original) if "problem" in found]
    after = before * time["ratio"] if before is not None and "ratio" in time else None
    distance = error.get("error") if entry.is_real else None
    return Measured(distance, after, before, problems[0] if problems else None)


def _sites(layer: Layer) -> int:
    """Return how many sites of a layer take as long as the first, as far as is known."""
    first = layer.sites[0]
    return sum(
        site.data_dims == first.data_dims and site.layout is first.layout for site in layer.sites
    )
