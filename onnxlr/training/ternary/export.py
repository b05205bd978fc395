"""Trained values as a dense model, and trained chains as what takes its weights' places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from onnxlr.calibration import signature
from onnxlr.evidence import UNKNOWN
from onnxlr.layers import Layer, find_layers
from onnxlr.model import Model, open_model
from onnxlr.model.saving import copy_model, staging, write_model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning import Making, Request
from onnxlr.rewriting import emitted_bytes, released_bytes
from onnxlr.scratch import scratch
from onnxlr.training.constants import array_of
from onnxlr.training.files import TrainingFiles
from onnxlr.training.selection import current_values, running_values
from onnxlr.training.ternary.layers import TernaryLayer
from onnxlr.training.ternary.result import TernaryResult
from onnxlr.training.ternary.training import Trained
from onnxlr.training.ternary.wish import Wish
from onnxlr.training.writing import write_constants

if TYPE_CHECKING:
    from onnxlr.delivery import RewriteResult

__all__ = [
    "Exported",
    "export_ternary",
    "making_of",
    "write_dense",
]


@dataclass(frozen=True)
class Exported:
    """What is to be delivered.

    Attributes
    ----------
    dense
        The trained model with dense weights, opened to be changed.
    reopen
        Opens it anew.
    making
        The trained chains.
    held
        Held-out inputs.
    """

    dense: Model
    reopen: Callable[[], Model]
    making: Making
    held: Sequence[Mapping[str, npt.NDArray[Any]]]


def export_ternary(
    source: Model,
    trained: Trained,
    wish: Wish,
    files: TrainingFiles,
    deliver: Callable[[Exported], RewriteResult],
) -> TernaryResult:
    """Write what was trained, and remove the checkpoint.

    Parameters
    ----------
    source
        The model as it was.
    trained
        What training left.
    wish
        What was asked.
    files
        Where to.
    deliver
        Writes and proves the result.
    """
    student = trained.student
    values = {one.constant: array_of(student.constant(one.constant)) for one in trained.layers}
    if trained.others is not None:
        values |= current_values(student, trained.others)
    values |= running_values(student, source)
    inputs = [spec.name for spec in signature(source)]
    held = [{name: batch[name] for name in inputs} for batch in trained.data.held]
    changed = open_model(source.proto if source.path is None else source.path, check=False)
    with ExitStack() as folders:
        place = folders.enter_context(scratch("onnxlr-trained-"))
        dense = write_dense(changed, values, place, files.output.name)
        if files.dense is not None:
            # it takes its place with the result, or not at all
            copy_model(dense, folders.enter_context(staging(files.dense)), files.dense.name)
        reopen = partial(open_model, place / files.output.name, check=False)
        making = making_of(trained, dense, wish.request)
        result = _result(deliver(Exported(dense, reopen, making, held)), files.dense, trained, wish)
    files.forget()
    return result


def _result(
    rewrite: RewriteResult, dense: Path | None, trained: Trained, wish: Wish
) -> TernaryResult:
    outcome = trained.outcome
    return TernaryResult(
        rewrite,
        dense,
        wish.train,
        len(trained.layers),
        0 if trained.others is None else len(trained.others.parameters),
        trained.data.description,
        wish.measure,
        trained.original,
        outcome.start.judged,
        outcome.best.judged,
        outcome.best.step,
        outcome.course[-1].seconds,
        outcome.course,
        outcome.stopped,
        outcome.resumed,
    )


def write_dense(
    model: Model, values: Mapping[str, npt.NDArray[Any]], folder: Path, name: str
) -> Model:
    """Write a model with other constants, and open it.

    Parameters
    ----------
    model
        The model as it was, opened to be changed.
    values
        What the constants become.
    folder, name
        Where to.
    """
    write_constants(model, values)
    write_model(model, folder, name)
    return open_model(folder / name)


def making_of(trained: Trained, dense: Model, request: Request) -> Making:
    """Return the making that puts trained chains in place of the weights of a dense model.

    A layer whose chain takes more bytes than its weight keeps that, with the values of the chain.
    """
    own = {layer.proposal.layer.name: layer for layer in trained.layers}
    left = {proposal.layer.name: proposal.choice for proposal in trained.left}
    proposals = []
    for layer in find_layers(dense):
        if layer.name in own:
            proposals.append(_written(own[layer.name], dense, layer, request))
        else:
            choice = left.get(layer.name, Choice("keep", reason="it is not trained as ternary"))
            proposals.append(Proposal(layer, choice))
    return Making(proposals, request.target, request.seed, False, UNKNOWN)


def _written(trained: TernaryLayer, dense: Model, layer: Layer, request: Request) -> Proposal:
    """Return the proposal with the first type of data that is possible, or the one to keep."""
    found = trained.proposed(dense, layer)
    size = emitted_bytes(found, dense, request.target)
    before = released_bytes(layer)
    if size >= before:
        reason = f"{found.choice} takes {size:,} bytes, the layer as it is {before:,}"
        return Proposal(layer, Choice("keep", reason=reason))
    return found
