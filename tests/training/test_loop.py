"""Steps, judgements, and when training ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import TrainingError  # noqa: E402
from onnxlr.training import loop  # noqa: E402
from onnxlr.training.loop import Checkpoint, Schedule, train  # noqa: E402
from tests.training.line import Line, line_data, numbers  # noqa: E402


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


def test_judging_that_takes_longer_than_its_part_does_not_take_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes a second, judging nine, and a tenth of the minute is six."""

    class Slow(Line):
        clock = 0.0

        def loss(self, batch: Mapping[str, np.ndarray]) -> Any:
            self.clock += 1
            return super().loss(batch)

        def judge(self, held: Sequence[Mapping[str, np.ndarray]]) -> float:  # noqa: ARG002
            self.clock += 9
            return 1.0

    trainee = Slow()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: trainee.clock)
    train(trainee, line_data(), Schedule(rate=0.05, minutes=1.0, patience=None))
    assert trainee.steps >= 12  # a judgement behind each step would leave five


def test_a_loss_that_depends_on_nothing_trained_is_named() -> None:
    class Detached(Line):
        def loss(self, batch: Mapping[str, np.ndarray]) -> Any:
            return super().loss(batch).detach()

    with pytest.raises(TrainingError, match="loss does not depend on what is trained"):
        train(Detached(), line_data(), Schedule(steps=5))


@pytest.mark.parametrize("judged", [math.nan, math.inf])
def test_a_start_that_cannot_be_judged_is_refused(judged: float) -> None:
    trainee = Line([judged])
    with pytest.raises(TrainingError, match=f"judged by {judged:g} before anything is trained"):
        train(trainee, line_data(), Schedule(steps=5))
    assert trainee.steps == 0


def test_a_later_judgement_that_is_infinite_is_only_a_bad_one() -> None:
    outcome = train(
        Line([5.0, math.inf, 2.0, math.inf]), line_data(), Schedule(steps=40, patience=None)
    )
    assert outcome.best.judged == 2.0
