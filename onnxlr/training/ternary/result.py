"""What becomes of ternary training, for reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnxlr.training.loop import Course

if TYPE_CHECKING:
    from onnxlr.delivery import RewriteResult

__all__ = ["TernaryResult"]


@dataclass(frozen=True)
class TernaryResult:
    """A finished ternary training.

    Attributes
    ----------
    rewrite
        The file, what became of each layer, and the proofs against the trained dense model.
    dense
        The file of the trained model with dense weights, if it was kept.
    train
        What was trained: `layers`, `scales` or `all`.
    layers
        How many layers were ternary in training.
    beside
        How many constants were trained beside them.
    data
        What it was trained on, in words.
    measure
        What held-out data was judged by; less is better.
    original, before, after
        That of the model as it was, of its ternary layers as first fitted, and of those that were
        kept.
    steps
        Steps that led to the state that was kept.
    seconds
        Time of training, that of judging included.
    course
        All judgements on the way.
    stopped
        Why training ended.
    resumed
        The step of the checkpoint that it went on from, None if it began anew.
    """

    rewrite: RewriteResult
    dense: Path | None
    train: str
    layers: int
    beside: int
    data: str
    measure: str
    original: float
    before: float
    after: float
    steps: int
    seconds: float
    course: tuple[Course, ...]
    stopped: str
    resumed: int | None
