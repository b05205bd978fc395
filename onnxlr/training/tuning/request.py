"""What is asked of tuning, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxlr.calibration import DataSource
from onnxlr.progress import Progress
from onnxlr.training.losses import LossSource, load_loss, name_of
from onnxlr.training.schedule import Course, Schedule
from onnxlr.training.tuning.trainee import Objective
from onnxlr.verification import Report, Tolerance

__all__ = ["Demands", "TuneRequest", "TuneResult"]


@dataclass(frozen=True)
class TuneRequest:
    """What is asked; the fields are arguments of `onnxlr.tune`."""

    data: DataSource
    holdout: float | DataSource
    batch: int
    train: str
    loss: LossSource | None
    distill: float | None
    hidden: float | None
    mask: str | None
    schedule: Schedule
    device: str

    def objective(self) -> Objective:
        """Return what is made smaller: with a loss of the user's nothing else, unless asked for."""
        loss = None if self.loss is None else load_loss(self.loss)
        usual = 1.0 if loss is None else 0.0
        return Objective(
            usual if self.distill is None else self.distill,
            usual if self.hidden is None else self.hidden,
            loss,
            self.mask,
        )

    @property
    def measure(self) -> str:
        """What held-out data is judged by, in words."""
        if self.loss is None:
            return "relative error of the outputs"
        return f"loss {name_of(self.loss)}"


@dataclass(frozen=True)
class Demands:
    """How a result is verified; the fields are arguments of `onnxlr.tune`."""

    tolerance: Tolerance
    keep: bool
    isolate: bool
    progress: Progress


@dataclass(frozen=True)
class TuneResult:
    """A finished tuning.

    Attributes
    ----------
    output
        The file written; None if the result was not handed out.
    train, trained
        What was to be trained, and what that was: how many numbers of each kind.
    data
        What it was trained on, in words.
    measure
        What held-out data was judged by; less is better.
    before, after
        That of the rewritten model as it came and of the result, both run in ONNX Runtime.
    steps
        Steps that led to the state that was kept.
    seconds
        Time of training, that of judging included.
    course
        All judgements on the way, made in torch.
    stopped
        Why training ended.
    resumed
        The step of the checkpoint that it went on from, None if it began anew.
    report
        The verification; None where nothing was gained.
    """

    output: Path | None
    train: str
    trained: Mapping[str, int]
    data: str
    measure: str
    before: float
    after: float
    steps: int
    seconds: float
    course: tuple[Course, ...]
    stopped: str
    resumed: int | None
    report: Report | None
