"""What the loop trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from onnxlr.training.data import Arrays

__all__ = ["Trainee"]

Tensor = Any


class Trainee(Protocol):
    """What is trained."""

    def groups(self) -> Sequence[Mapping[str, Any]]:
        """Return parameters for the optimizer; `scale` of a group multiplies the learning rate."""

    def loss(self, batch: Arrays) -> Tensor:
        """Return what a step makes smaller, one number."""

    def judge(self, held: Sequence[Arrays]) -> float:
        """Return how bad it is on held-out batches; less is better."""

    def after_step(self) -> None:
        """Do what has to be done after each step of the optimizer."""

    def state(self) -> dict[str, Any]:
        """Return all that is trained, tensors and plain values by name."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
