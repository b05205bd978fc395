"""Runs SVD training from data to values that can be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxlr.calibration import DataSource, signature
from onnxlr.errors import UsageError
from onnxlr.model import Model
from onnxlr.model.saving import write_model
from onnxlr.progress import Progress, silent
from onnxlr.training.data import TrainingData, read_training_data
from onnxlr.training.device import usable_device
from onnxlr.training.judging import as_score
from onnxlr.training.loop import Checkpoint, Schedule
from onnxlr.training.losses import LossSource, load_loss, name_of
from onnxlr.training.svd.request import SvdRequest
from onnxlr.training.svd.result import SvdStage, SvdTrained
from onnxlr.training.svd.trainee import Goal
from onnxlr.training.svd.training import SvdTraining

__all__ = ["SvdWish", "train_factors", "write_dense"]


@dataclass(frozen=True)
class SvdWish:
    """What is asked of a run.

    Attributes
    ----------
    request
        Of the weights.
    loss
        Of the task.
    score
        What held-out data is judged by, larger is better; None for the loss.
    schedule
        Of both stages together.
    part
        Of the steps or the time, what is given to the stage with penalties; 0 leaves it out, which
        is truncated SVD with fine-tuning.
    batch
        Most samples of a batch.
    holdout
        Fraction of the data to judge by, or data of its own.
    device
        Where torch computes.
    """

    request: SvdRequest
    loss: LossSource
    score: LossSource | None = None
    schedule: Schedule = field(default_factory=Schedule)
    part: float = 0.5
    batch: int = 32
    holdout: float | DataSource = 0.1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.part < 1:
            raise UsageError(f"sparse_part {self.part:g} is not at least 0 and below 1")
        if self.schedule.most is not None and self.schedule.most < 2 and self.part:
            raise UsageError(f"{self.schedule.most} steps cannot be divided between two stages")

    def divided(self) -> tuple[Schedule, Schedule]:
        """Return the schedules of both stages."""
        whole, most, part = self.schedule, self.schedule.most, self.part
        if not part:
            return whole, whole
        steps = None if most is None else min(max(round(part * most), 1), most - 1)
        early, late = replace(whole, steps=steps), replace(whole, seed=whole.seed + 1)
        if most is not None and steps is not None:
            late = replace(late, steps=most - steps)
        if whole.minutes is not None:
            early = replace(early, minutes=part * whole.minutes)
            late = replace(late, minutes=(1 - part) * whole.minutes)
        return early, late

    def meaning(self, source: Model, data: TrainingData, stage: str) -> dict[str, str]:
        """Return what a checkpoint of a stage depends on."""
        request, schedule = self.request, self.schedule
        penalties, cut = request.penalties, request.cut
        found = {
            "verb": "train-svd",
            "stage": stage,
            "model": source.sha256,
            "data": data.sha256,
            "loss": name_of(self.loss),
            "score": "none" if self.score is None else name_of(self.score),
            "layers": " ".join(request.selection.layers),
            "skip": " ".join(request.selection.skip),
            "form": request.form,
            "sparsity": f"{penalties.kind} {penalties.sparsity:g}",
            "orthogonality": f"{penalties.orthogonality:g}",
            "steps": str(schedule.most),
            "minutes": str(schedule.minutes),
            "sparse_part": f"{self.part:g}",
            "rate": f"{schedule.rate:g}",
            "batch": str(self.batch),
            "seed": str(schedule.seed),
        }
        if stage == "fine-tuning":
            found["cut"] = f"{cut.energy_loss} {cut.ratio} {cut.count}"
        return found


def train_factors(
    source: Model,
    data: DataSource,
    wish: SvdWish,
    checkpoints: Sequence[Path] | None = None,
    progress: Progress = silent,
) -> tuple[SvdTraining, SvdTrained, TrainingData]:
    """Train a model's factors.

    Parameters
    ----------
    source
        The model; it is not changed.
    data
        Inputs, and what the loss takes beside them.
    wish
        What is asked.
    checkpoints
        Files of both stages; those that are there are gone on from.
    progress
        Told of each step.

    Raises
    ------
    UsageError, DataError
        If something asked cannot be followed.
    ModelError
        If the model has nodes that torch cannot run, or no layer that can be factored.
    TrainingError
        If the loss fails or is no finite number, or a checkpoint is of another run.
    """
    device = usable_device(wish.device)
    goal = Goal(load_loss(wish.loss), None if wish.score is None else as_score(wish.score))
    training = SvdTraining(source, wish.request, goal, device)
    samples = read_training_data(
        data, signature(source), wish.batch, wish.holdout, wish.schedule.seed
    )
    early, late = wish.divided()

    def checkpoint(place: int, stage: str) -> Checkpoint | None:
        if checkpoints is None:
            return None
        return Checkpoint(checkpoints[place], wish.meaning(source, samples, stage))

    def judged() -> float:
        found = training.trainee().task(samples.held)
        return found if wish.score is None else -found

    before, sparse, stages = judged(), None, []
    if wish.part:
        first = training.sparsify(samples, early, checkpoint(0, "sparsification"), progress)
        stages.append(SvdStage.of("sparsification", first))
        sparse = judged()
    training.prune()
    cut = judged()
    second = training.tune(samples, late, checkpoint(1, "fine-tuning"), progress)
    stages.append(SvdStage.of("fine-tuning", second))
    return (
        training,
        SvdTrained(
            training.layers(),
            tuple(stages),
            training.energy_loss or 0.0,
            "loss" if wish.score is None else "score",
            before,
            sparse,
            cut,
            judged(),
            samples.description,
        ),
        samples,
    )


def write_dense(training: SvdTraining, model: Model, file: Path) -> None:
    """Write a model with the trained values in its own tensors.

    Parameters
    ----------
    model
        The model that was trained, opened anew; its proto is changed.
    """
    training.write(model)
    write_model(model, file.parent, file.name)
