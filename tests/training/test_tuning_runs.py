"""Runs that break off, go on, or gain nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import (  # noqa: E402
    NothingGainedError,
    TrainingError,
    VerificationError,
)
from onnxlr.training.tuning import file as tuned_file  # noqa: E402
from tests.training.tuning_case import Array, Case, samples  # noqa: E402


def test_the_same_run_gives_the_same_bytes(case: Case) -> None:
    case.tune(steps=20)
    first = case.output.read_bytes()
    case.tune(steps=20)
    assert case.output.read_bytes() == first
    case.tune(steps=20, seed=1)
    assert case.output.read_bytes() != first


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_run_that_breaks_off_goes_on_to_the_same_bytes(
    case: Case, error: type[BaseException]
) -> None:
    case.tune(steps=40)
    expected = case.output.read_bytes()
    case.output.unlink()
    steps = 0

    def interrupt(task: str, done: int, total: int) -> None:
        nonlocal steps
        steps += task.startswith("training")
        if steps == 23:
            raise error

    with pytest.raises(error):
        case.tune(steps=40, progress=interrupt)
    checkpoint = Path(f"{case.output}.checkpoint")
    assert checkpoint.exists()
    assert not case.output.exists()
    result = case.tune(steps=40)
    assert result.resumed == 20
    assert case.output.read_bytes() == expected
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_run_or_a_damaged_one_stops_it(case: Case) -> None:
    checkpoint = case.output.with_name("own.checkpoint")

    def interrupt(task: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.tune(progress=interrupt, checkpoint=checkpoint)
    content = checkpoint.read_bytes()
    for other in ({"seed": 1}, {"train": "all"}, {"data": {"x": samples(seed=3)}}, {"hidden": 0.0}):
        with pytest.raises(TrainingError, match=r"own\.checkpoint: is a checkpoint of another run"):
            case.tune(checkpoint=checkpoint, **other)
    assert checkpoint.read_bytes() == content
    checkpoint.write_bytes(content[:1000])
    with pytest.raises(TrainingError, match=r"own\.checkpoint: is no checkpoint .* or damaged"):
        case.tune(checkpoint=checkpoint)
    assert not case.output.exists()


def test_what_gains_nothing_is_not_written(case: Case) -> None:
    case.output.write_bytes(b"older")
    with pytest.raises(NothingGainedError, match="nothing was gained on held-out data") as caught:
        case.tune(steps=20, rate=10.0, keep=True)
    assert case.output.read_bytes() == b"older"
    assert caught.value.exit_code == 1
    assert caught.value.result.output is None
    assert caught.value.result.report is None
    assert not Path(f"{case.output}.checkpoint").exists()


def test_what_does_not_hold_is_not_written_unless_kept(case: Case) -> None:
    with pytest.raises(
        VerificationError, match=r"approximation proof.*expected >=0\.9999"
    ) as caught:
        case.tune(tolerance="cosine>=0.9999")
    assert not case.output.exists()
    assert caught.value.result.output is None
    assert Path(f"{case.output}.checkpoint").exists()
    with pytest.raises(VerificationError):
        case.tune(tolerance="cosine>=0.9999", keep=True)
    assert case.output.exists()
    result = case.tune()
    assert result.resumed == 40  # what was trained is there
    assert result.output == case.output


def test_a_run_goes_on_with_other_steps_and_another_rate(case: Case) -> None:
    """What a run may take from a checkpoint is not how long and how fast it goes on."""

    def interrupt(task: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.tune(progress=interrupt)
    result = case.tune(steps=60, rate=1e-4, patience=9)
    assert result.resumed == 28
    assert result.course[-1].step == 60


def written_as(case: Case, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Let the file get only a share of what training changed."""
    came = {t.name: numpy_helper.to_array(t) for t in onnx.load(case.rewritten).graph.initializer}
    right = tuned_file.current_values

    def wrong(*arguments: Any) -> dict[str, Array]:
        return {k: came[k] + share * (v - came[k]) for k, v in right(*arguments).items()}

    monkeypatch.setattr(tuned_file, "current_values", wrong)


def test_a_file_that_is_not_what_was_trained_fails(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_as(case, monkeypatch, 0.5)
    with pytest.raises(VerificationError, match="torch proof") as caught:
        case.tune()
    assert caught.value.result.after < caught.value.result.before
    assert not case.output.exists()


def test_a_file_that_is_worse_than_what_was_trained_is_never_kept(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_as(case, monkeypatch, -2.0)
    with pytest.raises(NothingGainedError, match="nothing was gained"):
        case.tune(keep=True)
    assert not case.output.exists()
