"""The planner from a model to a proved file, on a small classifier."""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlr
from onnxlr.errors import OnnxlrWarning
from onnxlr.planning.auto import contest
from onnxlr.planning.auto.building import Whole
from onnxlr.planning.auto.contest import ORIGINAL, PLANNED
from onnxlr.runtime import Latency, Race
from tests.classifier import classifier, samples
from tests.onelayer import run
from tests.operators.oplibrary import installed_library
from tests.planned import DATA, count_time, rewrite, seconds_of

LAYERS = ["first", "second", "head"]


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count_time(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(classifier(), path)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by what is run: whole models that are built or compared, races."""
    seen: list[str] = []

    def note(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            seen.append(name)
            return function(*arguments, **named)

        return noted

    for name in ("measure", "drops", "race"):
        monkeypatch.setattr(Whole, name, note(name, getattr(Whole, name)))
    return seen


def cosine(file: Path) -> float:
    """Return the cosine of a file's logits to the original's, on the samples held out."""
    x = DATA["x"][4::5]
    one, other = (
        run(each, {"x": x})[0].astype(float).ravel() for each in (classifier(), onnx.load(file))
    )
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def metadata(file: Path) -> dict[str, Any]:
    entries = {e.key: e.value for e in onnx.load(file).metadata_props}
    return dict(json.loads(entries["onnxlr.plan"]))


# --- from a model to a file ----------------------------------------------------------------------


def test_without_a_method_the_planner_makes_a_smaller_model_that_is_proved(
    model: Path, output: Path
) -> None:
    result = rewrite(model, output)
    assert result.output == output
    assert result.report is not None
    assert result.report.passed
    assert result.bytes_after == output.stat().st_size < 0.7 * result.bytes_before
    assert 1 - cosine(output) <= 0.01
    found = result.findings
    assert found is not None
    by_name = {each.name: each for each in found.contenders}
    assert list(by_name) == [ORIGINAL, PLANNED]
    assert by_name[PLANNED].chosen
    # The file has the plan in it as well, which none that was measured has.
    bare = onnx.load(output)
    del bare.metadata_props[:]
    assert by_name[PLANNED].bytes == pytest.approx(bare.ByteSize(), rel=0.02)
    assert found.from_cache == 0 < found.candidates
    assert [each.drops["cosine"] <= 0.01 for each in found.rounds if each.meets]


def test_the_plan_says_why_and_gives_the_same_bytes_again(model: Path, output: Path) -> None:
    result = rewrite(model, output)
    assert list(result.plan.layers) == LAYERS
    for choice in result.plan.layers.values():
        assert not choice.keeps
        assert choice.reason is not None
        assert choice.reason.startswith("best of ")
        assert choice.rejected
        assert choice.summary not in choice.rejected
    written = metadata(output)["layers"]
    assert all("rejected" not in entry and "reason" in entry for entry in written.values())
    again = output.with_name("again.onnx")
    onnxlr.rewrite(model, again, plan=result.plan, calibration=DATA, isolate=False)
    assert again.read_bytes() == output.read_bytes()
    file = output.with_name("plan.json")
    file.write_text(result.plan.dumps())
    assert json.loads(file.read_text())["layers"]["first"]["rejected"]
    onnxlr.rewrite(model, again, plan=file, calibration=DATA, isolate=False)
    assert again.read_bytes() == output.read_bytes()


def test_plan_alone_says_the_same(model: Path, output: Path) -> None:
    made = onnxlr.plan(model, calibration=DATA, isolate=False, stock=False)
    assert made.dumps() == rewrite(model, output).plan.dumps()


def test_processes_side_by_side_and_none_give_the_same_bytes(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = set()
    for number, arguments in enumerate(({"isolate": False}, {"isolate": True, "jobs": 2})):
        file = output.with_name(f"{number}.onnx")
        rewrite(model, file, layers=["first", "head"], **arguments)
        made.add(file.read_bytes())
    assert len(made) == 1


# --- goals ---------------------------------------------------------------------------------------


def test_goals_order_sizes_and_times(model: Path, output: Path) -> None:
    sizes, times = {}, {}
    for goal in ("size", "latency", "balanced"):
        file = output.with_name(f"{goal}.onnx")
        result = rewrite(model, file, goal=goal, cache=output.with_name("c.sqlite"))
        assert result.findings is not None
        chosen = next(each for each in result.findings.contenders if each.chosen)
        assert chosen.size is not None
        assert chosen.latency is not None
        sizes[goal], times[goal] = chosen.size, chosen.latency
    assert sizes["size"] <= sizes["balanced"] <= sizes["latency"]
    assert times["latency"] <= times["balanced"] <= times["size"]


def test_the_tighter_the_limit_the_larger_the_file(model: Path, output: Path) -> None:
    cache = output.with_name("c.sqlite")
    sizes = []
    for drop in (1e-7, 1e-5, 1e-3):
        result = rewrite(model, output, goal="size", max_drop=[f"cosine={drop}"], cache=cache)
        assert 1 - cosine(output) <= drop
        assert result.findings is not None
        sizes.append(next(each.size for each in result.findings.contenders if each.chosen))
    assert sizes[0] > sizes[1] > sizes[2]


def test_two_limits_hold_at_once(model: Path, output: Path) -> None:
    result = rewrite(model, output, goal="size", max_drop=["cosine=0.5", "relout=0.02"])
    assert result.findings is not None
    planned = result.findings.contenders[-1]
    assert planned.drops.keys() == {"cosine", "relout"}
    assert planned.drops["relout"] <= 0.02
    # ‖y − ŷ‖ ≤ .02 ‖y‖ makes the cosine at least √(1 − .02²).
    assert cosine(output) >= np.sqrt(1 - 0.02**2) - 1e-9


def test_a_function_of_the_users_limits_the_loss(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The function wants layer `second` as it is: nothing else is said of outputs."""
    (tmp_path / "my_scores.py").write_text(
        "import onnx\n"
        "def score(path):\n"
        "    names = {t.name for t in onnx.load(path).graph.initializer}\n"
        "    return 1.0 if 'w2' in names else 0.25\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = rewrite(model, output, max_drop="my_scores:score=0.5")
    assert result.plan.layers["second"].keeps
    assert {name for name, choice in result.plan.layers.items() if not choice.keeps}
    wanted = rewrite(model, output, max_drop="my_scores:score=0.8")
    assert not wanted.plan.layers["second"].keeps


def test_a_function_that_was_changed_is_measured_anew(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At first it minds nothing, then it wants layer `second` as it is."""
    file, cache = tmp_path / "changing_scores.py", tmp_path / "c.sqlite"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # both are of one second, maybe
    plans = []
    for kept in ("True", "'w2' in names"):
        file.write_text(
            "import onnx\n"
            "def score(path):\n"
            "    names = {t.name for t in onnx.load(path).graph.initializer}\n"
            f"    return float({kept})\n"
        )
        sys.modules.pop("changing_scores", None)
        plans.append(rewrite(model, output, max_drop="changing_scores:score=0.5", cache=cache).plan)
    assert not plans[0].layers["second"].keeps
    assert plans[1].layers["second"].keeps


def test_a_function_that_is_not_there_is_refused_before_the_work(
    model: Path, output: Path, measured: list[str]
) -> None:
    with pytest.raises(onnxlr.DataError, match="nowhere"):
        rewrite(model, output, max_drop=["nowhere:score=0.5"])
    assert measured == []


@pytest.mark.parametrize("bound", [0.7, 0.9])
def test_the_best_outputs_within_a_size(model: Path, output: Path, bound: float) -> None:
    cache = output.with_name("c.sqlite")
    result = rewrite(model, output, max_size=bound, cache=cache)
    assert result.findings is not None
    planned = result.findings.contenders[-1]
    assert planned.chosen
    assert planned.size is not None
    assert planned.size <= bound
    tighter = rewrite(model, output, max_size=bound - 0.15, cache=cache)
    assert tighter.findings is not None
    assert planned.drops["relout"] < tighter.findings.contenders[-1].drops["relout"]


@pytest.mark.parametrize(
    "wanted",
    [{"max_size": 0.01}, {"max_latency": 0.01}, {"max_size": 0.4, "max_drop": "cosine=1e-9"}],
)
def test_a_goal_that_nothing_meets(model: Path, output: Path, wanted: dict[str, Any]) -> None:
    with pytest.raises(onnxlr.GoalNotMetError) as error:
        rewrite(model, output, **wanted)
    assert re.search(r"m\.onnx: no (choice of candidates is as small|plan meets)", str(error.value))
    assert "\n" not in str(error.value)
    assert not output.exists()
    assert error.value.result.contenders[0].name == ORIGINAL


# --- what is meant -------------------------------------------------------------------------------


def test_layers_and_skip(model: Path, output: Path) -> None:
    result = rewrite(model, output, layers=["[fs]*"], skip=["second"])
    reasons = {name: choice.reason for name, choice in result.plan.layers.items()}
    assert not result.plan.layers["first"].keeps
    assert result.plan.layers["second"].keeps
    assert result.plan.layers["head"].keeps
    assert "skip" in str(reasons["second"])
    again = output.with_name("again.onnx")
    onnxlr.rewrite(model, again, plan=result.plan, calibration=DATA, isolate=False)
    assert again.read_bytes() == output.read_bytes()
    with pytest.raises(onnxlr.UsageError, match="nothing"):
        rewrite(model, output, layers=["nothing*"])


def test_the_op_librarys_operators_where_the_target_has_them(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_library()
    count_time(monkeypatch, ("ternary",))
    drop = "relout=0.9"
    plain = rewrite(model, output, max_drop=drop, goal="size")
    result = rewrite(model, output, max_drop=drop, goal="size", target="onnxlr")
    assert result.plan.target == "onnxlr"
    assert plain.plan.target == "onnx"
    kinds = {node.domain for node in onnx.load(output).graph.node}
    assert kinds - {"", "ai.onnx"}
    assert result.report is not None
    assert result.report.passed


def test_importance_is_not_ignored_in_silence(model: Path, output: Path) -> None:
    importance = {"w1": np.ones((24, 32), np.float32)}
    with pytest.raises(onnxlr.UsageError, match="'importance' is for one method"):
        rewrite(model, output, importance=importance, method="auto")
    with pytest.raises(onnxlr.UsageError, match="importance is given, but metric activation"):
        onnxlr.rewrite(model, output, calibration=DATA, importance=importance, isolate=False)


# --- without data --------------------------------------------------------------------------------


def test_without_data_only_what_is_safe_and_it_says_so(model: Path, output: Path) -> None:
    with pytest.warns(OnnxlrWarning, match="only what is safe without it"):
        result = rewrite(model, output, calibration=None)
    assert result.report is not None
    assert result.report.passed
    assert result.bytes_after < result.bytes_before
    rewritten = [choice for choice in result.plan.layers.values() if not choice.keeps]
    assert rewritten
    for choice in rewritten:
        assert choice.activations == "float"
        assert not choice.needs_statistics
        assert choice.format in ("float16", "int8")
    assert cosine(output) > 0.9999
    again = output.with_name("again.onnx")
    onnxlr.rewrite(model, again, plan=result.plan, isolate=False)
    assert again.read_bytes() == output.read_bytes()


def test_without_data_a_goal_that_nothing_meets(model: Path, output: Path) -> None:
    with (
        pytest.warns(OnnxlrWarning, match="only what is safe"),
        pytest.raises(onnxlr.GoalNotMetError, match="nothing that is safe"),
    ):
        rewrite(model, output, calibration=None, max_size=0.01)
    assert not output.exists()


def test_a_score_of_the_users_cannot_be_kept_to_without_data(model: Path, output: Path) -> None:
    with pytest.raises(onnxlr.UsageError, match=r"os.path:getsize=0.1.*give --calibration"):
        rewrite(model, output, calibration=None, max_drop="os.path:getsize=0.1")


def test_statistics_without_data(model: Path, output: Path) -> None:
    statistics = onnxlr.observe(model, DATA, isolate=False)
    with pytest.warns(OnnxlrWarning, match="only what is safe without it"):
        result = rewrite(model, output, calibration=None, statistics=statistics)
    assert any(not choice.keeps for choice in result.plan.layers.values())
    again = output.with_name("again.onnx")
    onnxlr.rewrite(model, again, plan=result.plan, statistics=statistics, isolate=False)
    assert again.read_bytes() == output.read_bytes()


# --- the simple options --------------------------------------------------------------------------


def test_a_stock_option_that_is_better_is_handed_out(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    """Here a copy of the original that takes a hundredth of its time."""
    small = classifier()
    small.graph.name = "stock"

    def make_stock(_: Path, folder: Path, *__: object) -> list[tuple[str, Path | str]]:
        onnx.save(small, folder / "s.onnx")
        return [("a wonder", folder / "s.onnx"), ("a failure", "it cannot be made")]

    def race(_: Whole, models: list[Path]) -> list[Latency]:
        parts = [0.01 if onnx.load(m).graph.name == "stock" else 1.0 for m in models]
        return [Latency(part, part, part, part) for part in [1.0, *parts]]

    monkeypatch.setattr(contest, "make_stock", make_stock)
    monkeypatch.setattr(Whole, "race", race)
    cache = output.with_name("c.sqlite")
    result = rewrite(model, output, stock=True, goal="latency", cache=cache)
    assert onnx.load(output).graph.name == "stock"
    assert all(choice.keeps for choice in result.plan.layers.values())
    reasons = {choice.reason for choice in result.plan.layers.values()}
    assert reasons == {"a wonder makes a better model of the whole"}
    assert all(choice.rejected for choice in result.plan.layers.values())
    assert result.findings is not None
    assert [(c.name, c.chosen) for c in result.findings.contenders if c.meets][1] == (
        "a wonder",
        True,
    )
    assert result.findings.contenders[2].problem == "it cannot be made"
    before, content = len(measured), output.read_bytes()
    again = rewrite(model, output, stock=True, goal="latency", cache=cache)
    assert (again.findings.contenders, output.read_bytes()) == (result.findings.contenders, content)
    assert measured[before:] == []
    # It loses nothing: a limit that was not asked for before changes nothing.
    tight = rewrite(
        model, output, stock=True, goal="latency", cache=cache, max_drop=["cosine=1e-9"]
    )
    assert tight.findings is not None
    assert next(each.name for each in tight.findings.contenders if each.chosen) == "a wonder"


def test_a_stock_option_that_loses_too_much_is_shown_and_not_timed(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_stock(_: Path, folder: Path, *__: object) -> list[tuple[str, Path | str]]:
        onnx.save(classifier(w3=np.zeros((32, 10), np.float32)), folder / "s.onnx")
        return [("ruin", folder / "s.onnx")]

    monkeypatch.setattr(contest, "make_stock", make_stock)
    cache = output.with_name("c.sqlite")
    result = rewrite(model, output, stock=True, cache=cache)
    assert result.findings is not None
    ruin = next(each for each in result.findings.contenders if each.name == "ruin")
    assert (ruin.meets, ruin.latency, ruin.chosen) == (False, None, False)
    assert ruin.drops["cosine"] > 0.1
    # The same measurements judge by another limit.
    lax = rewrite(model, output, stock=True, cache=cache, max_drop="cosine=1")
    assert lax.findings is not None
    ruin = next(each for each in lax.findings.contenders if each.name == "ruin")
    assert ruin.meets
    assert ruin.latency is not None


def test_the_original_where_nothing_gains(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is not the original takes twice its time."""
    original = seconds_of(model)

    def race(_: Whole, models: list[Path]) -> list[Latency]:
        return [Latency(s * original, s, s, s) for s in [1.0] + [2.0] * len(models)]

    monkeypatch.setattr(Whole, "race", race)
    result = rewrite(model, output, goal="latency")
    assert output.read_bytes() == model.read_bytes()
    assert result.report is None
    assert all(choice.keeps for choice in result.plan.layers.values())
    assert result.findings is not None
    assert result.findings.contenders[0].chosen


# --- the cache -----------------------------------------------------------------------------------


def test_a_second_run_measures_nothing_and_gives_the_same(
    model: Path, output: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = output.with_name("c.sqlite")
    first = rewrite(model, output, cache=cache)
    content, before = output.read_bytes(), len(measured)
    assert {"measure", "drops", "race"} <= set(measured)

    def never(*_: object) -> list[list[Latency]]:
        raise AssertionError("a candidate is timed again")

    monkeypatch.setattr("onnxlr.planning.auto.trials.measure_latency", never)
    second = rewrite(model, output, cache=cache)
    assert measured[before:] == []
    assert output.read_bytes() == content
    assert first.findings is not None
    assert second.findings is not None
    assert second.findings.candidates == second.findings.from_cache == first.findings.candidates
    assert second.findings.contenders == first.findings.contenders
    assert second.findings.rounds == first.findings.rounds
    assert second.plan.dumps() == first.plan.dumps()


class Interruption:
    """Interrupts, as Ctrl-C does, when a task begins for the second time."""

    def __init__(self, task: str, times: int = 1) -> None:
        self.task, self.left = task, times

    def __call__(self, task: str, *_: int) -> None:
        if task.startswith(self.task):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_from_what_was_measured(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    monkeypatch.setattr("onnxlr.planning.auto.table._TOGETHER", 1)
    whole = rewrite(model, output)
    content = output.read_bytes()
    output.unlink()
    cache = output.with_name("c.sqlite")
    with pytest.raises(KeyboardInterrupt):
        rewrite(model, output, cache=cache, progress=Interruption("measuring candidates"))
    assert not output.exists()
    result = rewrite(model, output, cache=cache)
    assert output.read_bytes() == content
    assert result.findings is not None
    assert whole.findings is not None
    assert 0 < result.findings.from_cache < result.findings.candidates == whole.findings.candidates


def test_an_interruption_leaves_nothing_among_temporary_files(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    for task in ("fitting", "measuring candidates", "building", "timing", "factorizing"):
        with pytest.raises(KeyboardInterrupt):
            rewrite(model, output, progress=Interruption(task, 0), layers=["first"])
        gc.collect()  # the folder goes with the last frame that knows it
        assert list(place.iterdir()) == [], task
    rewrite(model, output, layers=["first"])
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"calibration": {"x": samples(64, seed=9)}},
        {"seed": 5},
        {"calibration": {"x": np.concatenate([samples(64), samples(1, seed=4)])}},
    ],
    ids=["data", "seed", "one sample more"],
)
def test_what_depends_on_other_things_is_measured_anew(
    model: Path, output: Path, measured: list[str], changed: dict[str, Any]
) -> None:
    cache = output.with_name("c.sqlite")
    rewrite(model, output, cache=cache)
    before = len(measured)
    result = rewrite(model, output, cache=cache, **changed)
    assert result.findings is not None
    assert result.findings.from_cache == 0
    assert "measure" in measured[before:]
    fresh = output.with_name("fresh.onnx")
    rewrite(model, fresh, **changed)
    assert fresh.read_bytes() == output.read_bytes()


def test_runs_that_nothing_is_compared_on_count_as_well(
    model: Path, output: Path, measured: list[str]
) -> None:
    """They are part of what layers are fitted to, and of no other input to the measurements."""
    runs = [{"x": samples(4, seed=number)} for number in range(40)]
    cache = output.with_name("c.sqlite")
    rewrite(model, output, cache=cache, calibration=runs, layers=["head"])
    before = len(measured)
    runs[38] = {"x": samples(4, seed=99)}
    rewrite(model, output, cache=cache, calibration=runs, layers=["head"])
    assert "measure" in measured[before:]


def test_only_a_changed_weight_is_measured_anew(model: Path, output: Path, tmp_path: Path) -> None:
    """The layers behind it take other inputs, so they are measured anew, too."""
    cache = output.with_name("c.sqlite")
    first = rewrite(model, output, cache=cache)
    other = tmp_path / "other.onnx"
    onnx.save(classifier(w3=np.asarray(samples(10, seed=3).T[:10].repeat(4, 0)[:32], "f4")), other)
    result = rewrite(other, output, cache=cache, layers=["head"])
    assert result.findings is not None
    assert result.findings.from_cache == 0
    assert first.findings is not None
    fresh = output.with_name("fresh.onnx")
    rewrite(other, fresh, layers=["head"])
    assert fresh.read_bytes() == output.read_bytes()


def test_measured_races_are_used(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where int8 takes ten times as long, it is not chosen for speed."""
    slow = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}

    def seconds(file: str) -> float:
        kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer}
        return seconds_of(file) * (10 if kinds & slow else 1)

    def race(races: list[Race], *_: object) -> list[list[Latency]]:
        found = []
        for each in races:
            parts = [seconds(str(m)) / seconds(str(each.models[0])) for m in each.models]
            found.append([Latency(p * 1e-6, p, p, p) for p in parts])
        return found

    assert any(
        choice.format == "int8"
        for choice in rewrite(model, output, goal="latency").plan.layers.values()
    )
    monkeypatch.setattr("onnxlr.planning.auto.trials.measure_latency", race)
    monkeypatch.setattr("onnxlr.planning.auto.building.measure_latency", race)
    result = rewrite(model, output, goal="latency")
    assert all(choice.format != "int8" for choice in result.plan.layers.values())
    assert any(not choice.keeps for choice in result.plan.layers.values())


def test_a_plan_that_holds_on_its_own_data_only(model: Path, output: Path) -> None:
    """The message says what it lost where it was made, beside where it does not hold."""
    with pytest.raises(onnxlr.VerificationError) as caught:
        rewrite(model, output, goal="size", max_drop=["cosine=0.02"], tolerance="cosine>=0.999999")
    message = str(caught.value)
    assert "expected >=0.999999" in message
    assert re.search(r"on held-out calibration data it lost cosine [\d.e-]+ only", message)
    assert message.endswith("ask for less with --max-drop")
    assert not output.exists()
