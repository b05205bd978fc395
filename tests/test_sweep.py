"""`onnxlr.sweep`: what becomes of a model for a series of drops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxlr
from onnxlr.errors import DataError, ModelError, OutputError, UsageError
from onnxlr.planning.auto.stock import STOCK
from tests.classifier import classifier, samples

BUDGETS = (3e-6, 1e-4, 1e-3, 0.1)
Sweep = Callable[..., onnxlr.SweepResult]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `m.onnx`, and `c.npz` to calibrate on."""
    folder = tmp_path_factory.mktemp("sweep")
    onnx.save(classifier(), folder / "m.onnx")
    np.savez(folder / "c.npz", x=samples(300))
    return folder


@pytest.fixture(scope="module")
def sweep(place: Path) -> Sweep:
    """Sweep the classifier in this process."""

    def call(**options: Any) -> onnxlr.SweepResult:
        asked = {
            "calibration": place / "c.npz",
            "budgets": BUDGETS,
            "cache": place / "cache.sqlite",
            "stock": False,
            "isolate": False,
            "jobs": 1,
        }
        return onnxlr.sweep(place / "m.onnx", **asked | options)

    return call


@pytest.fixture(scope="module")
def swept(place: Path, sweep: Sweep) -> onnxlr.SweepResult:
    """Return a sweep with the stock options, whose plans are in `plans`."""
    return sweep(stock=True, output=place / "plans")


def planned(result: onnxlr.SweepResult) -> list[onnxlr.SweepPoint]:
    return [point for point in result.points if point.kind == "planned"]


def test_points_hold_their_budgets_and_cost_no_more_for_a_larger_one(
    swept: onnxlr.SweepResult,
) -> None:
    points = planned(swept)
    assert [point.budget for point in points] == list(BUDGETS)
    costs = []
    for point in points:
        assert point.problem is None
        assert point.drop is not None
        assert point.budget is not None
        assert 0 <= point.drop <= point.budget
        assert point.latency_low is not None
        assert point.latency is not None
        assert point.latency_high is not None
        assert point.latency_low <= point.latency <= point.latency_high
        assert point.size is not None
        costs.append(point.size + 0.02 * point.latency)
    assert costs == sorted(costs, reverse=True)
    assert len({point.bytes for point in points}) > 1
    assert costs[-1] < 0.5


def test_the_original_and_all_stock_options_are_points(swept: onnxlr.SweepResult) -> None:
    original = swept.points[0]
    assert (original.kind, original.size, original.drop) == ("original", 1.0, 0.0)
    assert original.latency == 1.0
    names = [point.name for point in swept.points if point.kind == "stock"]
    assert names == [option.name for option in STOCK]
    known = [point for point in swept.points if point.costs is not None]
    assert len(known) > len(BUDGETS) + 2
    for point in swept.points:
        assert (point.costs is None) == (point.problem is not None)


def test_points_on_the_front_are_those_that_no_other_beats(swept: onnxlr.SweepResult) -> None:
    costs = np.array([point.costs for point in swept.points if point.costs is not None])
    below = (costs[:, None] <= costs).all(axis=2) & (costs[:, None] < costs).any(axis=2)
    expected = ~below.any(axis=0)
    assert [p.on_front for p in swept.points if p.costs is not None] == expected.tolist()
    assert not any(p.on_front for p in swept.points if p.costs is None)


def test_plans_make_the_models_that_were_measured(
    place: Path, swept: onnxlr.SweepResult, tmp_path: Path
) -> None:
    held_out = onnxlr.calibration.Sources(place / "c.npz").held_out(
        onnxlr.open(place / "m.onnx"), 8
    )
    feeds = list(held_out)

    def outputs(file: Path) -> np.ndarray[Any, Any]:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, dict(feed))[0].ravel() for feed in feeds])

    expected = outputs(place / "m.onnx").astype(np.float64)
    for point in planned(swept):
        output = tmp_path / f"{point.budget}.onnx"
        assert point.plan_file == place / "plans" / f"m.{point.budget:g}.plan.json"
        result = onnxlr.rewrite(
            place / "m.onnx",
            output,
            plan=point.plan_file,
            calibration=place / "c.npz",
            tolerance="cosine>=0.5",
            isolate=False,
        )
        found = outputs(output).astype(np.float64)
        cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
        assert 1 - cosine == pytest.approx(point.drop, rel=0.02, abs=2e-7)
        written = [record for record in result.layers if not record.choice.keeps]
        assert len(written) == point.rewritten
        # Beside the layers, the file that is handed out carries its plan.
        assert point.bytes is not None
        carried = sum(
            len(entry.key) + len(entry.value) for entry in onnx.load(output).metadata_props
        )
        assert output.stat().st_size - carried == pytest.approx(point.bytes, abs=64)


@pytest.mark.slow
def test_child_processes_find_the_same(sweep: Sweep) -> None:
    asked = {"budgets": [1e-3], "layers": ["first"], "cache": None}
    here, there = sweep(**asked), sweep(**asked, isolate=True, jobs=2)
    assert there.candidates == here.candidates
    for one, other in zip(here.points, there.points, strict=True):
        assert (one.name, one.problem) == (other.name, other.problem)
        assert other.drop is not None
        assert other.drop <= 1e-3


def test_plans_say_why(swept: onnxlr.SweepResult) -> None:
    for point in planned(swept):
        assert point.plan is not None
        assert [*point.plan.layers] == ["first", "second", "head"]
        assert all(choice.reason for choice in point.plan.layers.values())
        assert any(choice.rejected for choice in point.plan.layers.values())


def test_the_cache_knows_all_of_it(sweep: Sweep, swept: onnxlr.SweepResult) -> None:
    again = sweep(stock=True)
    assert again.from_cache == again.candidates == swept.candidates
    assert again.built == swept.built
    without = [{**vars(point), "plan_file": None} for point in swept.points]
    assert [vars(point) for point in again.points] == without


def test_one_budget_finds_what_it_found_among_others(
    sweep: Sweep, swept: onnxlr.SweepResult
) -> None:
    (point,) = planned(sweep(budgets=[BUDGETS[-1]]))
    assert point.drop is not None
    assert point.drop <= BUDGETS[-1]
    assert point.size == pytest.approx(planned(swept)[-1].size, rel=0.05)


def _score(path: str) -> float:
    """Score models by their size alone: the smaller, the better."""
    return -float(Path(path).stat().st_size)


def test_functions_measure_drops(sweep: Sweep) -> None:
    result = sweep(measure=f"{__name__}:_score", budgets=[0.0], skip=["head"], cache=None)
    (point,) = planned(result)
    assert point.drop is not None
    assert point.drop < 0  # better than the original
    assert result.points[0].size is not None
    assert point.size is not None
    assert point.size < 0.8
    assert point.plan is not None
    assert point.plan.layers["head"].keeps


def test_where_nothing_holds_the_original_does(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}._score", lambda path: float(Path(path).stat().st_size))
    result = sweep(
        measure=f"{__name__}:_score", budgets=[0.0], output=tmp_path / "plans", cache=None
    )
    (point,) = planned(result)
    if point.problem is None:  # as large and faster
        assert point.costs is not None
        assert point.costs[0] >= 1 > point.costs[1]
    else:
        assert "original" in point.problem
        assert point.costs is None
        assert not point.on_front
        assert [*(tmp_path / "plans").iterdir()] == []


def test_models_in_memory_have_plans_too(place: Path, tmp_path: Path) -> None:
    result = onnxlr.sweep(
        classifier(),
        calibration={"x": samples(60)},
        budgets=[0.05],
        stock=False,
        output=tmp_path / "new",
        isolate=False,
        jobs=1,
    )
    assert planned(result)[0].plan_file == tmp_path / "new" / "model.0.05.plan.json"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.0.05.plan.json"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"goal": "tiny"}, UsageError, "goal 'tiny' is unknown"),
        ({"measure": "cosin"}, UsageError, "did you mean 'cosine'"),
        ({"budgets": [2.0]}, UsageError, "at most 1"),
        ({"jobs": 0}, UsageError, "1 or more"),
        ({"seed": -1}, UsageError, "seed -1 is negative"),
        ({"target": "tpu"}, UsageError, "tpu"),
        ({"layers": ["nothing*"]}, UsageError, "nothing"),
        ({"calibration": None}, UsageError, "needs calibration"),
        ({"calibration": {"y": samples(4)}}, DataError, "x"),
        ({"holdout": 1.5}, UsageError, "holdout"),
        ({"measure": "no_such_module:f"}, DataError, "no_such_module"),
        ({"output": "nowhere/plans"}, OutputError, "does not exist"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(
    sweep: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as caught:
        sweep(**options)
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []


def test_the_folder_of_plans_is_no_file_and_no_plan_is_a_folder(
    sweep: Sweep, tmp_path: Path
) -> None:
    file = tmp_path / "plans"
    file.write_text("mine")
    with pytest.raises(OutputError, match="is no folder"):
        sweep(output=file)
    assert file.read_text() == "mine"
    (tmp_path / "m.0.1.plan.json").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        sweep(output=tmp_path)


def test_models_that_cannot_be_read_are_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        onnxlr.sweep(tmp_path / "bad.onnx", calibration=place / "c.npz")
