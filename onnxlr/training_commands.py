"""The commands that train: parsing and printing; each is one call of the API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from onnxlr import training_verbs
from onnxlr.console import err, out, print_json, progress_bars, publish
from onnxlr.errors import OutputError, VerificationError
from onnxlr.flags import WHOLE, Json, Patterns, Seed, Switch, given, with_method_flags
from onnxlr.model.saving import check_output
from onnxlr.reporting import shown, to_document
from onnxlr.reporting.fisher import print_fisher, summarise_fisher
from onnxlr.reporting.svd_training import print_svd_training
from onnxlr.reporting.ternary_training import print_ternary_training
from onnxlr.reporting.training import print_tuning
from onnxlr.verification import DEFAULT_TOLERANCE

if TYPE_CHECKING:
    from onnxlr.training.tuning.request import TuneResult

__all__ = ["COMMANDS"]


def fisher(
    model: Path,
    *,
    calibration: str,
    output: Annotated[Path, Parameter(["--output", "-o"])],
    loss: str = "distill",
    samples: Annotated[int | None, WHOLE] = None,
    draws: Annotated[int | None, WHOLE] = None,
    mask: str | None = None,
    kronecker: bool = True,
    layers: Patterns = (),
    skip: Patterns = (),
    device: str = "cpu",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find how much each entry of the weights matters, by squared gradients of single samples.

    Needs torch: pip install 'onnxlr[train]'.

    Parameters
    ----------
    model
        The ONNX model.
    calibration
        Inputs like those the model will meet: .npz, .npy, a folder of them, or module:function;
        labels beside them, where the loss takes some.
    output
        File to write to (.npz), for the --importance of plan and rewrite.
    loss
        distill: how far the outputs move, no labels needed; or module:function of outputs and
        batch, both torch tensors by name.
    samples
        Most samples to take; all if not given.
    draws
        Of noise for each sample (2, if not given), or calls of a loss (1) that draws labels.
    mask
        Input that is 0 where positions do not count, such as attention_mask.
    kronecker
        Find Kronecker factors, too, which metric kfac needs.
    layers
        Shell pattern of layers to look at, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers to leave out. Repeatable.
    device
        Where torch computes: cpu, cuda.
    seed
        Seed of the noise.
    as_json
        Print JSON (schema onnxlr.fisher/1) instead of tables.
    """
    with progress_bars() as progress:
        found = training_verbs.fisher(
            model,
            calibration,
            output,
            loss=loss,
            samples=samples,
            draws=draws,
            mask=mask,
            kronecker=kronecker,
            layers=layers,
            skip=skip,
            device=device,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(to_document("fisher", summarise_fisher(found)))
    else:
        print_fisher(out, found)
        out.print(f"[green]Wrote[/] {shown(str(output))}")


def tune(
    original: Path,
    rewritten: Path,
    *,
    data: str,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    train: str = "factors",
    loss: str | None = None,
    distill: float | None = None,
    hidden: float | None = None,
    mask: str | None = None,
    steps: Annotated[int | None, WHOLE] = None,
    minutes: float | None = None,
    rate: float | None = None,
    batch: Annotated[int, WHOLE] = 16,
    holdout: float | str = 0.1,
    patience: Annotated[int, WHOLE] = 4,
    checkpoint: Path | None = None,
    device: str = "cpu",
    seed: Seed = 0,
    tolerance: str = DEFAULT_TOLERANCE,
    keep: Switch = False,
    report: Path | None = None,
    as_json: Json = False,
) -> None:
    """Train a rewritten model towards the original's outputs, or on labels.

    Needs torch: pip install 'onnxlr[train]'. Nothing is written unless it is better on held-out
    data than the rewritten model as it came. An interrupted run goes on from its checkpoint when
    the same command is given again.

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
        Largest learning rate; one that suits what is trained if not given.
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
        File to write the result to as JSON (schema onnxlr.tuning/1).
    as_json
        Print that JSON instead of tables.
    """
    written = rewritten.with_suffix(".tuned.onnx") if output is None else output
    if report is not None:
        check_output(report, original, rewritten)
        if report.resolve() == written.resolve():
            raise OutputError(f"{report}: is both the report and the model to write")
    try:
        with progress_bars() as progress:
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
    except KeyboardInterrupt:
        saved = Path(f"{written}.checkpoint") if checkpoint is None else checkpoint
        if saved.exists():
            note = f"{shown(str(saved))} holds what was reached; the same command goes on from it"
            err.print(f"[yellow]note:[/] {note}", soft_wrap=True, highlight=False)
        raise
    _publish_tuning(result, report, as_json)


def _publish_tuning(result: TuneResult, report: Path | None, as_json: bool) -> None:
    publish(to_document("tuning", result), report, as_json)
    if not as_json:
        print_tuning(out, result)


def train_svd(
    model: Path,
    *,
    data: str,
    loss: str,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    score: str | None = None,
    layers: Patterns = (),
    skip: Patterns = (),
    form: str = "channel",
    sparsity: str = "hoyer",
    sparsity_weight: float = 0.03,
    orthogonality_weight: float = 1.0,
    energy_loss: float | None = None,
    ratio: float | None = None,
    count: str = "multiply-adds",
    sparse_part: float = 0.5,
    steps: Annotated[int | None, WHOLE] = None,
    minutes: float | None = None,
    rate: float = 1e-3,
    batch: Annotated[int, WHOLE] = 32,
    holdout: float | str = 0.1,
    patience: Annotated[int | None, WHOLE] = None,
    dense: Path | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    tolerance: str = DEFAULT_TOLERANCE,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train weights as factors, make singular values few, cut ranks, and train on.

    Needs torch: pip install 'onnxlr[train]'. Interrupted, it goes on from its checkpoints when it
    is started again with the same arguments.

    Parameters
    ----------
    model
        The ONNX model; it is never modified.
    data
        Inputs, and labels beside them: .npz, .npy, a folder of them, or module:function.
    loss
        module:function of outputs and batch, both torch tensors by name, that returns one number.
    output
        File to write; MODEL.onnxlr.onnx beside the model if not given.
    score
        module:function like the loss, but larger is better: what held-out data is judged by; the
        loss if not given.
    layers
        Shell pattern of layers to factor, as inspect names them; all if not given. Repeatable.
    skip
        Shell pattern of layers that keep their weights, which are trained too. Repeatable.
    form
        How a convolution is split in two: channel, input, spatial, spatial_swapped; one that has
        not got the form takes channel.
    sparsity
        What makes singular values few: l1, or hoyer, which knows no scale.
    sparsity_weight
        Weight of that, added up over layers.
    orthogonality_weight
        Weight of what keeps singular vectors orthonormal.
    energy_loss
        Share of its squared singular values that each layer may lose; 0.01 if no budget is given.
    ratio
        What all factored layers together may cost, as a fraction of what they cost as they were.
    count
        What costs: multiply-adds or parameters. A layer whose rank does not cost less stays dense.
    sparse_part
        Part of the steps or minutes before ranks are cut; 0 is truncated SVD with fine-tuning.
    steps
        Of the optimizer, in both stages together; 1000 if neither these nor minutes are given.
    minutes
        Time for both stages together.
    rate
        Largest learning rate.
    batch
        Most samples of a batch.
    holdout
        Fraction of the data to judge by; or data of its own.
    patience
        Judgements without a new best that end the second stage; it is never ended if not given.
    dense
        File for the trained model with dense weights, which the result is proved against.
    checkpoint
        What the names of the stages' checkpoints begin with; OUTPUT.checkpoint if not given.
    device
        Where torch computes: cpu, cuda.
    tolerance
        What outputs must hold against those of the dense weights, as in rewrite.
    seed
        Seed of everything random.
    as_json
        Print JSON (schema onnxlr.svd_training/1) instead of tables.
    """
    with progress_bars() as progress:
        found = training_verbs.train_svd(
            model,
            data,
            loss,
            output,
            score=score,
            layers=layers,
            skip=skip,
            form=form,
            sparsity=sparsity,
            sparsity_weight=sparsity_weight,
            orthogonality_weight=orthogonality_weight,
            energy_loss=energy_loss,
            ratio=ratio,
            count=count,
            sparse_part=sparse_part,
            steps=steps,
            minutes=minutes,
            rate=rate,
            batch=batch,
            holdout=holdout,
            patience=patience,
            dense=dense,
            checkpoint=checkpoint,
            device=device,
            tolerance=tolerance,
            seed=seed,
            progress=progress,
        )
    if as_json:
        print_json(to_document("svd_training", found))
    else:
        print_svd_training(out, found)


@with_method_flags
def train_ternary(
    model: Path,
    *,
    data: str,
    output: Annotated[Path | None, Parameter(["--output", "-o"])] = None,
    method: Annotated[str, Parameter(help="ternary_svd or ternary.")] = "ternary_svd",
    flags: Any = None,
    loss: str | None = None,
    train: str = "all",
    layers: Patterns = (),
    skip: Patterns = (),
    eta: float = 3.0,
    every: Annotated[int, WHOLE] = 50,
    renewing: float = 0.5,
    feedback: float | None = None,
    scales: str = "solved",
    group_size: Annotated[int | None, WHOLE] = None,
    activations: str | None = None,
    target: str = "onnx",
    steps: Annotated[int | None, WHOLE] = None,
    minutes: float | None = None,
    rate: float | None = None,
    batch: Annotated[int, WHOLE] = 32,
    holdout: float | str = 0.1,
    patience: Annotated[int, WHOLE] = 4,
    dense: Path | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    bfloat16: Switch = False,
    tolerance: str = DEFAULT_TOLERANCE,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a model whose layers are ternary whenever it runs, and write it with them.

    Needs torch: pip install 'onnxlr[train]'. Interrupted, it goes on from its checkpoint when it is
    started again with the same arguments.

    Parameters
    ----------
    model
        The ONNX model; it is never modified.
    data
        Inputs, and labels beside them where the loss takes some: .npz, .npy, a folder of them, or
        module:function.
    output
        File to write; MODEL.onnxlr.onnx beside the model if not given.
    loss
        module:function of outputs and batch, both torch tensors by name, that returns one number;
        the distance to the model's own outputs if not given.
    train
        layers (those that become ternary), scales (also biases and normalisations) or all (also
        other weights).
    layers
        Shell pattern of layers to make ternary, as inspect names them; all if not given.
        Repeatable.
    skip
        Shell pattern of layers that keep their weights. Repeatable.
    eta
        Of ternary_svd: how many times stronger than the best term of what is left a term must be to
        survive.
    every
        Of ternary_svd: steps after which a layer's terms are renewed, in which layers take turns;
        in others only their strengths are.
    scales
        Of ternary: solved for least squared error, or trained.
    group_size
        Of ternary: inputs that share a scale, 0 (all), 32, 64 or 128; 128 if not given.
    activations
        As in rewrite.
    target
        As in rewrite.
    steps
        Of the optimizer; 1000 if neither these nor minutes are given.
    minutes
        Minutes at most.
    rate
        Largest learning rate; 5e-5 for ternary_svd and 3e-4 for ternary if not given.
    batch
        Most samples of a batch.
    holdout
        Fraction of the data to judge by; or data of its own.
    patience
        Judgements (ten are made on the way) without a gain that end training; 0 for never.
    dense
        File for the trained model with dense weights, which the result is proved against.
    checkpoint
        File to go on from, written at each judgement; OUTPUT.checkpoint if not given.
    device
        Where torch computes: cpu, cuda.
    bfloat16
        Let products take bfloat16 numbers in training.
    tolerance
        What outputs must hold against those of the dense weights, as in rewrite.
    seed
        Seed of everything random.
    as_json
        Print JSON (schema onnxlr.ternary_training/1) instead of tables.
    """
    with progress_bars() as progress:
        found = training_verbs.train_ternary(
            model,
            data,
            output,
            method=method,
            loss=loss,
            train=train,
            layers=layers,
            skip=skip,
            eta=eta,
            every=every,
            renewing=renewing,
            feedback=feedback,
            scales=scales,
            group_size=group_size,
            activations=activations,
            target=target,
            steps=steps,
            minutes=minutes,
            rate=rate,
            batch=batch,
            holdout=holdout,
            patience=patience or None,
            dense=dense,
            checkpoint=checkpoint,
            device=device,
            bfloat16=bfloat16,
            tolerance=tolerance,
            seed=seed,
            progress=progress,
            **given(flags),
        )
    if as_json:
        print_json(to_document("ternary_training", found))
    else:
        print_ternary_training(out, found)


COMMANDS: tuple[Callable[..., Any], ...] = (fisher, train_svd, train_ternary, tune)
"""Functions that the command line registers under their names."""
