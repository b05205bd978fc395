"""How long and how fast training goes, and how it went."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from onnxlr.errors import TrainingError

__all__ = ["Course", "Outcome", "Schedule"]

_STEPS = 1000
"""Where neither steps nor minutes are given."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes
    ----------
    rate
        Largest learning rate: it rises within the first steps, then falls with a cosine.
    steps
        Steps of the optimizer (Adam) at most; 1000 if neither these nor minutes are given.
    minutes
        Time at most, that of judging included; None for any.
    judgements
        How many times it is judged on the way, evenly in steps or time.
    patience
        Judgements without a new best that end training; None for never.
    clip
        Largest norm of the gradient of all parameters.
    decay
        Weight decay (AdamW).
    seed
        Of the order of samples, and of what torch draws meanwhile (dropout, a loss).
    """

    rate: float = 1e-3
    steps: int | None = None
    minutes: float | None = None
    judgements: int = 10
    patience: int | None = 4
    clip: float = 1.0
    decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("minutes", self.minutes), ("steps", self.steps)):
            if value is not None and not (0 < value < inf):
                raise TrainingError(f"{name} {value} is not a finite number above 0")
        if self.patience is not None and self.patience < 1:
            raise TrainingError(f"patience {self.patience} is not 1 judgement or more")
        if self.seed < 0:
            raise TrainingError(f"seed {self.seed} is not 0 or more")

    @property
    def most(self) -> int | None:
        """Steps at most; None where only the time ends it."""
        return _STEPS if self.steps is None and self.minutes is None else self.steps


@dataclass(frozen=True)
class Course:
    """One judgement.

    Attributes
    ----------
    step
        Steps made.
    seconds
        Time since training began.
    loss
        Mean of the steps since the last judgement; NaN before the first step.
    judged
        What the trainee said.
    """

    step: int
    seconds: float
    loss: float
    judged: float


@dataclass(frozen=True)
class Outcome:
    """How training went; the trainee is in its best state.

    Attributes
    ----------
    course
        All judgements; the first is that of the trainee as it came.
    best
        The judgement of the state that was kept.
    stopped
        Why it ended.
    resumed
        The step of the checkpoint that it went on from, None if it began anew.
    """

    course: tuple[Course, ...]
    best: Course
    stopped: str
    resumed: int | None = None

    @property
    def start(self) -> Course:
        """The trainee as it came."""
        return self.course[0]

    @property
    def improved(self) -> bool:
        """Whether the state that was kept is better than the one that came."""
        return self.best.judged < self.start.judged
