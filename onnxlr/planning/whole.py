"""The whole model judges between versions of a layer: what its own error says can be wrong.

A fit may lower the error of a layer's outputs by what the rest of the model makes nothing of, and
pay for it with what counts. Layers that do the most damage to the model's outputs are fitted again
in a plainer version of the same size; whichever damages the outputs less is taken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from onnxlr.calibration import Sources
from onnxlr.errors import OnnxlrWarning, UsageError
from onnxlr.evidence import Knowledge
from onnxlr.layers import read_weight
from onnxlr.methods import Options, Setting, find_method, fit_as_told
from onnxlr.methods.method import Versioned
from onnxlr.model import Model
from onnxlr.model.saving import write_model
from onnxlr.plan import Proposal
from onnxlr.planning.opened import OpenedWeight, open_weights
from onnxlr.planning.sensitivity import Sensitivity, store_feeds
from onnxlr.progress import Progress
from onnxlr.rewriting import adjusted
from onnxlr.runtime import run_task, store_arrays
from onnxlr.scratch import scratch

if TYPE_CHECKING:
    from onnxlr.planning.request import Request

__all__ = ["WholeTask", "judge_by_whole"]

_SHARE = 0.8
"""Part of all damage that the layers which are fitted again do together, the worst first."""

_MOST = 8
"""One layer in so many is fitted again at most, one at least: fits take long."""

_BY_OUTPUTS = (None, "frobenius", "activation")
"""Metrics whose aim is outputs; by importance, outputs are not what is to be kept."""


@dataclass(frozen=True)
class WholeTask:
    """A model whose outputs are to judge.

    Attributes
    ----------
    model
        The opened model.
    request, knowledge
        What its layers were fitted by.
    sources
        With the calibration data to run.
    reopen
        Opens the same model anew.
    isolate, progress
        As in `onnxlr.rewrite`.
    """

    model: Model
    request: Request
    knowledge: Knowledge
    sources: Sources
    reopen: Callable[[], Model]
    isolate: bool
    progress: Progress

    @property
    def judges(self) -> bool:
        """Whether there can be versions to judge between."""
        has_versions = isinstance(find_method(self.request.method), Versioned)
        return has_versions and self.request.metric in _BY_OUTPUTS

    def plainer(self, proposal: Proposal) -> Options | None:
        """Return the options of a plainer version of a fitted layer, None if there is none."""
        choice, layer = proposal.choice, proposal.layer
        method = find_method(choice.method)
        if proposal.chain is None or not isinstance(method, Versioned):
            return None
        setting = Setting.for_layer(layer, choice.encoding, self.request.seed)
        return method.plainer(choice.options, setting)

    def fit_plainer(self, proposal: Proposal) -> Proposal:
        """Return the plainer version of a layer, by the same recipe.

        Raises
        ------
        UsageError
            If it cannot be fitted.
        """
        layer, options = proposal.layer, self.plainer(proposal)
        if options is None:
            raise UsageError(f"layer '{layer.name}' has no plainer version")
        choice = replace(proposal.choice, options=options)
        evidence = self.knowledge.of(layer)
        setting = Setting.for_layer(layer, choice.encoding, self.request.seed)
        weight, method = read_weight(self.model, layer), find_method(choice.method)
        fit = fit_as_told(method, weight, options, setting, evidence, choice.recipe)
        return replace(
            proposal,
            choice=choice,
            chain=fit.chain,
            adjustments=adjusted(layer, fit, choice.activations, evidence.fit),
            error=fit.error,
        )


def judge_by_whole(work: WholeTask, proposals: Iterable[Proposal]) -> Iterator[Proposal]:
    """Yield the proposals, some of them in the plainer version, where the whole model says so.

    Without calibration data to run, they are what they were. Layers in functions are as well.

    Raises
    ------
    RuntimeFailureError
        If the model cannot be run.
    """
    if not work.judges:
        yield from proposals
        return
    if work.sources.calibration is None:
        has_versions = False
        for proposal in proposals:
            has_versions = has_versions or work.plainer(proposal) is not None
            yield proposal
        if has_versions and work.sources.statistics is not None:
            _warn(work)
        return
    fitted = list(proposals)
    opened = [p for p in fitted if p.chain is not None and not p.layer.in_function]
    versions: Mapping[str, Proposal] = {}
    if any(work.plainer(proposal) is not None for proposal in opened):
        with scratch("onnxlr-whole-") as folder:
            versions = _plainer_ones(work, opened, _Bench.of(work, opened, folder))
    yield from (versions.get(proposal.layer.name, proposal) for proposal in fitted)


def _warn(work: WholeTask) -> None:
    warnings.warn(
        f"method {work.request.method} was fitted by statistics alone, so that each layer's own "
        "error had the last word: give --calibration for the whole model's outputs to judge as "
        "well",
        OnnxlrWarning,
        stacklevel=2,
    )


@dataclass(frozen=True)
class _Bench:
    """A model with weights for inputs, in a folder that versions of its layers are stored in."""

    work: WholeTask
    folder: Path
    inputs: Mapping[str, OpenedWeight]
    weights: tuple[str, ...]
    feeds: tuple[str, ...]

    @classmethod
    def of(cls, work: WholeTask, proposals: Sequence[Proposal], folder: Path) -> _Bench:
        corrected = {p.layer.name for p in proposals if p.choice.bias_correction}
        layers = [proposal.layer for proposal in proposals]
        opened, inputs = open_weights(work.reopen(), layers, corrected)
        write_model(opened, folder, "opened.onnx")
        weights = []
        for number, layer in enumerate(layers):
            weights.append(str(folder / f"weight-{number:06}.npz"))
            own = inputs[layer.name]
            original = own.arranged(read_weight(work.model, layer)) | own.corrected()
            store_arrays(Path(weights[-1]), original)
        feeds = store_feeds(folder, work.model, work.sources)
        return cls(work, folder, inputs, tuple(weights), tuple(feeds))

    def store(self, proposals: Sequence[Proposal], version: str) -> dict[str, str]:
        """Store what takes the place of weights; returns the file of each layer by name."""
        files = {}
        for number, proposal in enumerate(proposals):
            self.work.progress("preparing trials", number, len(proposals))
            own, name = self.inputs[proposal.layer.name], proposal.layer.name
            if proposal.chain is None:
                raise ValueError(f"layer '{name}' is kept")
            dense = own.arranged(proposal.chain.reconstruct())
            files[name] = str(self.folder / f"{version}-{number:06}.npz")
            store_arrays(Path(files[name]), dense | own.corrected(proposal.adjustments))
        self.work.progress("preparing trials", 1, 1)
        return files

    def damages(self, trials: Sequence[Sequence[str]]) -> list[float]:
        """Return the damage that the layers of each trial do together."""
        model = str(self.folder / "opened.onnx")
        task = Sensitivity(model, self.weights, trials, self.feeds)
        words = f"running the whole model, {len(trials)} trials"
        self.work.progress(words, 0, 1)
        damages = run_task(task, self.work.model.name, self.work.isolate)["damages"]
        self.work.progress(words, 1, 1)
        return [float(damage) for damage in damages]


@dataclass(frozen=True)
class _Pair:
    """The two versions of a layer, and what each does to the outputs if it alone is rewritten."""

    first: Proposal
    plainer: Proposal
    first_damage: float
    plainer_damage: float

    @property
    def is_better_plainer(self) -> bool:
        return self.plainer_damage < self.first_damage


def _plainer_ones(
    work: WholeTask, fitted: Sequence[Proposal], bench: _Bench
) -> dict[str, Proposal]:
    """Return the plainer version of each layer that the model is better off with."""
    first = bench.store(fitted, "first")
    judged = [proposal for proposal in fitted if work.plainer(proposal) is not None]
    damages = bench.damages([[first[proposal.layer.name]] for proposal in judged])
    worst = _worst(damages)
    plainer = []
    for number, position in enumerate(worst):
        work.progress("fitting the worst layers again", number, len(worst))
        plainer.append(work.fit_plainer(judged[position]))
    work.progress("fitting the worst layers again", 1, 1)
    if not plainer:
        return {}
    second = bench.store(plainer, "plainer")
    others = bench.damages([[file] for file in second.values()])
    pairs = {
        proposal.layer.name: _Pair(judged[position], proposal, damages[position], other)
        for position, proposal, other in zip(worst, plainer, others, strict=True)
    }
    return _together(bench, pairs, first, second)


def _together(
    bench: _Bench, pairs: Mapping[str, _Pair], first: Mapping[str, str], second: Mapping[str, str]
) -> dict[str, Proposal]:
    """Return the plainer versions that are best with all layers rewritten.

    Damages of single layers do not add up: those that are better alone are tried beside their
    exchange for the others, beside none and beside all.
    """
    better = frozenset(name for name, pair in pairs.items() if pair.is_better_plainer)
    none: frozenset[str] = frozenset()
    sets = list(dict.fromkeys([better, frozenset(pairs) - better, none, frozenset(pairs)]))
    trials = [[(second if name in taken else first)[name] for name in first] for taken in sets]
    damages = dict(zip(sets, bench.damages(trials), strict=True))
    taken = min(sets, key=lambda names: damages[names])
    found = {}
    for name, pair in pairs.items():
        if name not in taken:
            continue
        words = "with all layers rewritten", damages[taken], damages[none]
        if pair.is_better_plainer:
            words = "with this layer alone rewritten", pair.plainer_damage, pair.first_damage
        found[name] = _with_reason(pair.plainer, *words)
    return found


def _worst(damages: Sequence[float]) -> list[int]:
    """Return the positions of the largest damages that make up most of their sum."""
    order = sorted(range(len(damages)), key=lambda position: -damages[position])
    found: list[int] = []
    reached = 0.0
    for position in order[: max(len(damages) // _MOST, 1)]:
        if reached >= _SHARE * sum(damages):
            break
        found.append(position)
        reached += damages[position]
    return found


def _with_reason(proposal: Proposal, where: str, damage: float, before: float) -> Proposal:
    """Return a plainer version that says why it was taken, by distances of the model's outputs."""
    reason = (
        f"a plainer version than by its own error: {where}, the model's outputs are off by "
        f"{sqrt(damage):.3g} instead of {sqrt(before):.3g}"
    )
    return replace(proposal, choice=replace(proposal.choice, reason=reason))
