"""Measures what a decision is made from: candidates, how sensitive layers are, the original."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import log, prod
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxlr.calibration import Sources, gather
from onnxlr.calibration.data import load_function
from onnxlr.calibration.observation import opened_file
from onnxlr.errors import OnnxlrWarning, UsageError
from onnxlr.evidence import Knowledge
from onnxlr.layers import Layer, find_layers, layer_keys
from onnxlr.model import Model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.alone import sizes_of_symbols
from onnxlr.planning.auto.building import Whole
from onnxlr.planning.auto.cache import Cache, key_of, machine_key
from onnxlr.planning.auto.candidates import Workshop
from onnxlr.planning.auto.decision import Choices, menu_of
from onnxlr.planning.auto.feeds import FeedFiles
from onnxlr.planning.auto.inputs import Inputs, capture
from onnxlr.planning.auto.measuring import Bench
from onnxlr.planning.auto.prepared import Prepared
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.auto.sensitivities import Trial, measure_damages, sensitivities
from onnxlr.planning.auto.table import Row, Tabulation
from onnxlr.planning.request import Request
from onnxlr.planning.uniform import kept
from onnxlr.progress import Progress
from onnxlr.version import VERSION

__all__ = ["prepare"]

_TRIAL_ERROR = 0.1
"""Error of a layer that its sensitivity is best measured with: neither noise nor ruin."""

_LARGEST = 2_000_000_000
"""Bytes of a weight from which on a layer is left alone: no message holds 2 GB."""


@contextmanager
def prepare(
    model: Model,
    request: AutoRequest,
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool,
    progress: Progress,
    folder: Path,
) -> Iterator[Prepared]:
    """Measure all that decisions are made from.

    Raises
    ------
    UsageError, DataError
        If the request contradicts itself, a pattern matches no layer, or a source cannot be used.
    ModelError
        If the model cannot be run.
    """
    request.check()
    if sources.importance is not None:
        raise UsageError(
            "importance is given, but method auto does not use it: give a method, and --metric "
            "fisher, fisher-rows or kfac"
        )
    layers = find_layers(model)
    request.selection.check(layers)
    for limit in request.goal.limits:
        if limit.is_function:
            load_function(limit.measure)  # refused now rather than after minutes
            if sources.calibration is None:
                raise UsageError(
                    f"drop '{limit.text}' is about models that are measured on calibration data, "
                    "and there is none: give --calibration"
                )
    with Cache(request.cache) as cache:
        work = _Preparation(model, request, sources, reopen, isolate, progress, folder, cache)
        found = work.carry_out(layers)
        with found.whole:
            yield found


@dataclass
class _Preparation:
    """Measurements under way, and what they are made with.

    Attributes
    ----------
    model
        The opened model.
    request, sources, reopen, isolate, progress
        As `prepare` takes them.
    folder
        Of everything that is written meanwhile.
    cache
        What was measured before.
    """

    model: Model
    request: AutoRequest
    sources: Sources
    reopen: Callable[[], Model]
    isolate: bool
    progress: Progress
    folder: Path
    cache: Cache

    def carry_out(self, layers: Sequence[Layer]) -> Prepared:
        """Measure, and return what there is to choose among."""
        usual = Request(selection=self.request.selection)
        left = {layer.name: kept(layer, usual) or _too_large(layer) for layer in layers}
        meant = [layer for layer in layers if left[layer.name] is None]
        keys = layer_keys(self.model, layers, meant)
        knowledge = gather(self.model, layers, self.sources, self.isolate, self.progress, meant)
        workshop = self._workshop(knowledge)
        feeds = FeedFiles.store(self.folder / "feeds", self.model, self.sources)
        table = self._tabulation(workshop, meant, keys, feeds)
        rows = table.rows(meant)
        whole = self._whole(feeds)
        return Prepared(
            layers,
            meant,
            left,
            knowledge,
            workshop,
            feeds,
            whole,
            self._choices(rows, workshop, feeds, whole),
            sum(len(row.entries) for row in rows),
            table.from_cache,
            self.reopen,
            self.request.target,
            self.progress,
            self.folder,
            self.cache,
            self._key(workshop, feeds),
        )

    def _choices(
        self, rows: Sequence[Row], workshop: Workshop, feeds: FeedFiles, whole: Whole
    ) -> Choices:
        """Return what there is to choose, as numbers."""
        base = self._key(workshop, feeds)
        seconds = self._seconds(whole, rows, base)
        weights = self._sensitivities(rows, workshop, feeds, base)
        return menu_of(rows, weights, whole.bytes, seconds)

    def _key(self, workshop: Workshop, feeds: FeedFiles) -> str:
        """Return what all measurements of whole models depend on."""
        statistics = workshop.knowledge.statistics
        return key_of(
            VERSION,
            self.model.sha256,
            None if statistics is None else statistics.sha256,
            feeds.content,
            self.sources.mask,
            machine_key(),
            self.request.target,
            self.request.seed,
        )

    def _workshop(self, knowledge: Knowledge) -> Workshop:
        judged = self.sources.calibration is not None
        if not judged:
            warnings.warn(
                "there is no calibration data to judge by, so that only what is safe without it "
                "was considered: give --calibration for all methods",
                OnnxlrWarning,
                stacklevel=2,
            )
        place = self.folder / "candidates"
        place.mkdir()
        return Workshop(self.model, self.request, knowledge, place, judged)

    def _tabulation(
        self,
        workshop: Workshop,
        meant: Sequence[Layer],
        keys: Mapping[str, str],
        feeds: FeedFiles,
    ) -> Tabulation:
        seen: dict[str, Inputs] = {}
        if feeds.captured:
            place = self.folder / "inputs"
            place.mkdir()
            mask = self.sources.mask
            seen = capture(self.model, meant, feeds.captured, place, self.isolate, mask=mask)
        machine = machine_key()
        sizes = sizes_of_symbols(self.model, self.sources)
        bench = Bench(
            self.model, sizes, seen, self.request.target, self.cache, machine, self.isolate
        )
        return Tabulation(workshop, bench, self.cache, keys, machine, self.isolate, self.progress)

    def _whole(self, feeds: FeedFiles) -> Whole:
        original = opened_file(self.model, self.folder)
        return Whole(
            original,
            self.model.stored_bytes,
            self.model.name,
            feeds.compared,
            feeds.timed,
            self.request.goal.measured,
            self.isolate,
        )

    def _seconds(self, whole: Whole, rows: Sequence[Row], base: str) -> float:
        """Return how long the original takes on what candidates were timed on."""
        alone = sum(row.seconds for row in rows)
        if not whole.timed:
            return max(alone, 1e-9)
        key = key_of("seconds", base)
        known = self.cache.get(key)
        if known is None:
            times = replace(whole, timed=whole.timed[:1]).race([])
            if isinstance(times, str):
                return max(alone, 1e-9)
            known = times[0].seconds
            self.cache.put(key, known)
        return float(known)

    def _sensitivities(
        self, rows: Sequence[Row], workshop: Workshop, feeds: FeedFiles, base: str
    ) -> dict[str, float]:
        """Return by layer how much the outputs suffer from its error."""
        trials = [trial for row in rows if (trial := _trial_of(row, workshop)) is not None]
        if not trials or not feeds.tried:
            return {row.layer.name: 1.0 for row in rows}
        key = key_of("damages", base, [(t.layer.name, t.error) for t in trials])
        damages = self.cache.get(key)
        if damages is None:
            damages = measure_damages(
                self.model,
                self.reopen,
                trials,
                feeds.tried,
                self.sources.mask,
                self.isolate,
                self.progress,
            )
            self.cache.put(key, damages)
        return sensitivities(trials, damages)


def _too_large(layer: Layer) -> Proposal | None:
    """Return the proposal to keep a layer that no model of its own can be written of."""
    size = 0 if layer.shape is None else prod(layer.shape) * layer.dtype.itemsize
    if size < _LARGEST:
        return None
    reason = (
        f"its weight takes {size:,} bytes, and method auto measures layers of less than "
        f"{_LARGEST:,}: give a method and --layers '{layer.name}'"
    )
    return Proposal(layer, Choice("keep", reason=reason))


def _trial_of(row: Row, workshop: Workshop) -> Trial | None:
    """Return the candidate of a layer that its sensitivity is best measured with."""
    usable = [
        (entry, entry.error)
        for entry in row.possible
        if entry.candidate.choice.activations == "float" and entry.error
    ]
    if not usable:
        return None
    entry, error = min(usable, key=lambda pair: abs(log(pair[1] / _TRIAL_ERROR)))
    chain_of = workshop.proposal

    def weight() -> npt.NDArray[Any]:
        chain = chain_of(entry.candidate).chain
        if chain is None:
            raise ValueError(f"layer '{row.layer.name}' has no chain")
        return chain.reconstruct()

    return Trial(row.layer, weight, error)
