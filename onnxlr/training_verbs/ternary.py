"""Training of models whose layers are ternary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxlr.calibration import DataSource
from onnxlr.conditions import Conditions
from onnxlr.delivery import Delivery, RewriteResult
from onnxlr.methods import options_for
from onnxlr.model import ModelSource
from onnxlr.planning import Request, Selection
from onnxlr.progress import Progress, silent
from onnxlr.training_verbs.sources import opened, read_from
from onnxlr.verification import DEFAULT_TOLERANCE, Tolerance

if TYPE_CHECKING:
    from onnxlr.training.ternary.result import TernaryResult

__all__ = ["train_ternary"]


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
    from onnxlr.training.files import TrainingFiles
    from onnxlr.training.loop import Schedule
    from onnxlr.training.rates import ternary_rate
    from onnxlr.training.ternary.export import Exported, export_ternary
    from onnxlr.training.ternary.layers import Manner
    from onnxlr.training.ternary.training import train_ternary_layers
    from onnxlr.training.ternary.wish import Wish, usual_options

    source = opened(model)
    files = TrainingFiles.of(source, output, dense, checkpoint)
    files.check([source], read_from(data, holdout))
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
    manner, pace = Manner(eta, scales, seed, fed), ternary_rate(method) if rate is None else rate
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
