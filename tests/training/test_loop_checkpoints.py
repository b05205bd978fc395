"""Runs that go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import OutputError, TrainingError  # noqa: E402
from onnxlr.training.loop import Checkpoint, Schedule, train  # noqa: E402
from tests.training.line import Line, line_data, numbers  # noqa: E402


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


class Drawing(Interrupting):
    """Draws noise in each step, as dropout does."""

    def __init__(self, at: int = 0) -> None:
        super().__init__(at)

    def loss(self, batch: Mapping[str, np.ndarray]) -> Any:
        return super().loss(batch) + (self.values * torch.randn(2)).sum() * torch.is_grad_enabled()


def test_random_numbers_go_on_from_a_checkpoint_and_are_the_callers_afterwards(
    tmp_path: Path,
) -> None:
    schedule = Schedule(rate=0.05, steps=60, patience=None, seed=3)
    before = torch.get_rng_state()
    whole = Drawing()
    train(whole, line_data(), schedule)
    assert torch.equal(torch.get_rng_state(), before)
    checkpoint = Checkpoint(tmp_path / "c", {})
    with pytest.raises(KeyboardInterrupt):
        train(Drawing(37), line_data(), schedule, checkpoint)
    torch.manual_seed(99)
    second = Drawing()
    assert train(second, line_data(), schedule, checkpoint).resumed == 36
    assert numbers(second) == numbers(whole)
    other = Drawing()
    train(other, line_data(), Schedule(rate=0.05, steps=60, patience=None, seed=4))
    assert numbers(other) != numbers(whole)


def test_a_longer_run_is_judged_as_often_behind_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c", {})
    short = Schedule(rate=0.05, steps=60, patience=None)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting(50), line_data(), short, checkpoint)
    outcome = train(Line(), line_data(), Schedule(steps=200, patience=None), checkpoint)
    steps = [one.step for one in outcome.course]
    assert steps == [*range(0, 49, 6), *range(60, 201, 20)]
