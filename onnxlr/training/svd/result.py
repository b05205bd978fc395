"""What SVD training reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxlr.training.loop import Course, Outcome
from onnxlr.training.svd.request import SvdLayer

if TYPE_CHECKING:
    from onnxlr.delivery import RewriteResult

__all__ = ["SvdResult", "SvdStage", "SvdTrained"]


@dataclass(frozen=True)
class SvdStage:
    """How a stage went.

    Attributes
    ----------
    name
        `sparsification` or `fine-tuning`.
    steps, seconds
        What it took.
    kept
        The step whose state was kept, the best by held-out data.
    stopped
        Why it ended.
    course
        All judgements. Those of sparsification have the penalties in them.
    """

    name: str
    steps: int
    seconds: float
    kept: int
    stopped: str
    course: tuple[Course, ...]

    @classmethod
    def of(cls, name: str, outcome: Outcome) -> SvdStage:
        """Return the stage of an outcome."""
        last = outcome.course[-1]
        return cls(
            name, last.step, last.seconds, outcome.best.step, outcome.stopped, outcome.course
        )


@dataclass(frozen=True)
class SvdTrained:
    """What training reached.

    Attributes
    ----------
    layers
        What became of each layer.
    stages
        What was trained.
    energy_loss
        Share of the energy that each layer was allowed to lose.
    judged_by
        `loss`, or `score`, of which more is better.
    before, sparse, cut, after
        Held-out data: of the model as it came; after the stage with penalties, None without one;
        right after ranks were cut; in the end.
    data
        What it was trained on.
    """

    layers: tuple[SvdLayer, ...]
    stages: tuple[SvdStage, ...]
    energy_loss: float
    judged_by: str
    before: float
    sparse: float | None
    cut: float
    after: float
    data: str


@dataclass(frozen=True)
class SvdResult:
    """A finished SVD training.

    Attributes
    ----------
    training
        What training reached.
    rewriting
        How the trained model was written with factors, and the proof against its dense weights.
    dense
        The file of the trained model with dense weights, if it was kept.
    """

    training: SvdTrained
    rewriting: RewriteResult
    dense: Path | None
