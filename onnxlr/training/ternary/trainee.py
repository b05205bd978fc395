"""A model with ternary layers as what the loop trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

from onnxlr.errors import TrainingError
from onnxlr.training.data import Arrays
from onnxlr.training.judging import mean_over, tensors_of
from onnxlr.training.losses import Loss
from onnxlr.training.rates import BESIDE
from onnxlr.training.selection import Selection
from onnxlr.training.ternary.factors import TernaryFactors
from onnxlr.training.ternary.layers import TernaryLayer
from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["TernaryTraining"]

Tensor = Any


class TernaryTraining:
    """A model with ternary layers as a `Trainee`.

    Parameters
    ----------
    student
        The model, with the layers' modules in it.
    layers
        The ternary layers.
    others
        What is trained beside them; None for nothing.
    loss
        What is made smaller, and what held-out data is judged by.
    renewals
        Steps after which a layer's terms are renewed, and the step after which they stay.
    by_batch
        Whether normalisations take each batch's own statistics in training; their running ones,
        which are part of the state, follow.
    bfloat16
        As in `Wish`.
    """

    def __init__(
        self,
        student: TrainableModel,
        layers: Sequence[TernaryLayer],
        others: Selection | None,
        loss: Loss,
        renewals: tuple[int, int],
        by_batch: bool,
        bfloat16: bool = False,
    ) -> None:
        self.student, self.layers, self.others = student, tuple(layers), others
        self._loss, self._by_batch = loss, by_batch
        self._every, self._until = renewals
        self._bfloat16 = bfloat16
        self._steps = 0
        kept = [layer.module.weight for layer in layers] + list(self._beside.values())
        kept += [layer.module.scales for layer in layers if layer.trains_scales]
        own = {id(parameter) for parameter in kept}
        for parameter in student.parameters():
            parameter.requires_grad_(id(parameter) in own)
        self._device = layers[0].module.weight.device
        self._running = student.running

    @property
    def _beside(self) -> Mapping[str, Any]:
        return {} if self.others is None else self.others.parameters

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """Return the layers' parameters, and the others."""
        own = [p for layer in self.layers for p in layer.module.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": own}]
        return groups if self.others is None else groups + self.others.groups(BESIDE)

    def loss(self, batch: Arrays) -> Tensor:
        """Return the loss of a batch, one number."""
        self.student.train(self._by_batch)
        tensors = tensors_of(batch, self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            outputs = self.student(tensors)
        own = {name: outputs[name] for name in self.student.outputs}
        if self._bfloat16:
            own = {n: x.float() if x.is_floating_point() else x for n, x in own.items()}
        return self._loss(own, tensors)

    def judge(self, held: Sequence[Arrays]) -> float:
        """Return the mean loss of held-out batches, with running statistics; infinite if NaN."""
        found = mean_over(self.student, held, self._loss, self._device)
        return found if isfinite(found) else inf

    def after_step(self) -> None:
        """Make the layers ternary again, at times with other terms.

        Layers take turns. What the old terms could not follow has gathered in the errors, and comes
        into effect when terms are renewed: of all layers at once, it would be a blow.
        """
        if self.others is not None:
            self.others.after_step()
        self._steps += 1
        for place, layer in enumerate(self.layers):
            turn = self._steps + place * self._every // len(self.layers)
            module, is_due = layer.module, turn % self._every == 0 and self._steps <= self._until
            if is_due and isinstance(module, TernaryFactors):
                module.renew()
            else:
                module.settle()

    def state(self) -> dict[str, Any]:
        """Return all that changes."""
        found: dict[str, Any] = {"steps": self._steps}
        found |= {f"other/{n}": value.detach() for n, value in self._beside.items()}
        found |= {f"running/{name}": value for name, value in self._running.items()}
        for layer in self.layers:
            for name, value in layer.module.state().items():
                found[f"ternary/{layer.constant}/{name}"] = value
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state.

        Raises
        ------
        TrainingError
            If it is that of another model.
        """
        plain = {f"other/{n}": value for n, value in self._beside.items()}
        plain |= {f"running/{name}": value for name, value in self._running.items()}
        try:
            with torch.no_grad():
                for name, value in plain.items():
                    value.copy_(state[name])
            for layer in self.layers:
                layer.module.restore(_part(state, f"ternary/{layer.constant}/"))
            self._steps = int(state["steps"])
        except (KeyError, RuntimeError) as error:
            raise TrainingError("the state is of another model, or of other layers") from error


def _part(state: Mapping[str, Any], begin: str) -> dict[str, Any]:
    return {k.removeprefix(begin): v for k, v in state.items() if k.startswith(begin)}
