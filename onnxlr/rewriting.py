"""Applies a plan: factorizes each layer, lowers its chain, splices all into the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.errors import OnnxlrWarning, PlanError, UsageError
from onnxlr.evidence import UNKNOWN, Evidence, Knowledge
from onnxlr.layers import Layer, Site, read_weight
from onnxlr.lowering import carry_functions, find_target, lower_layer
from onnxlr.methods import Fit, Setting, find_method, fit_as_told
from onnxlr.methods.adjusting import adjustments
from onnxlr.model import Model, Splice, splice
from onnxlr.plan import Choice, Plan, Proposal
from onnxlr.progress import Progress, silent
from onnxlr.records import LayerRecord
from onnxlr.reference import with_dense_weight
from onnxlr.stages import Adjustment
from onnxlr.statistics import Moments, PairMoments

__all__ = [
    "METADATA_KEY",
    "Piece",
    "Rewriting",
    "adjusted",
    "check_plan",
    "choice_of",
    "emitted_bytes",
    "follow_choice",
    "follow_fit",
    "follow_plan",
    "released_bytes",
]

METADATA_KEY = "onnxlr.plan"
"""Key under which a rewritten model's metadata holds the plan that made it."""

_ROWS = 512
"""Rows of a weight that are in float64 at a time."""


@dataclass(frozen=True)
class Piece:
    """A rewritten site, and where its result is to be looked at.

    Attributes
    ----------
    site
        The site.
    output
        The tensor behind which a rewritten and a reference model agree: the site's output, or that
        of the next node where this took up the bias correction.
    """

    site: Site
    output: str


class Rewriting:
    """Collects the replacement of each layer, then changes the model once.

    Beside the model it changes a second opened copy, the *reference*: the original in which each
    rewritten layer's weight is the chain's dense approximation. Both must compute the same. Where
    the models have data files, new tensors go there at once, and a layer's chain can be forgotten.
    """

    def __init__(self, model: Model, reference: Model, target: str) -> None:
        self._model, self.reference = model, reference
        self._target = find_target(target)
        self._change, self._dense = Splice(), Splice()
        self.records: list[LayerRecord] = []
        self.pieces: list[Piece] = []
        self.dtypes: frozenset[str] = frozenset()
        self.int8_data = False

    def add(self, proposal: Proposal) -> None:
        """Take in what was chosen for a layer."""
        layer, chain = proposal.layer, proposal.chain
        before = released_bytes(layer)
        if chain is None or layer.weight is None:
            self._record(proposal, None, before, before)
            return
        change = lower_layer(
            layer,
            chain,
            self._model,
            self._model.names,
            self._target,
            proposal.choice.activations,
            proposal.adjustments,
        )
        after = change.byte_size()
        if self._model.data is not None:
            change = change.moved_to(self._model.data)
        approximation = chain.reconstruct()
        error = _distance(read_weight(self._model, layer), approximation)
        self._record(proposal, error, before, after)
        self._change.merge(change)
        self._dense.merge(with_dense_weight(proposal, approximation, self.reference))
        self.pieces.extend(self._piece(site, layer, change) for site in layer.sites)
        self.dtypes |= {layer.dtype.name}
        self.int8_data |= proposal.choice.activations != "float"

    def _piece(self, site: Site, layer: Layer, change: Splice) -> Piece:
        """Return where a site's result is to be looked at: behind its bias correction."""
        user = self._model.uses.only_user((site.scope, site.output))
        own = {(other.scope, other.index) for other in layer.sites}
        if user is None or user in own or user not in change.nodes:
            return Piece(site, site.output)
        return Piece(site, str(change.nodes[user][0].output[0]))

    def release(self) -> None:
        """Give back the memory of both changed models, once they are written."""
        for model in (self._model, self.reference):
            model.proto = onnx.ModelProto()

    def _record(self, proposal: Proposal, error: float | None, before: int, after: int) -> None:
        self.records.append(LayerRecord.of(proposal, error, before, after))

    def finish(self, plan: Plan) -> None:
        """Change both models; the rewritten one gets the plan into its metadata."""
        splice(self.reference, self._dense)
        splice(self._model, self._change)
        carry_functions(self._model.proto)
        _record_plan(self._model.proto, plan)


def _distance(weight: npt.NDArray[Any], approximation: npt.NDArray[np.float64]) -> float:
    """Return the relative Frobenius distance of an approximation to a weight."""
    squares = total = 0.0
    for begin in range(0, len(weight), _ROWS):
        rows = weight[begin : begin + _ROWS].astype(np.float64)
        total += float(np.vdot(rows, rows))
        rows -= approximation[begin : begin + _ROWS]
        squares += float(np.vdot(rows, rows))
    return sqrt(squares / total) if total > 0 else 0.0


def released_bytes(layer: Layer) -> int:
    """Return the bytes that disappear from the file when a layer's sites are replaced."""
    nodes = {id(site.node): site.node for site in layer.sites}
    for site in layer.sites:
        nodes |= {id(step): step for step in site.operand.steps}
    size = sum(node.ByteSize() for node in nodes.values())
    if layer.weight is None or layer.other_uses:
        return int(sum(site.node.ByteSize() for site in layer.sites))
    return int(size) + layer.weight.nbytes


def emitted_bytes(proposal: Proposal, model: Model, target: str) -> int:
    """Return the bytes that the nodes and tensors of a layer's chain add to the file."""
    if proposal.chain is None:
        raise ValueError(f"layer '{proposal.layer.name}' is kept")
    return lower_layer(
        proposal.layer,
        proposal.chain,
        model,
        model.names.trial(),
        find_target(target),
        proposal.choice.activations,
        proposal.adjustments,
    ).byte_size()


def follow_plan(
    model: Model,
    layers: Sequence[Layer],
    plan: Plan,
    progress: Progress = silent,
    knowledge: Knowledge = UNKNOWN,
) -> Iterator[Proposal]:
    """Factorize each layer as a plan says.

    Raises
    ------
    PlanError
        If the plan is for another model, names a layer the model has not, asks to rewrite one that
        cannot be, or needs statistics that are not the ones it was made with.
    """
    check_plan(model, layers, plan, knowledge)
    for position, layer in enumerate(layers):
        progress("factorizing", position, len(layers))
        yield follow_choice(model, layer, plan, knowledge.of(layer))
    progress("factorizing", len(layers), len(layers))


def adjusted(
    layer: Layer, fit: Fit, activations: str, seen: Moments | PairMoments | None
) -> tuple[Adjustment, ...]:
    """Return the adjustment of each site; those that use the transpose were not observed.

    Parameters
    ----------
    activations
        One of `ACTIVATIONS`: `static_int8` rounds data to the ranges that it was seen in.
    seen
        What was seen of the inputs in the original model.
    """
    moments = None
    if activations == "static_int8" and isinstance(seen, Moments):
        moments = seen
    found = adjustments(fit.chain, len(layer.sites), fit.corrections, moments)
    return tuple(
        Adjustment() if site.transposed else _without_zeros(adjustment)
        for site, adjustment in zip(layer.sites, found, strict=True)
    )


def _without_zeros(adjustment: Adjustment) -> Adjustment:
    """Return an adjustment that adds nothing where nothing was observed."""
    adds = adjustment.correction is not None and np.any(adjustment.correction)
    return adjustment if adds else replace(adjustment, correction=None)


def follow_choice(
    model: Model,
    layer: Layer,
    plan: Plan,
    evidence: Evidence,
    observed: Moments | PairMoments | None = None,
) -> Proposal:
    """Factorize one layer as a plan says, with ranges from what was observed of the original.

    Raises
    ------
    PlanError
        If that needs what is not known of the layer.
    """
    choice = choice_of(layer, plan)
    if choice.keeps:
        return Proposal(layer, choice)
    weight = read_weight(model, layer)
    setting = Setting.for_layer(layer, choice.encoding, plan.seed)
    method = find_method(choice.method)
    fit: Fit | str
    try:
        fit = fit_as_told(method, weight, choice.options, setting, evidence, choice.recipe)
    except UsageError as error:
        fit = str(error)
    return follow_fit(model, layer, plan, fit, evidence, observed)


def choice_of(layer: Layer, plan: Plan) -> Choice:
    """Return a plan's choice for a layer."""
    return plan.layers.get(layer.name, Choice("keep", reason="not in the plan"))


def follow_fit(
    model: Model,
    layer: Layer,
    plan: Plan,
    fit: Fit | str,
    evidence: Evidence,
    observed: Moments | PairMoments | None = None,
) -> Proposal:
    """Return what a plan says of one layer, whose fit has been made; as `follow_choice`.

    Parameters
    ----------
    fit
        The fit, or why there is none.

    Raises
    ------
    PlanError
        If there is none.
    """
    choice = choice_of(layer, plan)
    if isinstance(fit, str):
        raise PlanError(f"the plan's entry for layer '{layer.name}' cannot be followed: {fit}")
    extra = adjusted(layer, fit, choice.activations, observed or evidence.fit)
    proposal = Proposal(layer, choice, fit.chain, extra, fit.error)
    before, after = released_bytes(layer), emitted_bytes(proposal, model, plan.target)
    if after >= before:
        warnings.warn(
            f"layer '{layer.name}': {choice} takes {after:,} bytes, the layer as it was "
            f"{before:,}; written because the plan says so",
            OnnxlrWarning,
            stacklevel=2,
        )
    return proposal


def check_plan(model: Model, layers: Sequence[Layer], plan: Plan, knowledge: Knowledge) -> None:
    """Check that a plan is for this model and these statistics; raises PlanError."""
    _check_layers(model, layers, plan)
    found = knowledge.statistics
    if plan.statistics_sha256 is None or not plan.needs_statistics:
        return
    if found is None:
        raise PlanError(
            "the plan was made with statistics of the layers' inputs: give the same ones "
            "(--statistics, or --calibration with the same data)"
        )
    if found.sha256 != plan.statistics_sha256:
        raise PlanError(
            f"the plan was made with statistics of sha256 {plan.statistics_sha256[:12]}…, these "
            f"have {found.sha256[:12]}… (make a new plan, or take 'statistics' out of the plan to "
            "use it with any)"
        )


def _check_layers(model: Model, layers: Sequence[Layer], plan: Plan) -> None:
    if plan.source_sha256 is not None and plan.source_sha256 != model.sha256:
        raise PlanError(
            f"the plan was made for a model with sha256 {plan.source_sha256[:12]}…, "
            f"{model.name} has {model.sha256[:12]}… (make a new plan, or take 'source' out of the "
            "plan to use it for any model that has its layers)"
        )
    by_name = {layer.name: layer for layer in layers}
    for name, choice in plan.layers.items():
        if name not in by_name:
            raise PlanError(
                f"the plan names layer '{name}', which {model.name} has not "
                "(onnxlr inspect lists its layers)"
            )
        if by_name[name].skip and not choice.keeps:
            raise PlanError(
                f"the plan asks for {choice.method} of layer '{name}', which cannot be rewritten: "
                f"{by_name[name].skip}"
            )


def _record_plan(model: onnx.ModelProto, plan: Plan) -> None:
    taken: Mapping[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    key, number = METADATA_KEY, 1
    while key in taken:  # a model that is rewritten again keeps the plans before
        number += 1
        key = f"{METADATA_KEY}.{number}"
    model.metadata_props.add(key=key, value=plan.dumps(indent=None))
