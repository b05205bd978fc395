"""What is asked of a training with ternary layers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxlr.calibration import DataSource
from onnxlr.errors import UsageError, check_known
from onnxlr.methods import TernarySvdOptions
from onnxlr.model import Model
from onnxlr.planning import Request
from onnxlr.training.data import TrainingData
from onnxlr.training.loop import Schedule
from onnxlr.training.losses import LossSource, name_of
from onnxlr.training.ternary.layers import Manner

__all__ = ["METHODS", "TRAINED", "Wish", "usual_options"]

METHODS = ("ternary_svd", "ternary")
"""Methods whose chains can be trained."""

TRAINED = ("layers", "scales", "all")
"""What is trained: the ternary layers alone, with all biases and normalisations, or everything."""

_TOLERANCE = 0.07
"""Spectral error of ternary_svd where no budget is given, that of the paper's fine-tuned models."""


def usual_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options, for ternary_svd those of the paper where nothing else is asked."""
    given = {name: value for name, value in options.items() if value is not None}
    if method != "ternary_svd":
        return given
    usual: dict[str, Any] = {"fit": "published"}
    if not given.keys() & set(TernarySvdOptions.budgets):
        usual["tolerance_spectral"] = _TOLERANCE
    return {**usual, **given}


@dataclass(frozen=True)
class Wish:
    """What is asked of a training.

    Attributes
    ----------
    request
        The method with its options, the layers, the target.
    manner
        How ternary layers are trained.
    train
        One of `TRAINED`.
    every
        Steps after which a layer's terms are renewed.
    loss
        The user's own, in which normalisations take the batch's statistics; None to learn from the
        model's own outputs.
    schedule
        How long and how fast.
    batch
        Most samples of a batch.
    holdout
        What is held out, see `read_training_data`.
    device
        `cpu` or `cuda`.
    bfloat16
        Whether products take bfloat16 numbers in training; weights and sums stay what they are.
    renewing
        Part of the steps in which terms are renewed, from 0 to 1; in the rest they stay, and what
        was disturbed settles. Where only the time ends training, they always are.
    """

    request: Request
    manner: Manner = field(default_factory=Manner)
    train: str = "all"
    every: int = 50
    loss: LossSource | None = None
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 32
    holdout: float | DataSource = 0.1
    device: str = "cpu"
    bfloat16: bool = False
    renewing: float = 0.5

    def __post_init__(self) -> None:
        if self.request.method not in METHODS:
            raise UsageError(
                f"method '{self.request.method}' makes no ternary layers, expected one of "
                f"{', '.join(METHODS)}"
            )
        check_known("train", self.train, TRAINED)
        if self.every < 1:
            raise UsageError(f"every {self.every} is not a number of steps of at least 1")
        if not 0 <= self.renewing <= 1:
            raise UsageError(f"renewing {self.renewing:g} is not a part from 0 to 1")
        if self.batch < 1:
            raise UsageError(f"a batch of {self.batch} samples was asked for, expected at least 1")

    @property
    def measure(self) -> str:
        """What is made smaller, and what held-out data is judged by, in words."""
        if self.loss is None:
            return "distance to the model's outputs"
        return f"loss {name_of(self.loss)}"

    def meaning(self, model: Model, data: TrainingData) -> dict[str, str]:
        """Return what a checkpoint is of: all but how long and how fast it is trained."""
        request = self.request
        return {
            "the model": model.sha256,
            "data": data.sha256,
            "method": f"{request.method} {request.options!r} {request.group_size}",
            "layers": f"{list(request.selection.layers)} {list(request.selection.skip)}",
            "manner": f"{self.manner!r} {self.every} {self.until}",
            "train": self.train,
            "measure": self.measure,
            "batch": str(self.batch),
            "bfloat16": str(self.bfloat16),
            "seed": str(self.schedule.seed),
        }

    @property
    def until(self) -> int:
        """The step after which terms stay what they are."""
        steps = self.schedule.most
        return sys.maxsize if steps is None else int(self.renewing * steps)

    @property
    def tolerance(self) -> float | None:
        """The spectral error that terms hold; None where their number is given."""
        options = self.request.options
        return options.tolerance_spectral if isinstance(options, TernarySvdOptions) else None
