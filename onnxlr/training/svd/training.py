"""Training of weights as factors `U diag(s) Vᵀ` that lose rank on the way.

Yang et al., Learning Low-rank Deep Neural Networks via Singular Vector Orthogonality Regularization
and Singular Value Sparsification (CVPR workshops 2020). The factors begin with the SVD of a trained
weight, of full rank. In a first stage the task's loss is joined by a penalty that keeps singular
vectors orthonormal, and one that makes singular values few; then each layer is cut to the rank that
holds its energy; a second stage trains what is left by the task alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnxlr.errors import ModelError
from onnxlr.layers import Layer, find_layers, read_weight
from onnxlr.methods import SvdOptions
from onnxlr.model import Model
from onnxlr.plan import Choice, Plan
from onnxlr.progress import Progress, silent
from onnxlr.training.data import TrainingData
from onnxlr.training.loop import Checkpoint, Course, Outcome, Schedule, train
from onnxlr.training.placement import Placement
from onnxlr.training.selection import current_values, running_values, selected
from onnxlr.training.svd.factored import FactoredWeight, Factors
from onnxlr.training.svd.ranks import LayerWork, work_of
from onnxlr.training.svd.request import Cut, SvdLayer, SvdRequest
from onnxlr.training.svd.trainee import Goal, Penalties, SvdTrainee
from onnxlr.training.trainable import TrainableModel
from onnxlr.training.writing import write_constants
from onnxlr.version import VERSION

__all__ = ["SvdTraining"]


@dataclass(frozen=True)
class _Chosen:
    """A layer whose weight is factored."""

    layer: Layer
    placement: Placement
    work: LayerWork

    @property
    def constant(self) -> str:
        """Name of the weight."""
        if self.layer.weight is None:
            raise ValueError(f"layer '{self.layer.name}' has no weight")
        return self.layer.weight.name


class SvdTraining:
    """A model under SVD training.

    Parameters
    ----------
    opened
        The model; it is not changed.
    request
        What is asked.
    goal
        The task.
    device
        Where torch computes.

    Raises
    ------
    UsageError
        If a pattern matches no layer.
    ModelError
        If the model has nodes that torch cannot run, no layer that could be factored, or a weight
        of NaN or infinity.
    """

    def __init__(self, opened: Model, request: SvdRequest, goal: Goal, device: Any = "cpu") -> None:
        self.opened, self.request, self.goal = opened, request, goal
        layers = find_layers(opened)
        request.selection.check(layers)
        self.model = TrainableModel(opened).to(device)
        self.left: dict[str, SvdLayer] = {}
        self._chosen = self._choose(layers)
        self.ranks: dict[str, int | None] = {}
        self.energy_loss: float | None = None
        self._kept: dict[str, float] = {}
        self.weights: dict[str, FactoredWeight] = {}
        factored = {chosen.constant for chosen in self._chosen.values()}
        self._beside = selected(self.model, opened, "all").without(factored)
        for name, chosen in self._chosen.items():
            read_weight(opened, chosen.layer)  # refused if it has numbers that are none
            like = self.model.constant(chosen.constant)
            stored = like.detach().cpu().double().numpy()
            self._put(name, Factors.of(chosen.placement.matrices(stored)), like)

    def _choose(self, layers: Sequence[Layer]) -> dict[str, _Chosen]:
        chosen: dict[str, _Chosen] = {}
        weights = [layer.weight.name for layer in layers if layer.weight is not None]
        for layer in layers:
            reason = self._leaves(layer, weights)
            if reason is not None:
                self.left[layer.name] = SvdLayer(layer.name, layer.operator, reason=reason)
                continue
            placement = Placement.of(layer, self.request.form)
            work = work_of(layer, placement)
            if not work.pays(1, "parameters"):
                reason = "rank 1 has no fewer parameters"
                self.left[layer.name] = SvdLayer(layer.name, layer.operator, reason=reason)
                continue
            chosen[layer.name] = _Chosen(layer, placement, work)
        if not chosen:
            reasons = ", ".join(f"'{one.name}': {one.reason}" for one in self.left.values())
            raise ModelError(
                f"{self.opened.name}: no layer can be factored ({reasons or 'it has none'})"
            )
        return chosen

    def _leaves(self, layer: Layer, weights: Sequence[str]) -> str | None:
        """Return why a layer is left alone."""
        if layer.skip is not None or layer.weight is None:
            return layer.skip or "it has no weight"
        asked = self.request.selection.leaves(layer)
        if asked is not None:
            return asked
        if layer.is_table:
            return "a table of rows has no product to factorize"
        if layer.in_function or layer.weight.scope != 0:
            return "its weight is not in the main graph"
        if weights.count(layer.weight.name) > 1:
            return "nodes use its weight in different arrangements"
        return None

    def _put(self, name: str, factors: Factors, like: Any) -> None:
        chosen = self._chosen[name]
        self.weights[name] = FactoredWeight(chosen.placement, factors, like)
        self.model.replace(chosen.constant, self.weights[name])

    def trainee(self, penalties: Penalties | None = None) -> SvdTrainee:
        """Return the model as it is now as what the loop trains."""
        return SvdTrainee(self.model, self.weights, self._beside, self.goal, penalties)

    def sparsify(
        self,
        data: TrainingData,
        schedule: Schedule,
        checkpoint: Checkpoint | None = None,
        progress: Progress = silent,
        tell: Callable[[Course], None] = lambda course: None,  # noqa: ARG005
    ) -> Outcome:
        """Train all of the rank with the penalties; see `loop.train` for the arguments."""
        trainee = self.trainee(self.request.penalties)
        # what it makes smaller wavers less than what it is for: it is not ended early
        whole = replace(schedule, patience=None)
        return train(trainee, data, whole, checkpoint, progress, tell)

    def prune(self, cut: Cut | None = None) -> None:
        """Cut each layer to the first singular values of its weight as it is now.

        Parameters
        ----------
        cut
            How far, if not as requested.

        Raises
        ------
        UsageError
            If the budget cannot be reached.
        """
        found = {name: weight.factors() for name, weight in self.weights.items()}
        energies = {name: factors.energies() for name, factors in found.items()}
        works = {name: self._chosen[name].work for name in found}
        self.ranks, self.energy_loss = (cut or self.request.cut).ranks(energies, works)
        for name, factors in found.items():
            rank = self.ranks[name]
            self._kept[name] = 1.0 if rank is None else float(energies[name][rank - 1])
            like = self.weights[name]().detach()
            self._put(name, factors if rank is None else factors.first(rank), like)

    def tune(
        self,
        data: TrainingData,
        schedule: Schedule,
        checkpoint: Checkpoint | None = None,
        progress: Progress = silent,
        tell: Callable[[Course], None] = lambda course: None,  # noqa: ARG005
    ) -> Outcome:
        """Train what is left by the task alone; see `loop.train` for the arguments."""
        return train(self.trainee(), data, schedule, checkpoint, progress, tell)

    def layers(self) -> tuple[SvdLayer, ...]:
        """Return what became of each layer, those that were left alone last."""
        return (*(self._summary(name) for name in self._chosen), *self.left.values())

    def _summary(self, name: str) -> SvdLayer:
        chosen, rank = self._chosen[name], self.ranks.get(name)
        work = chosen.work

        def both(count: str) -> tuple[int, int]:
            return round(work.of(None, count)), round(work.of(rank, count))

        return SvdLayer(
            name,
            chosen.layer.operator,
            chosen.placement.form,
            chosen.placement.full_rank,
            rank,
            self._kept.get(name),
            both("parameters"),
            both("multiply-adds"),
            None if rank is not None else "the rank that it needs does not pay",
        )

    def write(self, model: Model) -> None:
        """Put all trained values, and the running statistics, into a model of the same tensors.

        Parameters
        ----------
        model
            An opened model; its proto is changed.

        Raises
        ------
        ModelError
            If a value is NaN or infinite in the type that the file has.
        """
        values = current_values(self.model, self._beside)
        for name, chosen in self._chosen.items():
            kept = self.weights[name].factors()
            # in float64, so that rounding is all that adds to the rank
            stack = (kept.left * kept.values[:, None, :]) @ kept.right.swapaxes(1, 2)
            values[chosen.constant] = chosen.placement.stored(stack)
        write_constants(model, values | running_values(self.model, model))

    def plan(self, source_sha256: str | None, target: str = "onnx", seed: int = 0) -> Plan:
        """Return the plan that factors the trained model again: the rank of each layer."""
        choices = {}
        for name, rank in self.ranks.items():
            form = self._chosen[name].placement.form
            if rank is None:
                choices[name] = Choice("keep", reason="the rank that it needs does not pay")
            else:
                choices[name] = Choice("svd", SvdOptions(rank=rank, form=form))
        for name, left in self.left.items():
            choices[name] = Choice("keep", reason=left.reason)
        return Plan(choices, source_sha256, target, seed, VERSION)
