"""Trained values as a dense model, and trained chains as what takes its weights' places."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration import signature
from onnxlr.errors import OutputError, UsageError
from onnxlr.evidence import UNKNOWN
from onnxlr.layers import Layer, find_layers
from onnxlr.model import Model, open_model
from onnxlr.model.saving import check_output, copy_model, staging, write_model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning import Making, Request
from onnxlr.rewriting import emitted_bytes, released_bytes
from onnxlr.training.selection import current_values
from onnxlr.training.ternary.layers import TernaryLayer
from onnxlr.training.ternary.result import TernaryResult
from onnxlr.training.ternary.training import Trained
from onnxlr.training.ternary.wish import Wish
from onnxlr.training.trainable import TrainableModel
from onnxlr.training.writing import write_constants

if TYPE_CHECKING:
    from onnxlr.delivery import RewriteResult

__all__ = [
    "Exported",
    "TernaryFiles",
    "constants_of",
    "export_ternary",
    "making_of",
    "write_dense",
]

_STATISTICS = (3, 4)
"""Inputs of BatchNormalization that follow the data in training."""


@dataclass(frozen=True)
class TernaryFiles:
    """What is written.

    Attributes
    ----------
    output
        The model with ternary layers.
    dense
        The same with dense weights; None if it is not wanted.
    checkpoint
        What training can go on from.
    """

    output: Path
    dense: Path | None
    checkpoint: Path

    @classmethod
    def of(
        cls,
        source: Model,
        output: str | Path | None,
        dense: str | Path | None,
        checkpoint: str | Path | None,
    ) -> TernaryFiles:
        """Return the files, with the usual names where none are given.

        Raises
        ------
        UsageError
            If the model has no file beside which the output could lie.
        """
        if output is not None:
            file = Path(output)
        elif source.path is not None:
            file = source.path.with_suffix(".onnxlr.onnx")
        else:
            raise UsageError("a model without a file needs an output path")
        kept = file.with_name(f"{file.name}.checkpoint") if checkpoint is None else Path(checkpoint)
        return cls(file, None if dense is None else Path(dense), kept)

    def check(self, source: Model, *read: Path) -> None:
        """Refuse to write over anything that is read, or two things to one place.

        Raises
        ------
        OutputError
            If that was to happen.
        """
        inputs = (source.path, *(source.directory / name for name in source.external_files()))
        files = [path for path in (self.output, self.dense, self.checkpoint) if path is not None]
        for path in files:
            check_output(path, *inputs, *read)
        if len({path.resolve() for path in files}) < len(files):
            names = ", ".join(map(str, files))
            raise OutputError(f"{names}: expected different files for what is written")


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
    files: TernaryFiles,
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
    values = constants_of(trained.student, [layer.constant for layer in trained.layers])
    if trained.others is not None:
        values |= current_values(trained.student, trained.others)
    inputs = [spec.name for spec in signature(source)]
    held = [{name: batch[name] for name in inputs} for batch in trained.data.held]
    changed = open_model(source.proto if source.path is None else source.path, check=False)
    with tempfile.TemporaryDirectory(prefix="onnxlr-trained-") as name:
        dense = write_dense(changed, values, Path(name), files.output.name)
        if files.dense is not None:
            with staging(files.dense) as folder:
                copy_model(dense, folder, files.dense.name)
        reopen = partial(open_model, Path(name) / files.output.name, check=False)
        making = making_of(trained, dense, wish.request)
        result = _result(deliver(Exported(dense, reopen, making, held)), files.dense, trained, wish)
    files.checkpoint.unlink(missing_ok=True)
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


def constants_of(
    student: TrainableModel, names: Iterable[str], statistics: bool = True
) -> dict[str, npt.NDArray[Any]]:
    """Return the values of constants as they are now, by name.

    Parameters
    ----------
    student
        The model.
    names
        Of parameters, or of what modules give.
    statistics
        Whether running means and variances are wanted as well.
    """
    wanted = dict.fromkeys(names)
    if statistics:
        wanted |= dict.fromkeys(
            call.inputs[place]
            for call in student.calls
            if call.operator == "BatchNormalization"
            for place in _STATISTICS
        )
    found = {}
    for name in wanted:
        tensor = student.constant(name).detach().cpu()
        found[name] = np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
    return found


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
