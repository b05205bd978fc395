"""What is asked of the planner."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from onnxlr.errors import UsageError
from onnxlr.fits import FitStore
from onnxlr.lowering import find_target
from onnxlr.methods.offering import Offer
from onnxlr.planning.auto.goal import Goal
from onnxlr.planning.request import Request
from onnxlr.planning.selection import Selection

__all__ = ["AutoRequest"]


@dataclass(frozen=True)
class AutoRequest:
    """What is asked of a model as a whole.

    Attributes
    ----------
    goal
        What is to be small, and what must hold.
    target, seed
        As in `Plan`.
    selection
        The layers meant.
    bias_correction
        Whether means may be corrected, where held-out inputs say that it pays.
    cache
        File of measurements; None for those of this run alone.
    stock
        Whether the result is compared with what ONNX Runtime's own tools make.
    jobs
        Layers that are fitted side by side, each in a process; one a processor if not given.
    memory
        Bytes that these processes and this one may take together; half of what is free if not
        given.
    store
        Fits of what was chosen, from one run to the next; None for those of this run alone.
    """

    goal: Goal
    target: str = "onnx"
    seed: int = 0
    selection: Selection = field(default_factory=Selection)
    bias_correction: bool = True
    cache: Path | None = None
    stock: bool = True
    jobs: int | None = None
    memory: int | None = None
    store: FitStore | None = None

    def check(self) -> None:
        """Refuse what is unknown or contradicts itself; raises UsageError."""
        find_target(self.target)
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative, expected a whole number of at least 0")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"{self.jobs} jobs were asked for, expected 1 or more")
        self.goal.check()

    def of(self, method: str, offer: Offer) -> Request:
        """Return the request that is one offer of a method."""
        return Request(
            method,
            offer.options,
            offer.format,
            offer.activations,
            self.target,
            self.seed,
            self.selection,
            offer.group_size,
            offer.rounding,
            bias_correction=self.bias_correction,
        )
