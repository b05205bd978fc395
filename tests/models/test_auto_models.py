"""The planner on real models: what it hands out holds, and is found again from the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import onnxlr
from onnxlr.calibration.data import load_function
from tools.auto_tasks import AUTO_TASKS, AutoTask
from tools.fetch_models import Unavailable

pytestmark = [pytest.mark.models, pytest.mark.slow]


def planned(task: AutoTask, folder: Path, name: str) -> tuple[Path, Any]:
    """Rewrite a model of the benchmark, and return the file and the result."""
    try:
        model, calibration = task.model(), list(task.calibration())
    except Unavailable as reason:
        pytest.skip(str(reason))
    result = onnxlr.rewrite(
        model,
        folder / name,
        method="auto",
        goal="size",
        max_drop=[f"{task.score}={task.drop}"],
        calibration=calibration,
        mask=task.mask,
        cache=folder / "cache.sqlite",
    )
    return model, result


@pytest.mark.parametrize("task", AUTO_TASKS, ids=[task.name for task in AUTO_TASKS])
def test_what_is_handed_out_holds(task: AutoTask, tmp_path: Path) -> None:
    if task.name in ("minilm", "ocr"):
        pytest.importorskip("tokenizers" if task.name == "minilm" else "PIL")
    model, result = planned(task, tmp_path, "first.onnx")
    score = load_function(task.score)
    first = tmp_path / "first.onnx"
    # The score is measured anew, by nothing of the planner's.
    assert score(str(model)) - score(str(first)) <= task.drop + 1e-9
    assert first.stat().st_size < 0.5 * model.stat().st_size
    winner = next(each for each in result.findings.contenders if each.chosen)
    for other in result.findings.contenders:
        if other.meets and not other.is_stock:
            assert winner.size <= other.size
    _, again = planned(task, tmp_path, "second.onnx")
    assert again.findings.from_cache == again.findings.candidates
    assert (tmp_path / "second.onnx").read_bytes() == first.read_bytes()
