"""Steps, judgements, when training ends, and going on from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import OutputError, TrainingError  # noqa: E402
from onnxlr.training import loop  # noqa: E402
from onnxlr.training.data import TrainingData  # noqa: E402
from onnxlr.training.loop import Checkpoint, Schedule, train  # noqa: E402


class Line:
    """Fits `y = a x + b`; what it is asked in `judgements`, if given, is what it says instead."""

    def __init__(self, judgements: Sequence[float] = ()) -> None:
        self.values = torch.nn.Parameter(torch.zeros(2))
        self.judgements = list(judgements)
        self.judged = 0
        self.steps = 0
        self.seen: list[list[float]] = []

    def groups(self) -> Sequence[Mapping[str, Any]]:
        return [{"params": [self.values]}]

    def loss(self, batch: Mapping[str, np.ndarray]) -> Any:
        self.seen.append(batch["x"].tolist())
        x, y = (torch.from_numpy(batch[name]) for name in ("x", "y"))
        return (self.values[0] * x + self.values[1] - y).square().mean()

    def judge(self, held: Sequence[Mapping[str, np.ndarray]]) -> float:
        if self.judgements:
            self.judged += 1
            return self.judgements[min(self.judged, len(self.judgements)) - 1]
        with torch.no_grad():
            return float(torch.stack([self.loss(batch) for batch in held]).mean())

    def after_step(self) -> None:
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"values": self.values.detach()}

    def restore(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.values.copy_(state["values"])


def line_data(count: int = 40, batch: int = 8) -> TrainingData:
    x = np.linspace(-1, 1, count).astype(np.float32)
    piece = {"x": x, "y": 2 * x - 1}
    return TrainingData((piece,), batch, (piece,), "a line")


def numbers(state: Line) -> list[float]:
    return [float(value) for value in state.values.detach()]


def test_least_squares_are_found() -> None:
    trainee = Line()
    outcome = train(trainee, line_data(), Schedule(rate=0.1, steps=400, patience=None))
    assert numbers(trainee) == pytest.approx([2.0, -1.0], abs=1e-2)
    assert outcome.improved
    assert outcome.best.judged < 1e-3 < outcome.start.judged
    assert trainee.steps == 400
    assert outcome.stopped == "all steps were made"
    assert outcome.resumed is None


def test_it_is_judged_before_ten_times_on_the_way_and_not_twice_at_the_end() -> None:
    outcome = train(Line(), line_data(), Schedule(rate=0.01, steps=50, patience=None))
    assert [one.step for one in outcome.course] == list(range(0, 51, 5))
    assert math.isnan(outcome.course[0].loss)
    assert all(math.isfinite(one.loss) for one in outcome.course[1:])


def test_the_best_state_is_kept_and_patience_ends_training() -> None:
    # Judged before, then after 10, 20 … steps: best is the second, and three later gain nothing.
    judgements = [5.0, 3.0, 4.0, 4.0, 3.0, 1.0]
    trainee = Line(judgements)
    outcome = train(trainee, line_data(), Schedule(rate=0.05, steps=100, patience=3))
    assert outcome.stopped == "nothing was gained in the last 3 judgements"
    assert outcome.best.step == 10
    assert outcome.course[-1].step == trainee.steps == 40
    only_ten = Line(judgements[:2])
    data, schedule = line_data(), Schedule(rate=0.05, steps=100, patience=1)
    train(only_ten, data, schedule)
    assert numbers(trainee) == numbers(only_ten)


def test_a_state_that_never_got_better_is_the_one_that_came() -> None:
    trainee = Line([1.0, 2.0])
    outcome = train(trainee, line_data(), Schedule(rate=0.1, steps=20, patience=None))
    assert not outcome.improved
    assert numbers(trainee) == [0.0, 0.0]


def test_time_ends_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes on by one second whenever a batch is seen."""
    trainee = Line()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(len(trainee.seen)))
    outcome = train(trainee, line_data(), Schedule(rate=0.05, minutes=1.0, patience=None))
    assert outcome.stopped == "the time is over"
    assert 60 <= outcome.course[-1].seconds <= 62
    assert trainee.steps + len(outcome.course) == len(trainee.seen)
    assert outcome.improved


def test_batches_of_an_epoch_are_each_sample_once() -> None:
    trainee = Line([1.0])
    train(trainee, line_data(40, 8), Schedule(rate=1e-3, steps=10, patience=None))
    for epoch in (trainee.seen[:5], trainee.seen[5:10]):
        assert sorted(x for batch in epoch for x in batch) == line_data().pieces[0]["x"].tolist()
    assert trainee.seen[:5] != trainee.seen[5:10]


class Interrupting(Line):
    """Is interrupted at a step, the first time it gets there."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def after_step(self) -> None:
        super().after_step()
        if self.steps == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [11, 37, 50, 59])
def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path: Path, at: int) -> None:
    schedule = Schedule(rate=0.05, steps=60, patience=None, seed=3)
    whole = Line()
    expected = train(whole, line_data(), schedule)
    checkpoint = Checkpoint(tmp_path / "c", {"model": "m"})
    first = Interrupting(at)
    with pytest.raises(KeyboardInterrupt):
        train(first, line_data(), schedule, checkpoint)
    assert checkpoint.path.exists()
    second = Line()
    outcome = train(second, line_data(), schedule, checkpoint)
    assert outcome.resumed == (at - 1) // 6 * 6
    assert numbers(second) == numbers(whole)
    assert [(one.step, one.judged) for one in outcome.course] == [
        (one.step, one.judged) for one in expected.course
    ]


def test_what_was_best_before_an_interruption_stays_so(tmp_path: Path) -> None:
    schedule = Schedule(rate=0.05, steps=50, patience=None)
    checkpoint = Checkpoint(tmp_path / "c", {})

    class Cut(Line):
        def after_step(self) -> None:
            super().after_step()
            if self.steps == 18:
                raise RuntimeError("lost")

    first = Cut([5.0, 1.0, 2.0, 2.0])
    with pytest.raises(RuntimeError, match="lost"):
        train(first, line_data(), schedule, checkpoint)
    best = numbers(first)  # restored on the way out
    second = Line([2.0])
    outcome = train(second, line_data(), schedule, checkpoint)
    assert outcome.best.step == 5
    assert numbers(second) == best


def test_a_finished_run_is_not_trained_on(tmp_path: Path) -> None:
    schedule = Schedule(rate=0.05, steps=20, patience=None)
    checkpoint = Checkpoint(tmp_path / "c", {})
    first, second = Line(), Line()
    train(first, line_data(), schedule, checkpoint)
    outcome = train(second, line_data(), schedule, checkpoint)
    assert second.steps == 0
    assert outcome.resumed == 20
    assert numbers(first) == numbers(second)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    schedule = Schedule(rate=0.05, steps=20, patience=None)
    path = tmp_path / "c"
    train(Line(), line_data(), schedule, Checkpoint(path, {"data": "a"}))
    content = path.read_bytes()
    with pytest.raises(TrainingError, match=r"another run \(data was a, now b\).*remove it"):
        train(Line(), line_data(), schedule, Checkpoint(path, {"data": "b"}))
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "other", "bare"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    schedule = Schedule(rate=0.05, steps=20, patience=None)
    path = tmp_path / "c"
    train(Line(), line_data(), schedule, Checkpoint(path, {}))
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-200], "text": b"hello", "empty": b""}.get(damage, b""))
    if damage in ("other", "bare"):
        torch.save([1, 2] if damage == "other" else {"meaning": {}}, path)
    trainee = Line()
    with pytest.raises(TrainingError, match="is no checkpoint of onnxlr, or damaged: remove it"):
        train(trainee, line_data(), schedule, Checkpoint(path, {}))
    assert trainee.steps == 0


def test_a_checkpoint_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises((OutputError, TrainingError)):
        train(Line(), line_data(), Schedule(steps=5), Checkpoint(tmp_path, {}))


class Breaking(Line):
    """Gives NaN in some steps."""

    def __init__(self, bad: Sequence[int]) -> None:
        super().__init__()
        self.bad = bad
        self.asked = 0

    def loss(self, batch: Mapping[str, np.ndarray]) -> Any:
        found = super().loss(batch)
        if not torch.is_grad_enabled():
            return found
        self.asked += 1
        return found * float("nan") if self.asked in self.bad else found


def test_a_step_without_a_finite_loss_is_left_out() -> None:
    trainee = Breaking([3, 4])
    outcome = train(trainee, line_data(), Schedule(rate=0.1, steps=300, patience=None))
    assert trainee.steps == 298
    assert all(math.isfinite(one.loss) for one in outcome.course[1:])
    assert numbers(trainee) == pytest.approx([2.0, -1.0], abs=2e-2)


def test_steps_without_a_finite_loss_end_training_in_the_best_state(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c", {})
    trainee = Breaking(range(23, 100))
    with pytest.raises(TrainingError, match=r"loss is nan .* up to step 27: lower .*step 20, is k"):
        train(trainee, line_data(), Schedule(rate=0.05, steps=100, patience=None), checkpoint)
    assert all(math.isfinite(number) and number != 0 for number in numbers(trainee))
    assert torch.load(checkpoint.path)["step"] == 20


def test_the_rate_rises_and_falls_and_groups_scale_it() -> None:
    seen: list[tuple[float, ...]] = []

    class Watched(Line):
        optimizer: Any = None

        def groups(self) -> Sequence[Mapping[str, Any]]:
            other = torch.nn.Parameter(torch.zeros(1))
            return [{"params": [self.values]}, {"params": [other], "scale": 0.5}]

    trainee = Watched()
    work = loop._Loop(
        trainee,
        line_data(),
        Schedule(rate=1.0, steps=100, patience=None),
        None,
        lambda *_: seen.append(tuple(g["lr"] for g in work.optimizer.param_groups)),
        lambda _: None,
    )
    work.run()
    rates = np.array(seen)
    assert rates[:, 1] == pytest.approx(rates[:, 0] / 2)
    assert rates[0, 0] == pytest.approx(1 / 20, rel=0.01)
    assert rates[:, 0].argmax() == 19
    assert rates[60, 0] == pytest.approx(0.5 * (1 + math.cos(0.6 * math.pi)))
    assert rates[-1, 0] < 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"rate": math.nan},
        {"steps": 0},
        {"patience": 0},
        {"seed": -1},
        {"minutes": -1.0},
        {"minutes": math.inf},
    ],
)
def test_what_is_no_schedule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        Schedule(**wrong)
