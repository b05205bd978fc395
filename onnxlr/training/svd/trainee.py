"""A model with factored weights as what the loop trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any

from onnxlr.errors import UsageError, check_known
from onnxlr.training.checkpoint import put_back
from onnxlr.training.data import Arrays
from onnxlr.training.judging import Score, mean_over, tensors_of
from onnxlr.training.losses import Loss
from onnxlr.training.rates import BESIDE
from onnxlr.training.selection import Selection
from onnxlr.training.svd.factored import SPARSITIES, FactoredWeight
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["Goal", "Penalties", "SvdTrainee"]

Tensor = Any


@dataclass(frozen=True)
class Goal:
    """What is made smaller, and what held-out data is judged by.

    Attributes
    ----------
    loss
        Of the task.
    score
        Larger is better; None to judge by the loss.
    """

    loss: Loss
    score: Score | None = None


@dataclass(frozen=True)
class Penalties:
    """What is added to the task's loss.

    Attributes
    ----------
    orthogonality
        Weight λ_o of `‖UᵀU − I‖²/r² + ‖VᵀV − I‖²/r²`.
    sparsity
        Weight λ_s of what makes singular values few.
    kind
        One of `SPARSITIES`.
    """

    orthogonality: float = 1.0
    sparsity: float = 0.0
    kind: str = "hoyer"

    def __post_init__(self) -> None:
        for name, weight in (("orthogonality", self.orthogonality), ("sparsity", self.sparsity)):
            if not (0 <= weight < inf):
                raise UsageError(f"{name} is {weight:g}, expected a weight of 0 or more")
        check_known("sparsity", self.kind, SPARSITIES)

    def of(self, weights: Sequence[FactoredWeight]) -> Tensor:
        """Return the weighted sum over factored weights, one number."""
        total: Any = torch.zeros(())
        for weight in weights:
            total = total.to(weight.values.device)
            if self.orthogonality:
                total = total + self.orthogonality * weight.orthogonality()
            if self.sparsity:
                total = total + self.sparsity * weight.sparsity(self.kind)
        return total


def _pace(weight: FactoredWeight) -> float:
    """Return the root mean square of singular values, relative to that of entries of vectors."""
    _, rows, columns = weight.placement.shape
    size = float(weight.values.detach().square().mean().sqrt())
    return size * sqrt(max(rows, columns)) if size > 0 else 1.0


class SvdTrainee:
    """A model whose chosen weights are factors, as a `Trainee`.

    It learns in `train()` mode: normalisations take the batch's own statistics, and their running
    ones, which are part of the state, follow.

    Parameters
    ----------
    model
        With the factored weights in it.
    weights
        These, by name.
    beside
        What else is trained.
    goal
        The task.
    penalties
        Added to the loss; None for none. They then count when it is judged as well, as what the
        stage makes smaller: by the task alone, the start would be the best of it.
    """

    def __init__(
        self,
        model: TrainableModel,
        weights: Mapping[str, FactoredWeight],
        beside: Selection,
        goal: Goal,
        penalties: Penalties | None = None,
    ) -> None:
        self.model, self.goal, self.penalties = model, goal, penalties
        self.weights = list(weights.values())
        self._factors = {
            f"{name}/{part}": parameter
            for name, weight in weights.items()
            for part, parameter in weight.named_parameters()
        }
        self._beside = beside
        owned = [*self._factors.values(), *beside.parameters.values()]
        own = {id(value) for value in owned}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        self.device = owned[0].device

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """Return the singular vectors, the singular values of each weight, and the others.

        Adam moves each number by about the learning rate. Entries of singular vectors are near
        `1/√rows`, singular values of any size: they get a rate at which they move by as much
        relative to their own size.
        """
        vectors = [factor for weight in self.weights for factor in (weight.left, weight.right)]
        groups: list[dict[str, Any]] = [{"params": vectors}] if vectors else []
        groups += self._beside.groups(BESIDE)
        groups += [{"params": [one.values], "scale": _pace(one)} for one in self.weights]
        return groups

    def loss(self, batch: Arrays) -> Tensor:
        """Return the loss of a batch with what is added to it, one number."""
        self.model.train()
        tensors = tensors_of(batch, self.device)
        found = self.goal.loss(self.model(tensors), tensors)
        return found if self.penalties is None else found + self.penalties.of(self.weights)

    def judge(self, held: Sequence[Arrays]) -> float:
        """Return how bad held-out batches are, with what is added to the loss."""
        found = self.task(held)
        if self.penalties is not None:
            with torch.no_grad():
                found += float(self.penalties.of(self.weights))
        return found if isfinite(found) else inf

    def task(self, held: Sequence[Arrays]) -> float:
        """Return the mean loss of held-out batches, or the score with its sign turned."""
        if self.goal.score is None:
            return mean_over(self.model, held, self.goal.loss, self.device)
        return -mean_over(self.model, held, self.goal.score, self.device)

    def after_step(self) -> None:
        """Keep what is trained beside factors where its format can hold it."""
        self._beside.after_step()

    def state(self) -> dict[str, Any]:
        """Return what is trained, and the running statistics."""
        return {name: value.detach() for name, value in self._all().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state; raises TrainingError if it is of another model or other ranks."""
        put_back(self._all(), state)

    def _all(self) -> dict[str, Any]:
        running = {f"running/{name}": value for name, value in self.model.running.items()}
        beside = {f"beside/{name}": value for name, value in self._beside.parameters.items()}
        return {**self._factors, **beside, **running}
