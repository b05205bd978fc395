"""Training of a rewritten model towards its original, or towards a loss on labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np

from onnxlr.errors import UsageError
from onnxlr.training.checkpoint import put_back
from onnxlr.training.constants import tensor_of
from onnxlr.training.data import Arrays
from onnxlr.training.judging import mean_of, tensors_of
from onnxlr.training.losses import Loss, distillation, squares
from onnxlr.training.selection import Selection
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel
from onnxlr.training.tuning.teacher import Teacher, own_arrays

__all__ = ["Objective", "Tuning"]

Tensor = Any


@dataclass(frozen=True)
class Objective:
    """What is made smaller, as a weighted sum.

    Attributes
    ----------
    distill
        Weight of the distance of the outputs to the original's.
    hidden
        Weight of that of tensors behind rewritten layers.
    loss
        The user's own, which then also judges held-out data; None to judge by the outputs' error.
    mask
        Input that is 0 where positions do not count for distances.
    """

    distill: float
    hidden: float
    loss: Loss | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        for name, weight in (("distill", self.distill), ("hidden", self.hidden)):
            if not (isfinite(weight) and weight >= 0):
                raise UsageError(f"{name} is {weight:g}, expected a weight of 0 or more")
        if self.loss is None and self.distill == self.hidden == 0:
            raise UsageError(
                "nothing is left to learn: expected a loss, or a weight above 0 for distill or "
                "hidden"
            )


class Tuning:
    """A rewritten model as a `Trainee`.

    Parameters
    ----------
    student
        The rewritten model, with what is trained of it attached.
    selection
        What is trained.
    teacher
        The original, and which hidden tensors both have.
    objective
        What is made smaller.
    """

    def __init__(
        self,
        student: TrainableModel,
        selection: Selection,
        teacher: Teacher,
        objective: Objective,
    ) -> None:
        self.student, self.selection = student, selection
        self.teacher, self.objective = teacher, objective
        self._trained = dict(selection.parameters)

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """Return parameters for the optimizer."""
        return self.selection.groups()

    def loss(self, batch: Arrays) -> Tensor:
        """Return the weighted sum of the objective's parts on a batch, one number."""
        objective = self.objective
        watch = self.teacher.hidden if objective.hidden else ()
        outputs = self.student(batch, watch=watch)
        parts = []
        if objective.loss is not None:
            parts.append(self._user_loss(objective.loss, outputs, batch))
        if objective.distill or objective.hidden:
            targets = self.teacher.targets(batch, hidden=bool(objective.hidden))
            mask = self._mask(batch)
            for weight, names in (
                (objective.distill, self.teacher.outputs),
                (objective.hidden, self.teacher.hidden),
            ):
                if weight and names:
                    wanted = {name: targets[name] for name in names}
                    parts.append(weight * distillation(outputs, wanted, mask))
        return torch.stack(parts).sum()

    def judge(self, held: Sequence[Arrays]) -> float:
        """Return the user's loss, else the mean relative error of float outputs; see `judged`."""
        with torch.no_grad():
            return self.judged(held, [self.student(batch) for batch in held])

    def judged(self, held: Sequence[Arrays], found: Sequence[Mapping[str, Any]]) -> float:
        """Return how bad outputs are: the user's loss, else the mean relative error.

        Parameters
        ----------
        held
            Batches with their inputs.
        found
            The outputs by name, arrays or tensors, for each batch.

        Returns
        -------
        float
            Mean loss of the batches, weighted by their samples; or the mean over float outputs of
            `‖y − y'‖ / ‖y‖`, each over all batches. Infinite where it is no number.
        """
        if self.objective.loss is not None:
            return self._mean_loss(self.objective.loss, held, found)
        sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in self.teacher.outputs}
        for batch, outputs in zip(held, found, strict=True):
            targets, mask = self.teacher.targets(batch, hidden=False), self._mask(batch)
            for name, total in sums.items():
                noise, size = squares(self._tensor(outputs[name]), targets[name], mask)
                total[0] += float(noise)
                total[1] += float(size)
        errors = [sqrt(noise / size) if size else noise for noise, size in sums.values()]
        mean = float(np.mean(errors))
        return mean if isfinite(mean) else inf

    def after_step(self) -> None:
        """Keep what is trained where its format can hold it."""
        self.selection.after_step()

    def state(self) -> dict[str, Any]:
        """Return what is trained, by name."""
        return {name: parameter.detach() for name, parameter in self._trained.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state; raises TrainingError if it is that of something else."""
        put_back(self._trained, state)

    def _mean_loss(
        self, loss: Loss, held: Sequence[Arrays], found: Sequence[Mapping[str, Any]]
    ) -> float:
        batches = (own_arrays(batch) for batch in held)
        outputs = (
            {name: self._tensor(one[name]) for name in self.student.outputs} for one in found
        )
        mean = mean_of(zip(batches, outputs, strict=True), loss, self._device)
        return mean if isfinite(mean) else inf

    def _user_loss(self, loss: Loss, outputs: Mapping[str, Tensor], batch: Arrays) -> Tensor:
        given = tensors_of(own_arrays(batch), self._device)
        return loss({name: outputs[name] for name in self.student.outputs}, given)

    def _mask(self, batch: Arrays) -> Tensor | None:
        name = self.objective.mask
        return None if name is None else self._tensor(batch[name])

    def _tensor(self, value: Any) -> Tensor:
        found = value if isinstance(value, torch.Tensor) else tensor_of(value, "an output")
        return found.to(self._device)

    @property
    def _device(self) -> Any:
        return next(self.student.parameters()).device
