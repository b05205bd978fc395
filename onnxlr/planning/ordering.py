"""The fastest order of contraction of each layer, found by running the layer alone in each.

Factors that give the same weight in several orders take different times, which follow from shapes
and caches in no simple way. Each order becomes a model of this one layer; these run in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from onnxlr.calibration import Sources
from onnxlr.evidence import Evidence, Knowledge
from onnxlr.layers import read_weight
from onnxlr.lowering import LoweringRefusedError
from onnxlr.methods import Options, Ordered, Setting, find_method, fit_as_told
from onnxlr.model import Model
from onnxlr.model.saving import write_model
from onnxlr.plan import Proposal
from onnxlr.planning.alone import Alone, sizes_of_symbols, write_alone
from onnxlr.progress import Progress
from onnxlr.rewriting import adjusted, emitted_bytes, released_bytes
from onnxlr.runtime import Latency, Race, measure_latency, store_arrays
from onnxlr.scratch import scratch

if TYPE_CHECKING:
    from onnxlr.planning.request import Request

__all__ = ["OrderTask", "in_fastest_order"]

_MOST_HELD = 1 << 28
"""Bytes of chains that wait for their races at a time; layers alike race once within them."""

_NOISE = 0.05
"""Part of its time by which another order must be faster than the first to be taken."""


@dataclass(frozen=True)
class OrderTask:
    """A model whose layers may have several orders.

    Attributes
    ----------
    model
        The opened model.
    request, knowledge
        What its layers were fitted by.
    sources
        With the calibration data, whose first run says how large symbolic dimensions are.
    isolate, progress
        As in `onnxlr.rewrite`.
    """

    model: Model
    request: Request
    knowledge: Knowledge
    sources: Sources
    isolate: bool
    progress: Progress

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of symbolic dimensions."""
        return sizes_of_symbols(self.model, self.sources)

    def versions(self, proposal: Proposal) -> list[Proposal]:
        """Return a fitted layer in each order that can be written, the usual one first.

        The others come as they are without knowledge of the inputs, which takes as long to run.
        None where there is no choice.
        """
        choice, layer = proposal.choice, proposal.layer
        method = find_method(choice.method)
        if proposal.chain is None or not isinstance(method, Ordered):
            return []
        setting = Setting.for_layer(layer, choice.encoding, self.request.seed)
        orders = method.orders(choice.options, setting)
        if not orders:
            return []
        setting = replace(setting, format=replace(setting.format, rounding="nearest"))
        weight = read_weight(self.model, layer)
        found = [replace(proposal, choice=replace(choice, options=orders[0]))]
        for options in orders[1:]:
            chain = method.factorize(weight, options, setting)
            other = replace(choice, options=options)
            found.append(replace(proposal, choice=other, chain=chain, adjustments=()))
        return found

    def fitted(self, proposal: Proposal, options: Options, evidence: Evidence) -> Proposal:
        """Return a layer fitted in another order, by the same recipe."""
        layer, choice = proposal.layer, replace(proposal.choice, options=options)
        setting = Setting.for_layer(layer, choice.encoding, self.request.seed)
        weight, method = read_weight(self.model, layer), find_method(choice.method)
        fit = fit_as_told(method, weight, options, setting, evidence, choice.recipe)
        seen = self.knowledge.of(layer).fit
        return replace(
            proposal,
            choice=choice,
            chain=fit.chain,
            adjustments=adjusted(layer, fit, choice.activations, seen),
            error=fit.error,
        )


@dataclass
class _Races:
    """Small models in a folder; layers of one structure share them."""

    work: OrderTask
    folder: Path
    races: list[Race] = field(default_factory=list)
    numbers: dict[tuple[str, ...], int] = field(default_factory=dict)

    def enter(self, models: Sequence[Alone]) -> int | None:
        """Return the number of the race between models; None where they are all one."""
        key = tuple(alone.structure for alone in models)
        if len(set(key)) == 1:
            return None
        if key not in self.numbers:
            number = self.numbers[key] = len(self.races)
            files = [f"race-{number:06}-{place}.onnx" for place in range(len(models))]
            for alone, file in zip(models, files, strict=True):
                write_model(alone.model, self.folder, file)
            feed = self.folder / f"race-{number:06}.npz"
            store_arrays(feed, models[0].feed())
            self.races.append(Race([str(self.folder / file) for file in files], [str(feed)]))
        return self.numbers[key]


@dataclass(frozen=True)
class _Entry:
    """A layer, its orders, and which race says how long they take."""

    first: Proposal
    orders: tuple[Options, ...]
    race: int | None
    data: str

    def chosen(self, latencies: Sequence[Latency]) -> Options:
        """Return the fastest order, the first unless another is faster beyond noise."""
        best = min(range(len(self.orders)), key=lambda place: latencies[place].ratio)
        return self.orders[best if latencies[best].ratio < 1 - _NOISE else 0]


def in_fastest_order(
    work: OrderTask, proposals: Iterable[Proposal], evidence: Evidence | None = None
) -> Iterator[Proposal]:
    """Yield the proposals, each in its fastest order, which its options then name.

    Layers whose options name an order, or that have one only, stay as they are. Where an order
    cannot be run, the usual one is kept.

    Parameters
    ----------
    evidence
        What the layers were fitted by, instead of what `work.knowledge` has.

    Raises
    ------
    RuntimeFailureError
        If the process that times the models dies.
    """
    if not isinstance(find_method(work.request.method), Ordered):
        yield from proposals
        return
    for fitted in _held(proposals):
        yield from _raced(work, fitted, evidence)


def _held(proposals: Iterable[Proposal]) -> Iterator[list[Proposal]]:
    """Yield proposals, as many at a time as memory is to hold."""
    held: list[Proposal] = []
    size = 0
    for proposal in proposals:
        held.append(proposal)
        size += 0 if proposal.chain is None else proposal.chain.cost.bytes
        if size >= _MOST_HELD:
            yield held
            held, size = [], 0
    if held:
        yield held


def _raced(
    work: OrderTask, fitted: Sequence[Proposal], evidence: Evidence | None
) -> Iterator[Proposal]:
    """Yield proposals in the orders that races between their models say are fastest."""
    with scratch("onnxlr-orders-") as folder:
        races = _Races(work, folder)
        entries = [_enter(work, races, proposal) for proposal in fitted]
        latencies: list[list[Latency] | str] = []
        if races.races:
            words = f"measuring orders of contraction, {len(races.races)} races"
            work.progress(words, 0, 1)
            latencies = measure_latency(races.races, work.model.name, work.isolate)
            work.progress(words, 1, 1)
    for proposal, entry in zip(fitted, entries, strict=True):
        if entry is None:
            yield proposal
        elif entry.race is None:
            yield entry.first
        else:
            known = work.knowledge.of(proposal.layer) if evidence is None else evidence
            yield _decided(work, entry, latencies[entry.race], known)


def _enter(work: OrderTask, races: _Races, proposal: Proposal) -> _Entry | None:
    """Return the entry of a layer, None where there is no choice."""
    versions = work.versions(proposal)
    if not versions:
        return None
    first, *others = versions
    models = [write_alone(first, work.model, work.request.target, work.sizes)]
    orders = [first.choice.options]
    for other in others:
        try:
            models.append(write_alone(other, work.model, work.request.target, work.sizes))
        except LoweringRefusedError:
            continue  # an order that cannot be written is none to choose
        orders.append(other.choice.options)
    data = "×".join(map(str, models[0].shape))
    return _Entry(first, tuple(orders), races.enter(models), data)


def _decided(
    work: OrderTask, entry: _Entry, latencies: list[Latency] | str, evidence: Evidence
) -> Proposal:
    """Return a layer in the order that races say is fastest."""
    where = f"on data of {entry.data}, one thread"
    if isinstance(latencies, str):
        reason = f"the usual order: how long orders take cannot be told {where}: {latencies}"
        return _with_reason(entry.first, reason)
    options, count = entry.chosen(latencies), len(entry.orders)
    if options == entry.orders[0]:
        reason = f"of {count} orders none is faster than the usual one by {_NOISE:.0%} {where}"
        return _with_reason(entry.first, reason)
    found = work.fitted(entry.first, options, evidence)
    if emitted_bytes(found, work.model, work.request.target) >= released_bytes(found.layer):
        return _with_reason(entry.first, "the usual order: the fastest is larger than the layer")
    return _with_reason(found, f"the fastest of {count} orders {where}")


def _with_reason(proposal: Proposal, reason: str) -> Proposal:
    """Return a proposal that says why; without times, which are others in each run."""
    return replace(proposal, choice=replace(proposal.choice, reason=reason))
