"""The verbs that train, each a function; they need the extra `onnxlr[train]`.

torch is imported when one of them is called, so that everything else works without it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxlr.calibration import DataSource, signature
from onnxlr.delivery import Conditions, Delivery, RewriteResult, check_interface
from onnxlr.errors import OnnxlrWarning, UsageError
from onnxlr.methods import options_for
from onnxlr.model import Model, open_model
from onnxlr.model.saving import check_output, staging
from onnxlr.pipeline import ModelSource, rewrite
from onnxlr.planning import Request, Selection
from onnxlr.progress import Progress, silent
from onnxlr.verification import DEFAULT_TOLERANCE, Tolerance

if TYPE_CHECKING:
    from onnxlr.training.fisher.result import FisherInformation
    from onnxlr.training.svd.result import SvdResult
    from onnxlr.training.ternary.result import TernaryResult
    from onnxlr.training.tuning.request import TuneResult

__all__ = ["fisher", "train_svd", "train_ternary", "tune"]


def fisher(
    model: ModelSource,
    calibration: DataSource,
    output: str | Path | None = None,
    *,
    loss: str = "distill",
    samples: int | None = None,
    draws: int | None = None,
    mask: str | None = None,
    kronecker: bool = True,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> FisherInformation:
    """Find the Fisher information of a model's weights, sample by sample.

    Parameters
    ----------
    model
        The model.
    calibration
        Inputs like those it will meet, see `load_feeds`; arrays beside them (labels) are for the
        loss. They are cut into single samples where the model leaves their number open.
    output
        File to write it to (`.npz`), for `importance` of `rewrite`; none is written if not given.
    loss
        `distill`: how far outputs move, relative to their length; no labels are needed.
        `module:function`: a loss of outputs by name and the batch, both torch tensors by name, of
        one sample.
    samples
        Most samples to take; all if not given.
    draws
        Of noise for each sample (2, if not given), or calls of a loss (1) that draws labels from
        the outputs.
    mask
        Tensor that is 0 where positions do not count, such as `attention_mask`: neither in the
        outputs that have its leading dimensions, nor among the rows of Kronecker factors.
    kronecker
        Find Kronecker factors, too, which the metric `kfac` needs.
    layers, skip
        Shell patterns of layers to look at (all, if none) and to leave out.
    device
        Where torch computes: `cpu`, `cuda`.
    seed
        Of the noise.
    progress
        Called before each sample.

    Returns
    -------
    FisherInformation
        Its `arrays` can be given as `importance`.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    UsageError, DataError, OutputError
        If an argument cannot be followed, or outputs or gradients are NaN or infinite.
    ModelError
        If the model cannot be handled, or has nodes that cannot be run in torch.
    TrainingError
        If the loss fails, is NaN, or depends on no weight.
    """
    from onnxlr.training.fisher.finding import Question, find_fisher

    opened = model if isinstance(model, Model) else open_model(model)
    if output is not None:
        check_output(Path(output), opened.path, *_read_from(calibration))
    selection = Selection(layers, skip)
    asked = Question(loss, samples, draws, mask, kronecker, selection, device, seed)
    found = find_fisher(opened, calibration, asked, progress)
    if output is not None:
        found.save(output)
    return found


def _read_from(source: DataSource | float) -> list[Path]:
    """Return the file or folder that data is read from, if it is one."""
    if not isinstance(source, str | Path) or not os.path.exists(source):  # noqa: PTH110
        return []  # Path.exists raises for names that are too long
    return [Path(source)]


def train_ternary(
    model: ModelSource,
    data: DataSource,
    output: str | Path | None = None,
    *,
    method: str = "ternary_svd",
    loss: str | Callable[..., Any] | None = None,
    train: str = "all",
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    eta: float = 3.0,
    every: int = 50,
    renewing: float = 0.5,
    feedback: float | None = None,
    scales: str = "solved",
    group_size: int | None = None,
    activations: str | None = None,
    target: str = "onnx",
    steps: int | None = None,
    minutes: float | None = None,
    rate: float | None = None,
    batch: int = 32,
    holdout: float | DataSource = 0.1,
    patience: int | None = 4,
    dense: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    bfloat16: bool = False,
    seed: int = 0,
    tolerance: str = DEFAULT_TOLERANCE,
    isolate: bool = True,
    progress: Progress = silent,
    **options: Any,
) -> TernaryResult:
    """Train a model whose layers are ternary whenever it runs, and write it with them.

    Parameters
    ----------
    model
        The model; never modified.
    data
        Inputs, see `load_feeds`; arrays beside them (labels) are for the loss.
    output
        File to write; `MODEL.onnxlr.onnx` beside the model if not given.
    method, **options
        `ternary_svd`, with its options as in `rewrite` (default `tolerance_spectral` 0.07 and `fit`
        `published`), or `ternary` with its `terms`.
    loss
        `module:function`, or a function of outputs by name and the batch, both torch tensors by
        name, that returns one number; batch normalisations then take the batch's statistics. If
        not given, the distance to the outputs of the model as it is.
    train
        What is trained: `layers` (those that become ternary), `scales` (also biases and
        normalisations), `all` (also other weights).
    layers, skip
        Shell patterns of layers to make ternary (all, if none) and to leave alone.
    eta
        Of ternary_svd: how many times stronger than the best term of the residual a term must be
        to survive.
    every
        Of ternary_svd: steps after which a layer's terms are renewed, in which layers take turns;
        in others only their strengths are solved.
    renewing
        Of ternary_svd: part of the steps in which terms are renewed at all, from 0 to 1.
    feedback
        Of ternary_svd: part of what old terms cannot follow of a step that is fed back to the next;
        1/every if not given, 1 in the paper.
    scales
        Of ternary: `solved` for least squared error, or `trained`.
    group_size, activations, target
        As in `rewrite`.
    steps, minutes, patience, batch
        See `Schedule` and `read_training_data`.
    rate
        Largest learning rate; 5e-5 for `ternary_svd` and 3e-4 for `ternary` if not given.
    holdout
        Fraction of the data to judge by, or data of its own.
    dense
        File for the trained model with dense weights, which the result is proved against; none is
        written if not given.
    checkpoint
        File that training can go on from; `OUTPUT.checkpoint` if not given. It is removed when the
        result is written.
    device
        Where torch computes: `cpu`, `cuda`.
    bfloat16
        Whether products take bfloat16 numbers in training.
    seed
        Of everything random.
    tolerance, isolate, progress
        As in `rewrite`; held-out inputs are compared on.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    UsageError, DataError, OutputError
        If an argument cannot be followed.
    NothingRewrittenError
        If no layer becomes ternary.
    ModelError
        If the model cannot be handled, or has nodes that cannot be run in torch.
    TrainingError
        If the loss fails or is NaN, or the checkpoint is of another run; what was reached is kept
        in the checkpoint.
    VerificationError
        If a proof fails; nothing is written.
    """
    from onnxlr.training.loop import Schedule
    from onnxlr.training.ternary.export import Exported, TernaryFiles, export_ternary
    from onnxlr.training.ternary.layers import Manner
    from onnxlr.training.ternary.training import train_ternary_layers
    from onnxlr.training.ternary.wish import Wish, usual_options, usual_rate

    source = _opened(model)
    files = TernaryFiles.of(source, output, dense, checkpoint)
    files.check(source, *_read_from(data))
    request = Request(
        method,
        options_for(method, usual_options(method, options)),
        activations=activations,
        target=target,
        seed=seed,
        selection=Selection(layers, skip),
        group_size=group_size,
    )
    fed = 1 / max(every, 1) if feedback is None else feedback
    manner, pace = Manner(eta, scales, seed, fed), usual_rate(method) if rate is None else rate
    schedule = replace(Schedule(pace, steps, minutes), patience=patience, seed=seed)
    wish = Wish(request, manner, train, every, loss, schedule, batch, holdout, device, bfloat16)
    wish = replace(wish, renewing=renewing)
    conditions = Conditions(Tolerance.parse(tolerance), None, seed, isolate, progress)
    trained = train_ternary_layers(source, data, wish, files.checkpoint, progress)

    def deliver(exported: Exported) -> RewriteResult:
        delivery = Delivery(
            exported.dense,
            exported.reopen,
            files.output,
            exported.making,
            ("train-ternary", trained.recorded(wish)),
        )
        on_held_out = replace(conditions, data=exported.held)
        return delivery.carry_out(on_held_out, require_change=False, keep=False)

    return export_ternary(source, trained, wish, files, deliver)


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
        Largest learning rate; if not given, one that suits `train`.
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
    from onnxlr.training.loop import Schedule
    from onnxlr.training.tuning.file import tune_file
    from onnxlr.training.tuning.request import Demands, TuneRequest, usual_rate

    source, opened = _opened(original), _opened(rewritten)
    check_interface(source, opened)
    file = _tuned_file(opened, output)
    saved = Path(checkpoint) if checkpoint is not None else Path(f"{file}.checkpoint")
    for path in (file, saved):
        check_output(path, source.path, opened.path, *_read_from(data), *_read_from(holdout))
    schedule = Schedule(usual_rate(train) if rate is None else rate, steps, minutes)
    schedule = replace(schedule, patience=patience, seed=seed)
    request = TuneRequest(
        data, holdout, batch, train, loss, distill, hidden, mask, schedule, saved, device
    )
    demands = Demands(Tolerance.parse(tolerance), keep, isolate, progress)
    return tune_file(source, opened, partial(_opened, rewritten, anew=True), file, request, demands)


def _opened(model: ModelSource, anew: bool = False) -> Model:
    """Open a model; `anew` for another one that may be changed."""
    if not isinstance(model, Model):
        return open_model(model, check=not anew)
    if not anew:
        return model
    copy = open_model(model.proto, check=False)
    copy.path, copy.content = model.path, model.content
    return copy


def _tuned_file(rewritten: Model, output: str | Path | None) -> Path:
    if output is not None:
        return Path(output)
    if rewritten.path is None:
        raise UsageError("a model without a file needs an output path")
    return rewritten.path.with_suffix(".tuned.onnx")


def train_svd(
    model: ModelSource,
    data: DataSource,
    loss: str | Callable[..., Any],
    output: str | Path | None = None,
    *,
    score: str | Callable[..., Any] | None = None,
    layers: Sequence[str] = (),
    skip: Sequence[str] = (),
    form: str = "channel",
    sparsity: str = "hoyer",
    sparsity_weight: float = 0.03,
    orthogonality_weight: float = 1.0,
    energy_loss: float | None = None,
    ratio: float | None = None,
    count: str = "multiply-adds",
    sparse_part: float = 0.5,
    steps: int | None = None,
    minutes: float | None = None,
    rate: float = 1e-3,
    batch: int = 32,
    holdout: float | DataSource = 0.1,
    patience: int | None = None,
    dense: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    tolerance: str = DEFAULT_TOLERANCE,
    isolate: bool = True,
    progress: Progress = silent,
) -> SvdResult:
    """Train weights as factors `U diag(s) Vᵀ`, cut their ranks, train on, and write the factors.

    A first stage trains all of the rank with penalties on singular vectors that are not orthonormal
    and on singular values that are not few; then ranks are cut, and a second stage trains what is
    left by the loss alone (Yang et al. 2020).

    Parameters
    ----------
    model
        The model; never modified.
    data
        Inputs, see `load_feeds`; arrays beside them (labels) are for the loss.
    loss
        `module:function`, or a function of outputs by name and the batch, both torch tensors by
        name, that returns one number.
    output
        File to write; `MODEL.onnxlr.onnx` beside the model if not given.
    score
        The same, but larger is better: what held-out data is judged by; the loss if not given.
    layers, skip
        Shell patterns of layers to factor (all, if none) and to leave as they are; biases,
        normalisations and those layers are trained too.
    form
        That convolutions are factored in: `channel`, `input`, `spatial`, `spatial_swapped`; those
        that have not got it take `channel`.
    sparsity
        `l1`, `‖s‖₁`; or `hoyer`, `‖s‖₁/‖s‖₂ − 1`.
    sparsity_weight, orthogonality_weight
        Of the penalties, added up over layers.
    energy_loss
        Share of its squared singular values that each layer may lose (0.01 if no budget is given).
    ratio
        What all factored layers together may cost, as a fraction of what they cost as they were;
        the loss of energy is found.
    count
        What costs: `multiply-adds` or `parameters`.
    sparse_part
        Of the steps or the time, what is given to the first stage; 0 is truncated SVD with
        fine-tuning.
    steps, minutes, rate, patience
        See `Schedule`; steps and minutes are those of both stages.
    batch
        Most samples of a batch.
    holdout
        Fraction of the data to judge by, or data of its own.
    dense
        File for the trained model with dense weights, which the result is proved against; none is
        kept if not given.
    checkpoint
        What the names of the stages' checkpoints begin with; `OUTPUT.checkpoint` if not given. They
        are gone on from if they are there, and removed when the result is written.
    device
        Where torch computes: `cpu`, `cuda`.
    seed
        Of everything random.
    tolerance, isolate, progress
        As in `rewrite`; held-out inputs are compared on.

    Raises
    ------
    MissingExtraError
        If torch is not installed.
    UsageError, DataError, OutputError
        If an argument cannot be followed.
    ModelError
        If the model cannot be handled, has nodes that cannot be run in torch, or no layer that can
        be factored.
    TrainingError
        If the loss fails or is no finite number, or a checkpoint is of another run; what was
        reached is kept in the checkpoints.
    VerificationError
        If a proof fails; nothing is written.
    """
    from onnxlr.training.loop import Schedule
    from onnxlr.training.svd.request import Cut, SvdRequest
    from onnxlr.training.svd.result import SvdFiles, SvdResult
    from onnxlr.training.svd.run import SvdWish, forget_stages, train_factors, write_dense
    from onnxlr.training.svd.trainee import Penalties

    source = _opened(model)
    files = SvdFiles.of(source, output, dense, checkpoint)
    files.check(source, *_read_from(data))
    penalties = Penalties(orthogonality_weight, sparsity_weight, sparsity)
    cut = Cut(energy_loss, ratio, count)
    request = SvdRequest(form, penalties, cut, Selection(layers, skip))
    schedule = replace(Schedule(rate, steps, minutes), patience=patience, seed=seed)
    wish = SvdWish(request, loss, score, schedule, sparse_part, batch, holdout, device)
    training, trained, samples = train_factors(source, data, wish, files.stages(), progress)
    with staging(files.dense or files.output) as folder:
        # under another name than the output's it stays in the folder, which goes
        name = f"{files.output.name}.dense" if files.dense is None else files.dense.name
        kept = folder / name
        write_dense(training, _opened(model, anew=True), kept)
        plan = training.plan(open_model(kept, check=False).sha256, seed=seed)
        specs = {spec.name for spec in signature(source)}
        feeds = [{name: run[name] for name in specs} for run in samples.held]
        with warnings.catch_warnings():
            # that small factors take more bytes than one weight; they are counted otherwise here
            warnings.simplefilter("ignore", OnnxlrWarning)
            written = rewrite(
                kept,
                files.output,
                plan=plan,
                seed=seed,
                tolerance=tolerance,
                data=feeds,
                isolate=isolate,
                progress=progress,
            )
    forget_stages(files.stages())
    return SvdResult(trained, written, files.dense)
