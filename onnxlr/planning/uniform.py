"""The plain plan: one method with one budget for every layer, kept where it does not pay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from onnxlr.errors import UsageError
from onnxlr.layers import Layer, read_weight
from onnxlr.lowering import ACTIVATIONS, find_target
from onnxlr.methods import Options, Setting, SvdOptions, find_method
from onnxlr.model import Model
from onnxlr.numbers import Format
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.selection import Selection
from onnxlr.progress import Progress, silent
from onnxlr.rewriting import emitted_bytes, released_bytes

__all__ = ["Request", "propose"]


@dataclass(frozen=True)
class Request:
    """What is asked of every layer.

    Attributes
    ----------
    method, options, format, activations
        As in `Choice`.
    target, seed
        As in `Plan`.
    selection
        The layers meant.
    """

    method: str = "svd"
    options: Options = field(default_factory=SvdOptions)
    format: str | None = None
    activations: str = "float"
    target: str = "onnx"
    seed: int = 0
    selection: Selection = field(default_factory=Selection)


def propose(
    model: Model, layers: Sequence[Layer], request: Request, progress: Progress = silent
) -> Iterator[Proposal]:
    """Choose for each layer in turn; its weight is in memory only meanwhile.

    Raises
    ------
    UsageError
        If a pattern matches no layer, or method, format or target are unknown.
    ModelError
        If a weight that is asked for cannot be read or is not finite.
    """
    find_method(request.method)
    find_target(request.target)
    if request.activations not in ACTIVATIONS:
        raise UsageError(
            f"activations '{request.activations}' are unknown, expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    if request.format is not None:
        Format.parse(request.format)
    request.selection.check(layers)
    for position, layer in enumerate(layers):
        progress("factorizing", position, len(layers))
        reason = request.selection.leaves(layer) or layer.skip
        if reason is None and request.method == "keep":
            reason = "asked for"
        if reason is not None:
            yield Proposal(layer, Choice("keep", reason=reason))
        else:
            yield _propose(model, layer, request)
    progress("factorizing", len(layers), len(layers))


def _propose(model: Model, layer: Layer, request: Request) -> Proposal:
    weight = read_weight(model, layer)
    method = find_method(request.method)
    setting = Setting.for_layer(layer, request.format, request.seed)
    try:
        chain = method.factorize(weight, request.options, setting)
        options = method.settle(request.options, chain)
        size = emitted_bytes(layer, chain, model, request.target, request.activations)
    except UsageError as error:
        return Proposal(layer, Choice("keep", reason=str(error)))
    choice = Choice(
        request.method,
        options,
        format=request.format,
        activations=request.activations,
    )
    if reason := _does_not_pay(layer, choice, size):
        return Proposal(layer, Choice("keep", reason=reason))
    return Proposal(layer, choice, chain)


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
