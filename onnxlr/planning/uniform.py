"""The plain plan: one method with one budget for every layer, kept where it does not pay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence, Knowledge
from onnxlr.fits import ALONE, Piece, Wish, Workers
from onnxlr.layers import Layer
from onnxlr.lowering import LoweringRefusedError
from onnxlr.methods import Fit, Options, Setting
from onnxlr.model import Model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.request import Request
from onnxlr.progress import Progress, silent
from onnxlr.rewriting import adjusted, emitted_bytes, released_bytes

__all__ = ["kept", "propose", "propose_fit", "propose_one", "setting_of"]


def propose(
    model: Model,
    layers: Sequence[Layer],
    request: Request,
    knowledge: Knowledge,
    progress: Progress = silent,
    options: Mapping[str, Options] | None = None,
    workers: Workers = ALONE,
) -> Iterator[Proposal]:
    """Choose for each layer in turn; its weight is in memory only meanwhile.

    Parameters
    ----------
    options
        Options of single layers, by name, instead of the request's.
    workers
        Who fits.

    Raises
    ------
    ModelError
        If a weight that is asked for cannot be read or is not finite.
    """
    asked = [request.with_options(layer, options) for layer in layers]
    left = [kept(layer, own) for layer, own in zip(layers, asked, strict=True)]
    fits = workers.fits(
        model,
        [
            _piece(layer, own, knowledge.of(layer), progress)
            for layer, own, proposal in zip(layers, asked, left, strict=True)
            if proposal is None
        ],
    )
    for position, (layer, own, proposal) in enumerate(zip(layers, asked, left, strict=True)):
        progress("factorizing", position, len(layers))
        yield proposal or _proposed(model, layer, own, knowledge, next(fits), knowledge.of(layer))
    progress("factorizing", len(layers), len(layers))


def kept(layer: Layer, request: Request) -> Proposal | None:
    """Return the proposal to keep a layer that is not meant or cannot be rewritten."""
    reason = request.selection.leaves(layer) or layer.skip
    if reason is None and request.method == "keep":
        reason = "best kept" if request.allocate == "global" else "asked for"
    return None if reason is None else Proposal(layer, Choice("keep", reason=reason))


def propose_one(
    model: Model,
    layer: Layer,
    request: Request,
    knowledge: Knowledge,
    evidence: Evidence | None = None,
    progress: Progress = silent,
    workers: Workers = ALONE,
) -> Proposal:
    """Fit one layer, and keep it where that does not pay.

    Parameters
    ----------
    evidence
        What is known of it, instead of what `knowledge` has.
    workers
        Who fits; it is done in this process.
    """
    known = knowledge.of(layer) if evidence is None else evidence
    fit = workers.fit(model, _piece(layer, request, known, progress))
    return _proposed(model, layer, request, knowledge, fit, known)


def _piece(layer: Layer, request: Request, evidence: Evidence, progress: Progress) -> Piece:
    """Return what is asked of a layer; what its data is computed in plays no part."""
    setting = replace(setting_of(layer, request), progress=progress)
    recipe = request.recipe(evidence.default_metric)
    return Piece(layer, evidence, Wish(request.method, request.options, setting, recipe))


def _proposed(
    model: Model,
    layer: Layer,
    request: Request,
    knowledge: Knowledge,
    fit: Fit | str,
    evidence: Evidence,
) -> Proposal:
    """Return the proposal of a fit, or of why there is none."""
    if isinstance(fit, Fit):
        return propose_fit(model, layer, request, fit, knowledge.of(layer))
    if evidence.fit is None and "needs statistics" in fit:
        fit = f"{fit}: {knowledge.why_unobserved(layer)}"
    return Proposal(layer, Choice("keep", reason=fit))


def setting_of(layer: Layer, request: Request) -> Setting:
    """Return what a method is told of a layer."""
    return Setting.for_layer(layer, request.encoding, request.seed)


def propose_fit(
    model: Model, layer: Layer, request: Request, fit: Fit, evidence: Evidence
) -> Proposal:
    """Return the proposal of a fit; to keep the layer where it cannot be written or does not pay.

    Parameters
    ----------
    evidence
        What was seen of the layer in the original model.
    """
    try:
        proposal, size = _written(model, layer, request, fit, evidence)
    except UsageError as error:
        return Proposal(layer, Choice("keep", reason=str(error)))
    if reason := _does_not_pay(layer, proposal.choice, size):
        return Proposal(layer, Choice("keep", reason=reason))
    return proposal


def _written(
    model: Model, layer: Layer, request: Request, fit: Fit, evidence: Evidence
) -> tuple[Proposal, int]:
    """Return the proposal of a fit and its bytes, with the first type of data that is possible.

    Raises
    ------
    UsageError
        If it can be written with none.
    """
    *preferred, last = request.data
    for activations in preferred:
        proposal = _proposal(layer, request, activations, fit, evidence)
        try:
            return proposal, emitted_bytes(proposal, model, request.target)
        except LoweringRefusedError:
            continue  # the next one is what the layer gets then
    proposal = _proposal(layer, request, last, fit, evidence)
    return proposal, emitted_bytes(proposal, model, request.target)


def _proposal(
    layer: Layer, request: Request, activations: str, fit: Fit, evidence: Evidence
) -> Proposal:
    encoding = request.encoding
    few_bits = encoding is not None and not encoding.is_float
    choice = Choice(
        request.method,
        fit.options,
        fit.recipe.metric,
        encoding.kind if encoding is not None else None,
        activations,
        group_size=(encoding.group or 0) if few_bits and encoding else None,
        rounding=fit.recipe.rounding if few_bits else None,
        bias_correction=fit.recipe.bias_correction,
        solver=fit.recipe.solver,
        shrinkage=fit.recipe.shrinkage,
    )
    extra = adjusted(layer, fit, activations, evidence.fit)
    return Proposal(
        layer,
        choice,
        fit.chain,
        extra,
        fit.error,
        fit.plain_error,
        fit.importance_variance,
        fit.importance_gain,
    )


def _does_not_pay(layer: Layer, choice: Choice, size: int) -> str | None:
    before = released_bytes(layer)
    if size < before:
        return None
    if layer.other_uses:
        return (
            f"its weight is also needed by {layer.other_uses[0]}: "
            f"the factors would come on top of it"
        )
    return f"{choice} takes {size:,} bytes, the layer as it is {before:,}"
