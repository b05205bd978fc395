"""Steps, the time they take, when to stop, and checkpoints: what all training has in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import cos, floor, isfinite, pi
from typing import Any

import numpy as np

from onnxlr.errors import TrainingError
from onnxlr.progress import Progress, silent
from onnxlr.training.checkpoint import (
    Checkpoint,
    random_state,
    read_checkpoint,
    restore_random_state,
    write_checkpoint,
)
from onnxlr.training.data import Arrays, TrainingData
from onnxlr.training.schedule import Course, Outcome, Schedule
from onnxlr.training.torch_import import torch
from onnxlr.training.trainee import Trainee

__all__ = ["Checkpoint", "Course", "Outcome", "Schedule", "Trainee", "train"]

_WARM_UP = 20
"""Steps in which the learning rate rises."""

_BLOWN_UP = 5
"""Steps without a finite loss or gradient, one after the other, that end training."""

_SLACK = 1e-9
"""Of parts of a run, which are quotients."""


@dataclass
class _Going:
    """A run under way."""

    step: int = 0
    seconds: float = 0.0
    course: list[Course] = field(default_factory=list)
    best: Course | None = None
    best_state: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    blown_up: int = 0

    def since_best(self) -> int:
        """Return the judgements after the best one."""
        return 0 if self.best is None else len(self.course) - 1 - self.course.index(self.best)


def train(
    trainee: Trainee,
    data: TrainingData,
    schedule: Schedule,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    tell: Callable[[Course], None] = lambda course: None,  # noqa: ARG005
) -> Outcome:
    """Train until steps, time or patience end, and put the trainee in its best state.

    Parameters
    ----------
    trainee
        What is trained; it is changed.
    data
        Batches, and held-out ones.
    schedule
        How long and how fast.
    checkpoint
        Where to write and find checkpoints. One that is there is gone on from.
    progress
        Called after each step. What changes is in the task's name behind a semicolon: the loss,
        and what was judged last.
    tell
        Called at each judgement.

    Raises
    ------
    TrainingError
        If held-out data is judged by NaN or infinity before training; if the loss does not depend
        on what is trained, or it or its gradient is NaN or infinite several times in a row; if the
        checkpoint cannot be read or is of another run. The trainee is then in its best state.
    """
    accelerators = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(accelerators):
        torch.manual_seed(schedule.seed)
        return _Loop(trainee, data, schedule, checkpoint, progress, tell).run()


class _Loop:
    def __init__(
        self,
        trainee: Trainee,
        data: TrainingData,
        schedule: Schedule,
        checkpoint: Checkpoint | None,
        progress: Progress,
        tell: Callable[[Course], None],
    ) -> None:
        self.trainee, self.data, self.schedule = trainee, data, schedule
        self.checkpoint, self.progress, self.tell = checkpoint, progress, tell
        self.going = _Going()
        self.resumed: int | None = None
        groups = [dict(group) for group in trainee.groups()]
        self.scales = [float(group.pop("scale", 1.0)) for group in groups]
        self.optimizer = torch.optim.AdamW(groups, schedule.rate, weight_decay=schedule.decay)
        self.since = time.perf_counter()

    def run(self) -> Outcome:
        self._resume()
        if not self.going.course:
            self._judge()
        stopped = None
        try:
            for batch in self._batches():
                stopped = self._reason()
                if stopped is not None:
                    break
                self._step(batch)
                if self._is_due():
                    self._judge()
        finally:
            self.trainee.restore(self.going.best_state)
        best = self.going.best
        if best is None or stopped is None:
            raise ValueError("training ended without a judgement")
        return Outcome(tuple(self.going.course), best, stopped, self.resumed)

    def _batches(self) -> Iterator[Arrays]:
        """Yield batches without end, those of a resumed run from where it was."""
        epoch, within = divmod(self.going.step, max(self.data.batches, 1))
        while True:
            generator = np.random.default_rng((self.schedule.seed, epoch))
            for place, batch in enumerate(self.data.epoch(generator)):
                if place >= within:
                    yield batch
            epoch, within = epoch + 1, 0

    @property
    def _seconds(self) -> float:
        return self.going.seconds + time.perf_counter() - self.since

    @property
    def _done(self) -> float:
        """The part of the run that is over, by steps or time, whichever is nearer to its end."""
        return self._part(self.going.step, self._seconds)

    def _part(self, step: int, seconds: float) -> float:
        parts = [0.0]
        if self.schedule.most is not None:
            parts.append(step / self.schedule.most)
        if self.schedule.minutes is not None:
            parts.append(seconds / (60 * self.schedule.minutes))
        return min(max(parts), 1.0)

    def _reason(self) -> str | None:
        """Return why training ends now, None if it does not."""
        going, patience = self.going, self.schedule.patience
        if self._done >= 1:
            if going.course[-1].step < going.step:
                self._judge()
            by_steps = self.schedule.most is not None and going.step >= self.schedule.most
            return "all steps were made" if by_steps else "the time is over"
        if patience is not None and going.since_best() >= patience:
            return f"nothing was gained in the last {patience} judgements"
        return None

    def _is_due(self) -> bool:
        """Whether another of the parts of the run is over since it was judged.

        A checkpoint may be gone on from with another number of steps, and judging may take longer
        than a part: what was judged before is counted by where it would be in this run.
        """
        last = self.going.course[-1]
        parts = self.schedule.judgements
        since = self._part(last.step, last.seconds) * parts
        return floor(self._done * parts + _SLACK) > floor(since + _SLACK)

    def _step(self, batch: Arrays) -> None:
        going = self.going
        warm = min((going.step + 1) / _WARM_UP, 1.0)
        rate = self.schedule.rate * warm * 0.5 * (1 + cos(pi * self._done))
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.trainee.loss(batch)
        if not loss.requires_grad:
            raise TrainingError(
                "the loss does not depend on what is trained, or on outputs without their "
                "gradients (detach, numpy)"
            )
        loss.backward()
        owned = [value for group in self.optimizer.param_groups for value in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(owned, self.schedule.clip)
        going.step += 1
        if not isfinite(float(loss.detach())) or not isfinite(float(norm)):
            self._blown_up(float(loss.detach()))
            return
        going.blown_up = 0
        self.optimizer.step()
        self.trainee.after_step()
        going.losses.append(float(loss.detach()))
        self._report(going.losses[-1])

    def _blown_up(self, loss: float) -> None:
        """Leave a step out; too many in a row end training."""
        self.going.blown_up += 1
        if self.going.blown_up < _BLOWN_UP:
            return
        best = self.going.best
        kept = "" if best is None else f" (the best state, of step {best.step}, is kept)"
        raise TrainingError(
            f"the loss is {loss:g} or its gradient is not finite in {_BLOWN_UP} steps up to step "
            f"{self.going.step}: lower the learning rate (it is {self.schedule.rate:g}){kept}"
        )

    def _report(self, loss: float) -> None:
        judged = self.going.course[-1].judged
        since = "" if self.resumed is None else f" from step {self.resumed} on"
        name = f"training{since}; loss {loss:.3g}, held out {judged:.3g}"
        if self.schedule.minutes is not None and self.schedule.most is None:
            total = round(60 * self.schedule.minutes)
            self.progress(name, min(round(self._seconds), total), total)
        else:
            most = self.schedule.most or 1
            self.progress(name, min(self.going.step, most), most)

    def _judge(self) -> None:
        going = self.going
        judged = self.trainee.judge(self.data.held)
        if not going.course and not isfinite(judged):
            raise TrainingError(
                f"held-out data is judged by {judged:g} before anything is trained, expected a "
                "finite number: the loss or the model gives NaN or infinity there"
            )
        mean = float(np.mean(going.losses)) if going.losses else float("nan")
        course = Course(going.step, self._seconds, mean, judged)
        going.course.append(course)
        going.losses.clear()
        if going.best is None or judged < going.best.judged:
            going.best, going.best_state = course, _copied(self.trainee.state())
        self.tell(course)
        self._save()

    def _save(self) -> None:
        if self.checkpoint is None or self.going.step == 0:
            return
        going = self.going
        content = {
            "step": going.step,
            "seconds": self._seconds,
            "course": [[one.step, one.seconds, one.loss, one.judged] for one in going.course],
            "best": going.course.index(going.best) if going.best is not None else 0,
            "best_state": going.best_state,
            "state": self.trainee.state(),
            "optimizer": self.optimizer.state_dict(),
            "blown_up": going.blown_up,
            "random": random_state(),
        }
        write_checkpoint(self.checkpoint, content)

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.path.exists():
            return
        content = read_checkpoint(self.checkpoint)
        course = [Course(*entry) for entry in content["course"]]
        self.going = _Going(content["step"], content["seconds"], course)
        self.resumed = self.going.step
        self.going.best = course[content["best"]]
        self.going.best_state = content["best_state"]
        self.trainee.restore(content["state"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.going.blown_up = content["blown_up"]
        restore_random_state(content["random"])
        self.since = time.perf_counter()


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }
