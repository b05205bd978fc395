"""Training of weights as factors that lose rank on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxlr.calibration import DataSource, signature
from onnxlr.errors import OnnxlrWarning
from onnxlr.model import ModelSource, open_model
from onnxlr.model.saving import staging
from onnxlr.pipeline import rewrite
from onnxlr.planning import Selection
from onnxlr.progress import Progress, silent
from onnxlr.training_verbs.sources import opened, read_from
from onnxlr.verification import DEFAULT_TOLERANCE

if TYPE_CHECKING:
    from onnxlr.training.svd.result import SvdResult

__all__ = ["train_svd"]


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
    from onnxlr.training.files import TrainingFiles
    from onnxlr.training.loop import Schedule
    from onnxlr.training.svd.request import Cut, SvdRequest
    from onnxlr.training.svd.result import SvdResult
    from onnxlr.training.svd.run import SvdWish, train_factors, write_dense
    from onnxlr.training.svd.trainee import Penalties

    source = opened(model)
    files = TrainingFiles.of(source, output, dense, checkpoint, stages=2)
    files.check([source], read_from(data, holdout))
    penalties = Penalties(orthogonality_weight, sparsity_weight, sparsity)
    cut = Cut(energy_loss, ratio, count)
    request = SvdRequest(form, penalties, cut, Selection(layers, skip))
    schedule = replace(Schedule(rate, steps, minutes), patience=patience, seed=seed)
    wish = SvdWish(request, loss, score, schedule, sparse_part, batch, holdout, device)
    training, trained, samples = train_factors(source, data, wish, files.checkpoints, progress)
    with staging(files.dense or files.output) as folder:
        # under another name than the output's it stays in the folder, which goes
        name = f"{files.output.name}.dense" if files.dense is None else files.dense.name
        kept = folder / name
        write_dense(training, opened(model, anew=True), kept)
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
    files.forget()
    return SvdResult(trained, written, files.dense)
