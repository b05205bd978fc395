"""`onnxlr tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from onnxlr import training_verbs
from onnxlr.choices import DataName, Device
from onnxlr.console import at_work, out, publish
from onnxlr.errors import OutputError, VerificationError
from onnxlr.flags import WHOLE, Json, Quiet, Seed, Switch, Threads
from onnxlr.model import check_beside
from onnxlr.reporting import to_document
from onnxlr.reporting.page import check_report
from onnxlr.reporting.training import print_tuning
from onnxlr.training_commands.interruption import telling_what_is_left
from onnxlr.verification import DEFAULT_TOLERANCE

if TYPE_CHECKING:
    from onnxlr.training.tuning.request import TuneResult

__all__ = ["tune"]


def tune(
    original: Path,
    rewritten: Path,
    /,
    *,
    data: DataName,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    train: Literal["scales", "factors", "all"] = "factors",
    loss: str | None = None,
    distill: float | None = None,
    hidden: float | None = None,
    mask: str | None = None,
    steps: Annotated[int | None, WHOLE] = None,
    minutes: float | None = None,
    rate: float | None = None,
    batch: Annotated[int, WHOLE] = 16,
    holdout: float | DataName = 0.1,
    patience: Annotated[int, WHOLE] = 4,
    checkpoint: Path | None = None,
    device: Device = "cpu",
    seed: Seed = 0,
    tolerance: str = DEFAULT_TOLERANCE,
    keep: Switch = False,
    report: Path | None = None,
    quiet: Quiet = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a rewritten model towards the original's outputs, or on labels.

    Needs torch: pip install 'onnxlr[train]'. Nothing is written unless it is better on held-out
    data than the rewritten model as it came. An interrupted run goes on from its checkpoint when
    the same command is given again.

    For example:

        onnxlr tune model.onnx small.onnx --data train.npz --minutes 5 -o tuned.onnx
        onnxlr tune model.onnx small.onnx --data train.npz --train scales --steps 500

    Parameters
    ----------
    original
        The model to learn from.
    rewritten
        What rewrite made of it.
    data
        Inputs like those the model will meet: .npz, .npy, a folder of them, or module:function;
        labels beside them, where the loss takes some.
    output
        File to write; REWRITTEN.tuned.onnx beside the rewritten model if not given.
    train
        scales (of weights of few bits, biases, normalisations), factors (these, and all else of
        rewritten layers) or all (also other weights).
    loss
        module:function of outputs and batch, both torch tensors by name; only the original is
        learnt from if not given.
    distill
        Weight of the distance to the original's outputs; 1 without a loss and 0 with one, if not
        given.
    hidden
        Weight of the distance to its tensors behind rewritten layers; likewise.
    mask
        Input that is 0 where positions do not count for these, such as attention_mask.
    steps
        Steps at most; 1000 if neither these nor minutes are given.
    minutes
        Minutes at most.
    rate
        Largest learning rate; one that suits what is trained if not given. Kinds of numbers
        multiply it: scales by 3, float factors and weights by 0.3.
    batch
        Samples of a step.
    holdout
        Fraction of the data to judge by, or data of its own.
    patience
        Judgements (ten are made on the way) without a gain that end training; 0 for never.
    checkpoint
        File to go on from, written at each judgement; OUTPUT.checkpoint if not given.
    device
        Where torch computes: cpu, cuda.
    seed
        Seed of what is held out, and of the order of samples.
    tolerance
        What outputs must hold against the original's on held-out data, as in `rewrite`.
    keep
        Write the model even if it does not hold that (the exit code is still 1).
    report
        File to write the result to, .json (schema onnxlr.tuning/1).
    as_json
        Print that JSON instead of tables.
    """
    written = rewritten.with_suffix(".tuned.onnx") if output is None else output
    if report is not None:
        check_beside(report, original)
        check_beside(report, rewritten)
        if report.resolve() == written.resolve():
            raise OutputError(f"{report}: is both the report and the model to write")
        check_report(report, may_be_page=False)
    try:
        with telling_what_is_left(written, checkpoint), at_work(quiet, threads) as progress:
            result = training_verbs.tune(
                original,
                rewritten,
                data,
                output,
                train=train,
                loss=loss,
                distill=distill,
                hidden=hidden,
                mask=mask,
                steps=steps,
                minutes=minutes,
                rate=rate,
                batch=batch,
                holdout=holdout,
                patience=patience or None,
                checkpoint=checkpoint,
                device=device,
                seed=seed,
                tolerance=tolerance,
                keep=keep,
                progress=progress,
            )
    except VerificationError as error:
        _publish_tuning(error.result, report, as_json)
        raise
    _publish_tuning(result, report, as_json)


def _publish_tuning(result: TuneResult, report: Path | None, as_json: bool) -> None:
    publish(to_document("tuning", result), report, as_json)
    if not as_json:
        print_tuning(out, result)
