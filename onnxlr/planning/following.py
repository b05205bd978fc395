"""Follows a plan with the layers fitted side by side, or taken from what was fitted before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxlr.evidence import Knowledge
from onnxlr.fits import Piece, Wish, Workers
from onnxlr.layers import Layer
from onnxlr.methods import Setting
from onnxlr.model import Model
from onnxlr.plan import Plan, Proposal
from onnxlr.progress import Progress
from onnxlr.rewriting import check_plan, choice_of, follow_fit

__all__ = ["follow_with", "piece_of"]


def follow_with(
    workers: Workers,
    model: Model,
    layers: Sequence[Layer],
    plan: Plan,
    progress: Progress,
    knowledge: Knowledge,
) -> Iterator[Proposal]:
    """Factorize each layer as a plan says; what is raised is as `follow_plan` has it.

    Parameters
    ----------
    workers
        Who fits.
    """
    check_plan(model, layers, plan, knowledge)
    written = [layer for layer in layers if not choice_of(layer, plan).keeps]
    fits = workers.fits(model, [piece_of(layer, plan, knowledge) for layer in written])
    for position, layer in enumerate(layers):
        progress("factorizing", position, len(layers))
        choice = choice_of(layer, plan)
        if choice.keeps:
            yield Proposal(layer, choice)
        else:
            yield follow_fit(model, layer, plan, next(fits), knowledge.of(layer))
    progress("factorizing", len(layers), len(layers))


def piece_of(layer: Layer, plan: Plan, knowledge: Knowledge) -> Piece:
    """Return what a plan says of a layer, as work."""
    choice = choice_of(layer, plan)
    setting = Setting.for_layer(layer, choice.encoding, plan.seed)
    wish = Wish(choice.method, choice.options, setting, choice.recipe, is_told=True)
    return Piece(layer, knowledge.of(layer), wish)
