"""The plan that a careful engineer would have found: candidates, measurements, the exact choice."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnxlr.calibration import Sources, gather
from onnxlr.calibration.data import load_function
from onnxlr.calibration.observation import opened_file
from onnxlr.errors import OnnxlrWarning
from onnxlr.evidence import Knowledge
from onnxlr.layers import Layer, find_layers, layer_keys
from onnxlr.model import Model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.alone import sizes_of_symbols
from onnxlr.planning.auto.building import Whole, write_proposals
from onnxlr.planning.auto.cache import Cache, key_of, machine_key
from onnxlr.planning.auto.candidates import Workshop
from onnxlr.planning.auto.contest import Contest
from onnxlr.planning.auto.decision import Choices, Deciding, Decision, menu_of
from onnxlr.planning.auto.feeds import FeedFiles
from onnxlr.planning.auto.inputs import Inputs, capture
from onnxlr.planning.auto.measuring import Bench
from onnxlr.planning.auto.reasons import chosen_because, kept_because, rejected
from onnxlr.planning.auto.report import Findings
from onnxlr.planning.auto.request import AutoRequest
from onnxlr.planning.auto.sensitivities import Trial, measure_damages, sensitivities
from onnxlr.planning.auto.table import Entry, Row, Tabulation
from onnxlr.planning.request import Request
from onnxlr.planning.uniform import kept
from onnxlr.progress import Progress
from onnxlr.version import VERSION

__all__ = ["Automatic", "plan_automatically"]

_TRIAL_ERROR = 0.1
"""Error of a layer that its sensitivity is best measured with: neither noise nor ruin."""


@dataclass(frozen=True)
class Automatic:
    """What the planner decided.

    Attributes
    ----------
    proposals
        One for each layer in graph order.
    knowledge
        What the layers were fitted by.
    meant
        Names of the layers that it was about.
    findings
        What was measured and compared.
    ready
        File of a model that is better than the plan's; None where the plan's is the best.
    folder
        Keeps files until this is gone.
    """

    proposals: Iterator[Proposal]
    knowledge: Knowledge
    meant: tuple[str, ...]
    findings: Findings
    ready: Path | None
    folder: tempfile.TemporaryDirectory[str]


def plan_automatically(
    model: Model,
    request: AutoRequest,
    sources: Sources,
    reopen: Callable[[], Model],
    isolate: bool,
    progress: Progress,
) -> Automatic:
    """Choose among the candidates of all layers by what was measured of them.

    Raises
    ------
    UsageError, DataError
        If the request contradicts itself, a pattern matches no layer, or a source cannot be used.
    ModelError
        If the model cannot be run.
    """
    request.check()
    layers = find_layers(model)
    request.selection.check(layers)
    folder = tempfile.TemporaryDirectory(prefix="onnxlr-auto-")
    with Cache(request.cache) as cache:
        work = _Work(model, request, sources, reopen, isolate, progress, Path(folder.name), cache)
        return work.carry_out(layers, folder)


@dataclass
class _Work:
    """A model in the planner's hands."""

    model: Model
    request: AutoRequest
    sources: Sources
    reopen: Callable[[], Model]
    isolate: bool
    progress: Progress
    folder: Path
    cache: Cache

    def carry_out(
        self, layers: Sequence[Layer], folder: tempfile.TemporaryDirectory[str]
    ) -> Automatic:
        """Decide, and return what was decided."""
        for limit in self.request.goal.limits:
            if limit.is_function:
                load_function(limit.measure)  # refused now rather than after minutes
        usual = Request(selection=self.request.selection)
        left = {layer.name: kept(layer, usual) for layer in layers}
        meant = [layer for layer in layers if left[layer.name] is None]
        keys = layer_keys(self.model, layers, meant)
        knowledge = gather(self.model, layers, self.sources, self.isolate, self.progress, meant)
        workshop = self._workshop(knowledge)
        feeds = FeedFiles.store(self.folder / "feeds", self.model, self.sources)
        table = self._tabulation(workshop, meant, keys, feeds)
        rows = table.rows(meant)
        with self._whole(feeds) as whole:
            choices = self._choices(rows, workshop, feeds, whole)
            contest = self._contest(whole, feeds)
            deciding = Deciding(
                choices,
                contest,
                self.request.goal,
                lambda chosen, place: self._build(choices.entries(chosen), workshop, place),
                self.folder,
                self.cache,
                self.request.stock,
            )
            decide = deciding.decide if feeds.compared else deciding.decide_unseen
            decision = decide(sum(len(row.entries) for row in rows), table.from_cache)
            ready = None if decision.ready is None else contest.file(decision.ready)
        return Automatic(
            self._proposals(layers, left, choices, workshop, decision),
            knowledge,
            tuple(layer.name for layer in meant),
            decision.findings,
            ready,
            folder,
        )

    def _choices(
        self, rows: Sequence[Row], workshop: Workshop, feeds: FeedFiles, whole: Whole
    ) -> Choices:
        """Return what there is to choose, as numbers."""
        base = self._key(feeds)
        seconds = self._seconds(whole, rows, base)
        weights = self._sensitivities(rows, workshop, feeds, base)
        return menu_of(rows, weights, whole.bytes, seconds)

    def _key(self, feeds: FeedFiles) -> str:
        """Return what all measurements of whole models depend on."""
        return key_of(VERSION, self.model.sha256, feeds.content, machine_key(), self.request.target)

    def _contest(self, whole: Whole, feeds: FeedFiles) -> Contest:
        return Contest(
            whole,
            self.request.goal,
            feeds.fitted,
            self.folder / "stock",
            self.cache,
            key_of(self._key(feeds), [repr(limit) for limit in self.request.goal.limits]),
            self.progress,
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
            seen = capture(self.model, meant, feeds.captured, place, self.isolate)
        machine = machine_key()
        sizes = sizes_of_symbols(self.model, self.sources)
        bench = Bench(
            self.model, sizes, seen, self.request.target, self.cache, machine, self.isolate
        )
        return Tabulation(workshop, bench, self.cache, keys, machine, self.isolate, self.progress)

    def _whole(self, feeds: FeedFiles) -> Whole:
        original = opened_file(self.model, self.folder)
        size = original.stat().st_size
        if self.model.path is not None:
            files = (self.model.directory / name for name in self.model.external_files())
            size += sum(file.stat().st_size for file in files)
        return Whole(
            original,
            size,
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
                self.model, self.reopen, trials, feeds.tried, self.isolate, self.progress
            )
            self.cache.put(key, damages)
        return sensitivities(trials, damages)

    def _build(self, entries: Sequence[Entry | None], workshop: Workshop, place: Path) -> Path:
        """Write the model that is made of what was chosen."""
        proposals = (workshop.proposal(entry.candidate) for entry in entries if entry is not None)
        return write_proposals(self.reopen(), proposals, self.request.target, place, "model.onnx")

    def _proposals(
        self,
        layers: Sequence[Layer],
        left: Mapping[str, Proposal | None],
        choices: Choices,
        workshop: Workshop,
        decision: Decision,
    ) -> Iterator[Proposal]:
        """Yield what was decided for each layer, with the reasons."""
        numbers = {row.layer.name: number for number, row in enumerate(choices.rows)}
        for position, layer in enumerate(layers):
            self.progress("factorizing", position, len(layers))
            alone = left[layer.name]
            yield alone or _decided(choices, numbers[layer.name], decision, workshop)
        self.progress("factorizing", len(layers), len(layers))


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


def _decided(choices: Choices, number: int, decision: Decision, workshop: Workshop) -> Proposal:
    """Return what was decided for a layer, and why."""
    row, options, items = choices.rows[number], choices.options[number], choices.menu.layers[number]
    place = decision.chosen[number]
    known = {
        row.entries.index(option): item
        for option, item in zip(options, items, strict=True)
        if option is not None
    }
    others = rejected(row, items[place], known)
    entry = options[place]
    if entry is None:
        reason = kept_because(row)
        if decision.ready is not None:
            reason = f"{decision.ready} makes a better model of the whole"
        return Proposal(row.layer, Choice("keep", reason=reason, rejected=others))
    proposal = workshop.proposal(entry.candidate)
    reason = chosen_because(row, entry, items[place])
    choice = replace(proposal.choice, reason=reason, rejected=others)
    return replace(proposal, choice=choice)
