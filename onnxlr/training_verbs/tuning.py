"""Training of what models were rewritten as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxlr.calibration import DataSource
from onnxlr.checking import check_interface
from onnxlr.model import ModelSource
from onnxlr.progress import Progress, silent
from onnxlr.training_verbs.sources import opened, read_from
from onnxlr.verification import DEFAULT_TOLERANCE, Tolerance

if TYPE_CHECKING:
    from onnxlr.training.tuning.request import TuneResult

__all__ = ["tune"]


def tune(
    original: ModelSource,
    rewritten: ModelSource,
    data: DataSource,
    output: str | Path | None = None,
    *,
    train: str = "factors",
    loss: str | Callable[..., Any] | None = None,
    distill: float | None = None,
    hidden: float | None = None,
    mask: str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    rate: float | None = None,
    batch: int = 16,
    holdout: float | DataSource = 0.1,
    patience: int | None = 4,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    tolerance: str = DEFAULT_TOLERANCE,
    keep: bool = False,
    isolate: bool = True,
    progress: Progress = silent,
) -> TuneResult:
    """Train a rewritten model towards the original's outputs, or on labels, and save it.

    Nothing is saved unless it is better on held-out data than the rewritten model as it came, both
    run in ONNX Runtime.

    Parameters
    ----------
    original
        The model to learn from; never modified.
    rewritten
        What `rewrite` made of it; never modified.
    data
        Inputs, see `load_feeds`; arrays beside them (labels) are for the loss.
    output
        File to write; `REWRITTEN.tuned.onnx` beside the rewritten model if not given.
    train
        `scales` (of weights of few bits, biases, normalisations), `factors` (these, and all else of
        rewritten layers), `all` (also other weights). Codes of few bits are trained as numbers that
        are rounded whenever the model runs.
    loss
        `module:function`, or a function of outputs by name and the batch, both torch tensors by
        name, that returns one number. If not given, only the original is learnt from.
    distill, hidden
        Weights of the squared relative distances to the original: of outputs, and of tensors
        behind rewritten layers. 1 without a loss and 0 with one, if not given.
    mask
        Input that is 0 where positions do not count for these distances, such as `attention_mask`.
    steps, minutes
        How long at most; 1000 steps if neither is given.
    rate
        Largest learning rate; if not given, one that suits `train`. Kinds of numbers multiply it:
        scales by 3, float factors and weights by 0.3.
    batch
        Samples of a step.
    holdout
        Fraction of the data to judge by, or data of its own.
    patience
        Judgements (ten are made on the way) without a gain that end training; None for never.
    checkpoint
        File that training can go on from, written at each judgement; `OUTPUT.checkpoint` if not
        given. It is kept if something goes wrong, and removed when the result is written.
    device
        Where torch computes: `cpu`, `cuda`.
    seed
        Of what is held out, and of the order of samples.
    tolerance
        What every float output must hold against the original's on held-out data, see `Tolerance`.
    keep
        Write the output even if it does not hold that (it still raises).
    isolate
        Run models in child processes.
    progress
        Called before each step.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    NothingGainedError
        If the result is not better; nothing is written.
    VerificationError
        If it does not hold what was asked; nothing is written unless `keep`.
    UsageError, DataError, OutputError
        If an argument cannot be followed.
    ModelError
        If a model cannot be handled or has nodes that cannot be run in torch, or the models' inputs
        and outputs are not the same.
    TrainingError
        If the loss fails or is NaN, or the checkpoint is of another run; what was reached is kept
        in the checkpoint.
    """
    from onnxlr.training.files import TrainingFiles
    from onnxlr.training.loop import Schedule
    from onnxlr.training.rates import tuning_rate
    from onnxlr.training.tuning.file import tune_file
    from onnxlr.training.tuning.request import Demands, TuneRequest

    teacher, student = opened(original), opened(rewritten)
    check_interface(teacher, student)
    files = TrainingFiles.of(student, output, checkpoint=checkpoint, suffix=".tuned.onnx")
    files.check([teacher, student], read_from(data, holdout))
    schedule = Schedule(tuning_rate(train) if rate is None else rate, steps, minutes)
    schedule = replace(schedule, patience=patience, seed=seed)
    request = TuneRequest(
        data, holdout, batch, train, loss, distill, hidden, mask, schedule, device
    )
    demands = Demands(Tolerance.parse(tolerance), keep, isolate, progress)
    reopen = partial(opened, rewritten, anew=True)
    return tune_file(teacher, student, reopen, files, request, demands)
