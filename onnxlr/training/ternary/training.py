"""Quantisation-aware training: layers that are ternary whenever the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxlr.calibration import DataSource, signature
from onnxlr.errors import NothingRewrittenError
from onnxlr.evidence import UNKNOWN
from onnxlr.layers import find_layers
from onnxlr.model import Model
from onnxlr.plan import Proposal
from onnxlr.planning.uniform import propose
from onnxlr.progress import Progress, silent
from onnxlr.training.data import TrainingData, read_training_data
from onnxlr.training.device import usable_device
from onnxlr.training.judging import mean_over
from onnxlr.training.loop import Checkpoint, Outcome, train
from onnxlr.training.losses import Loss, distillation, float_outputs, load_loss
from onnxlr.training.selection import Selection, selected
from onnxlr.training.ternary.layers import TernaryLayer, fit_to_train
from onnxlr.training.ternary.trainee import TernaryTraining
from onnxlr.training.ternary.wish import Wish
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["Trained", "train_ternary_layers"]

Tensor = Any


@dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes
    ----------
    student
        The model, in its best state.
    layers
        Those that are ternary.
    left
        Proposals to keep the others.
    others
        What was trained beside them; None for nothing.
    outcome
        How it went.
    original
        What the same judge says of the model as it was.
    data
        What it was trained on and judged by.
    """

    student: TrainableModel
    layers: tuple[TernaryLayer, ...]
    left: tuple[Proposal, ...]
    others: Selection | None
    outcome: Outcome
    original: float
    data: TrainingData

    def recorded(self, wish: Wish) -> dict[str, Any]:
        """Return what the metadata of the model says of its training."""
        outcome = self.outcome
        return {
            "method": wish.request.method,
            "train": wish.train,
            "data": self.data.description,
            "measure": wish.measure,
            "steps": outcome.best.step,
            "rate": wish.schedule.rate,
            "batch": wish.batch,
            "seed": wish.schedule.seed,
            "held_out": {
                "original": self.original,
                "before": outcome.start.judged,
                "after": outcome.best.judged,
            },
        }


def train_ternary_layers(
    model: Model,
    data: DataSource,
    wish: Wish,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    proposals: Sequence[Proposal] | None = None,
) -> Trained:
    """Make layers of a model ternary, and train it as such.

    Parameters
    ----------
    model
        The model; it is not changed.
    data
        What to train on.
    wish
        What is asked.
    checkpoint
        File that training can go on from; None for none.
    progress
        Called before each fit and after each step.
    proposals
        What the layers begin as, if it was fitted before.

    Raises
    ------
    UsageError, DataError
        If the wish or the data cannot be followed.
    NothingRewrittenError
        If no layer becomes ternary.
    ModelError
        If the model cannot be run in torch.
    TrainingError
        If training cannot go on; the last checkpoint stays.
    """
    wish.request.check()
    device = usable_device(wish.device)
    given = None if wish.loss is None else load_loss(wish.loss)
    float_outputs(model, needed=given is None)
    found = find_layers(model)
    wish.request.selection.check(found)
    samples = read_training_data(
        data, signature(model), wish.batch, wish.holdout, wish.schedule.seed
    )
    student, original = (TrainableModel(model).to(device) for _ in range(2))
    if proposals is None:
        proposals = list(propose(model, found, wish.request, UNKNOWN, progress))
    proposals = fit_to_train(proposals)
    others = None if wish.train == "layers" else selected(student, model, wish.train)
    layers = _attached(model, student, proposals, wish)
    others = None if others is None else others.without({one.constant for one in layers})
    loss = _towards(original) if given is None else given
    trainee = TernaryTraining(
        student,
        layers,
        others,
        loss,
        (wish.every, wish.until),
        by_batch=given is not None,
        bfloat16=wish.bfloat16,
    )
    judged = mean_over(original, samples.held, loss, device)
    kept = None if checkpoint is None else Checkpoint(checkpoint, wish.meaning(model, samples))
    outcome = train(trainee, samples, wish.schedule, kept, progress)
    student.eval()
    left = tuple(proposal for proposal in proposals if proposal.chain is None)
    return Trained(student, layers, left, others, outcome, judged, samples)


def _towards(original: TrainableModel) -> Loss:
    """Return the distance to the outputs of the model as it was."""

    def loss(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            found = original(batch)
        floats = {name: found[name] for name in outputs if found[name].is_floating_point()}
        return distillation(outputs, floats)

    return loss


def _attached(
    model: Model, student: TrainableModel, proposals: Sequence[Proposal], wish: Wish
) -> tuple[TernaryLayer, ...]:
    layers = []
    for proposal in proposals:
        if proposal.chain is None:
            continue
        dtype = student.constant(str(proposal.layer.weight.name)).dtype  # type: ignore[union-attr]
        layer = TernaryLayer.of(model, proposal, wish.manner, wish.tolerance, dtype)
        layer.module.to(wish.device)
        student.replace(layer.constant, layer.module)
        layers.append(layer)
    if not layers:
        leaves = wish.request.selection.leaves
        meant = [proposal for proposal in proposals if leaves(proposal.layer) is None]
        reasons = [proposal.choice.reason or "it is kept" for proposal in meant]
        why = f": {max(set(reasons), key=reasons.count)}" if reasons else ""
        raise NothingRewrittenError(f"{model.name}: no layer becomes ternary{why}")
    return tuple(layers)
