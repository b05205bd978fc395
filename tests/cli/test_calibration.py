"""The command line with calibration: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxlr
from onnxlr.calibration import observation
from onnxlr.planning import allocation
from onnxlr.runtime import run_task
from tests.classifier import FLOAT, classifier, samples, weights
from tests.cli.conftest import Run, contents

Refused = Callable[[Sequence[object], int, Sequence[str]], str]
ANY = ("--tolerance", "cosine>=-1")
RUNS = samples(80) + np.float32(0.5)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observe in this process."""

    def run_here(task: Any, name: str, isolate: bool = True) -> dict[str, Any]:
        return run_task(task, name, isolate=False)

    for module in (observation, allocation):
        monkeypatch.setattr(module, "run_task", run_here)


@pytest.fixture
def data(model: Path) -> Path:
    """Return calibration data of 80 samples beside the model."""
    np.savez("c.npz", x=RUNS)
    return Path("c.npz")


@pytest.fixture
def statistics(run: Run, model: Path, data: Path) -> Path:
    """Return statistics of that data."""
    assert run("observe", model, "--calibration", data, "-o", "s.npz").code == 0
    return Path("s.npz")


def document(text: str, schema: str) -> dict[str, Any]:
    values = json.loads(text)
    assert values["schema"] == f"onnxlr.{schema}/1"
    return dict(values)


def plan_of(file: str) -> dict[str, Any]:
    entries = {e.key: e.value for e in onnx.load(file).metadata_props}
    return dict(json.loads(entries["onnxlr.plan"]))


def done(ended: Any) -> str:
    """Return what a command printed that did what it was asked, in silence."""
    assert (ended.code, ended.err) == (0, "")
    return str(ended.out)


# --- observe -------------------------------------------------------------------------------------


def test_observe_prints_and_writes(run: Run, model: Path, data: Path) -> None:
    out = done(run("observe", model, "--calibration", data, "-o", "s.npz"))
    assert "Observed 3 layers" in out
    assert "8 runs, 64 samples" in out or "10 runs" in out
    assert "64 rows each" in out or "64 to 64 rows" in out
    assert "s.npz" in out
    found = onnxlr.Statistics.load("s.npz")
    (first,) = (layer for layer in found.layers.values() if layer.fit.covariance.shape[-1] == 24)
    fit = np.concatenate([p for i, p in enumerate(np.split(RUNS, 10)) if i not in (4, 9)])
    expected = fit.T.astype(np.float64) @ fit / len(fit)
    np.testing.assert_allclose(first.fit.covariance[0], expected, rtol=1e-4)


def test_observe_as_json(run: Run, model: Path, data: Path) -> None:
    text = done(run("observe", model, "--calibration", data, "-o", "s.npz", "--json"))
    values = document(text, "observation")
    assert {(la["rows"], la["held_out"], la["inputs"]) for la in values["layers"].values()} == {
        (64, 16, 24),
        (64, 16, 32),
    }
    assert values["sha256"] == onnxlr.Statistics.load("s.npz").sha256
    assert values["model_sha256"] == contents(Path())["m.onnx"]
    assert values["unobserved"] == {}
    second = np.maximum(np.maximum(RUNS @ weights()["w1"], 0) @ weights()["w2"], 0)
    held = np.repeat([i in (4, 9) for i in range(10)], 8)
    dead = int(np.sum(~second[~held].any(axis=0)))
    assert values["notes"] == [f"layer 'head': {dead} of 32 inputs are always 0"]


def test_observe_holdout(run: Run, model: Path, data: Path) -> None:
    np.savez("h.npz", x=samples(24, seed=1))
    for holdout, expected in ((0, (80, 0)), (0.5, (40, 40)), ("h.npz", (80, 24))):
        arguments = ("--calibration", data, "-o", "s.npz", "--holdout", holdout, "--json")
        values = document(done(run("observe", model, *arguments)), "observation")
        rows = {(la["rows"], la["held_out"]) for la in values["layers"].values()}
        assert rows == {expected}


def test_observe_twice_gives_the_same_bytes(run: Run, model: Path, data: Path) -> None:
    done(run("observe", model, "--calibration", data, "-o", "1.npz"))
    done(run("observe", model, "--calibration", data, "-o", "2.npz"))
    assert Path("1.npz").read_bytes() == Path("2.npz").read_bytes()


def test_observe_needs_an_output_and_data(refused: Refused, model: Path, data: Path) -> None:
    refused(["observe", model, "--calibration", data], 2, ["--output"])
    refused(["observe", model, "-o", "s.npz"], 2, ["--calibration"])


def test_nothing_that_is_read_is_written_over(
    run: Run, refused: Refused, model: Path, data: Path, statistics: Path
) -> None:
    np.savez("h.npz", x=samples(24, seed=1))
    np.savez("i.npz", w1=np.ones((24, 32)))
    known = ["--calibration", data, "--holdout", "h.npz"]
    for output in (model, data, "h.npz"):
        refused(["observe", model, *known, "-o", output], 2, [f"{output}: is the input"])
    for command in ("plan", "rewrite"):
        start = [command, model, "--ratio", 0.5]
        for output in (model, data, "h.npz", "i.npz"):
            arguments = [*start, *known, "--importance", "i.npz", "-o", output]
            refused(arguments, 2, [f"{output}: is the input"])
        refused([*start, "--statistics", statistics, "-o", statistics], 2, ["is the input"])
    refused(["rewrite", model, *known, "--report", data], 2, ["is the input"])


def test_notes_on_poor_data(run: Run, model: Path) -> None:
    """Constant and dead inputs, and fewer rows than inputs, are said and not fatal."""
    x = samples(16)
    x[:, :3] = 0
    np.savez("dead.npz", x=x)
    out = done(run("observe", model, "--calibration", "dead.npz", "--holdout", 0, "-o", "s.npz"))
    words = " ".join(out.split())
    assert "layer 'first': 3 of 24 inputs are always 0" in words
    assert "layer 'first' saw 16 rows for 24 inputs: its covariance is singular" in words
    np.savez("same.npz", x=np.ones((40, 24), np.float32))
    out = done(run("observe", model, "--calibration", "same.npz", "--holdout", 0, "-o", "s.npz"))
    assert "all its 40 rows are the same" in " ".join(out.split())
    out = done(run("rewrite", model, "--ratio", 0.5, "--calibration", "dead.npz", *ANY))
    assert "Wrote" in out


def test_constant_inputs_are_fitted_to(run: Run, model: Path) -> None:
    np.savez("same.npz", x=np.ones((40, 24), np.float32))
    out = done(run("rewrite", model, "--ratio", 0.5, "--calibration", "same.npz", *ANY))
    assert "Wrote" in out


def test_zeros_alone(run: Run, model: Path) -> None:
    """A layer that saw nothing but zeros is kept, with the reason, or fitted without."""
    np.savez("zeros.npz", x=np.zeros((40, 24), np.float32))
    ended = run("rewrite", model, "--ratio", 0.5, "--calibration", "zeros.npz", *ANY)
    assert "Traceback" not in ended.out + ended.err
    assert ended.code == 0
    assert "zero" in ended.out or "Wrote" in ended.out


# --- plan and rewrite ----------------------------------------------------------------------------


def test_the_held_out_error_is_printed_beside_the_plain_one(
    run: Run, model: Path, data: Path
) -> None:
    out = done(run("rewrite", model, "--ratio", 0.5, "--calibration", data, *ANY))
    words = " ".join(out.split())
    assert "output: relative error of its outputs on held-out inputs" in words
    assert "plain: the same of a plain fit of the same size" in words


def test_the_report_has_them_as_numbers(run: Run, model: Path, data: Path) -> None:
    arguments = ("--rank", 4, "--calibration", data, *ANY, "--json", "--no-bias-correction")
    values = document(done(run("rewrite", model, *arguments)), "rewrite")
    second = next(layer for layer in values["layers"] if layer["name"] == "second")
    assert second["output_error"] <= second["plain_error"]
    held = np.concatenate([p for i, p in enumerate(np.split(RUNS, 10)) if i in (4, 9)])
    x = np.maximum(held.astype(np.float64) @ weights()["w1"], 0)
    left, right = (
        numpy_helper.to_array(t).astype(np.float64)
        for t in onnx.load("m.onnxlr.onnx").graph.initializer
        if t.name.startswith("second.weight")
    )
    exact = x @ weights()["w2"]
    wrong = np.linalg.norm(x @ left @ right - exact) / np.linalg.norm(exact)
    assert second["output_error"] == pytest.approx(wrong, rel=1e-3)
    u, s, vt = np.linalg.svd(weights()["w2"].astype(np.float64))
    plain = np.linalg.norm(x @ (u[:, :4] * s[:4]) @ vt[:4] - exact) / np.linalg.norm(exact)
    assert second["plain_error"] == pytest.approx(plain, rel=1e-3)


WAYS: dict[str, tuple[list[object], str, object]] = {
    "metric": (["--metric", "activation", "--ratio", 0.5], "metric", "activation"),
    "format": (["--method", "quantize", "--format", "int4"], "group_size", 32),
    "group": (["--method", "quantize", "--format", "int4", "--group-size", 0], "group_size", 0),
    "rounding": (
        ["--method", "quantize", "--format", "int4", "--rounding", "nearest"],
        "rounding",
        "nearest",
    ),
    "dynamic": (
        ["--ratio", 0.5, "--format", "int8", "--activations", "dynamic_int8"],
        "activations",
        "dynamic_int8",
    ),
    "static": (
        ["--ratio", 0.5, "--format", "int8", "--activations", "static_int8"],
        "activations",
        "static_int8",
    ),
    "sequential": (["--ratio", 0.5, "--sequential"], "method", "svd"),
    "global": (["--ratio", 0.5, "--allocate", "global"], "method", "svd"),
    "ort": (
        ["--method", "quantize", "--format", "int4", "--target", "ort", "--rounding", "gptq"],
        "method",
        "quantize",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_planned_and_rewritten_alike(
    run: Run, model: Path, data: Path, way: str
) -> None:
    arguments, key, value = WAYS[way]
    known = ("--calibration", data)
    done(run("plan", model, *arguments, *known, "-o", "p.json"))
    done(run("rewrite", model, *arguments, *known, *ANY, "-o", "1.onnx"))
    done(run("rewrite", model, "--plan", "p.json", *known, *ANY, "-o", "2.onnx"))
    assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()
    plan = json.loads(Path("p.json").read_text())
    chosen = [entry for entry in plan["layers"].values() if entry["method"] != "keep"]
    assert value in [entry[key] for entry in chosen]
    assert plan.get("sequential", False) is (way == "sequential")
    out = done(run("verify", model, "1.onnx", *known, *ANY))
    assert "emission" in out


@pytest.mark.parametrize("kind", ["--calibration", "--statistics"])
def test_gptq_is_better_than_nearest_on_held_out_inputs(
    run: Run, model: Path, data: Path, statistics: Path, kind: str
) -> None:
    """Rounding to the nearest is kept where it is; asked for, gptq is tried first."""
    known = (kind, data if kind == "--calibration" else statistics)
    errors = []
    for rounding in ("nearest", "gptq"):
        arguments = ("--method", "quantize", "--format", "int2", "--rounding", rounding)
        text = done(run("rewrite", model, *arguments, *known, *ANY, "--json"))
        layers = document(text, "rewrite")["layers"]
        errors.append([layer["output_error"] for layer in layers if layer["output_error"]])
    assert len(errors[0]) == len(errors[1]) > 0
    assert all(two <= one for one, two in zip(*errors, strict=True))
    assert min(two / one for one, two in zip(*errors, strict=True)) < 0.95


def test_no_bias_correction(run: Run, model: Path, data: Path) -> None:
    known = ("--ratio", 0.5, "--calibration", data, *ANY)
    done(run("rewrite", model, *known))
    corrected = [e.get("bias_correction") for e in plan_of("m.onnxlr.onnx")["layers"].values()]
    assert True in corrected
    out = done(run("rewrite", model, *known, "--no-bias-correction"))
    assert "bias corrected" not in out
    entries = plan_of("m.onnxlr.onnx")["layers"].values()
    assert not any("bias_correction" in entry for entry in entries)


def test_a_mask(run: Run, folder: Path) -> None:
    """Positions where the mask is 0 do not count."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Cast", ["mask"], ["m"], to=FLOAT),
        helper.make_node("Unsqueeze", ["m", "axis"], ["u"]),
        helper.make_node("Mul", ["h", "u"], ["y"]),
    ]
    weight = random.standard_normal((24, 24)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", FLOAT, ["N", 6, 24]),
            helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, ["N", 6]),
        ],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 6, 24])],
        [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(np.array([2]), "axis")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), "m.onnx")
    mask = (np.arange(6) < random.integers(1, 6, 40)[:, None]).astype(np.int64)
    x = random.standard_normal((40, 6, 24)).astype(np.float32)
    x[mask == 0] = 1000  # padding
    np.savez("c.npz", x=x, mask=mask)
    arguments = ("m.onnx", "--calibration", "c.npz", "--mask", "mask")
    done(run("observe", *arguments, "--holdout", 0, "-o", "s.npz"))
    (layer,) = onnxlr.Statistics.load("s.npz").layers.values()
    rows = x[mask != 0].astype(np.float64)
    assert layer.fit.count == len(rows)
    np.testing.assert_allclose(layer.fit.covariance[0], rows.T @ rows / len(rows), rtol=1e-4)
    done(run("rewrite", *arguments, "--rank", 5, *ANY, "-o", "o.onnx"))
    assert plan_of("o.onnx")["layers"]["layer"]["method"] == "svd"


def test_statistics_of_a_plan(run: Run, refused: Refused, model: Path, statistics: Path) -> None:
    """Made with statistics, edited, followed with them, without them, and with others."""
    known = ("--statistics", statistics)
    done(run("plan", model, "--ratio", 0.5, *known, "-o", "p.json"))
    plan = json.loads(Path("p.json").read_text())
    assert plan["statistics"]["sha256"] == onnxlr.Statistics.load(statistics).sha256
    done(run("rewrite", model, "--ratio", 0.5, *known, *ANY, "-o", "1.onnx"))
    done(run("rewrite", model, "--plan", "p.json", *known, *ANY, "-o", "2.onnx"))
    assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()
    plan["layers"]["first"] = {"method": "keep", "reason": "I say so"}
    Path("p.json").write_text(json.dumps(plan))
    out = done(run("rewrite", model, "--plan", "p.json", *known, *ANY, "-o", "3.onnx"))
    assert "1 × I say so" in out
    one, three = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
        for file in ("1.onnx", "3.onnx")
    )
    np.testing.assert_array_equal(three["w1"], weights()["w1"])
    np.testing.assert_array_equal(one["second.weight"], three["second.weight"])
    start = ["rewrite", model, "--plan", "p.json", "-o", "4.onnx"]
    refused(start, 2, ["made with statistics of the layers' inputs", "--statistics"])
    np.savez("d.npz", x=samples(80, seed=4))
    refused([*start, "--calibration", "d.npz"], 2, ["was made with statistics of sha256"])


def test_verify_with_and_without_statistics(run: Run, model: Path, statistics: Path) -> None:
    known = ("--statistics", statistics)
    done(run("rewrite", model, "--ratio", 0.5, *known, *ANY))
    report = document(done(run("verify", model, "m.onnxlr.onnx", *ANY, "--json")), "report")
    assert {check["proof"] for check in report["checks"]} == {"approximation"}
    assert any("needs the statistics it was made with" in note for note in report["notes"])
    report = document(done(run("verify", model, "m.onnxlr.onnx", *known, *ANY, "--json")), "report")
    assert {check["proof"] for check in report["checks"]} == {"approximation", "emission"}
    assert not any("emission proof was not made" in note for note in report["notes"])


# --- importance ----------------------------------------------------------------------------------


@pytest.fixture
def importance(model: Path) -> Path:
    """Return importance of `w1` and `w2`, that of `w1` far from even, and gradients of them."""
    random = np.random.default_rng(0)
    arrays = {"w1": random.random((24, 32)) ** 8, "w2": random.random((32, 32))}
    root = random.standard_normal((32, 32))
    gradients = {f"{name}/output_covariance": root @ root.T for name in arrays}
    np.savez("i.npz", **arrays, **gradients)
    return Path("i.npz")


@pytest.mark.parametrize(
    "metric", ["fisher-rows", "fisher", "fisher --solver em", "fisher --solver adam-sgd"]
)
def test_importance_prints_what_it_gains(
    run: Run, model: Path, importance: Path, metric: str
) -> None:
    arguments = ("--rank", 4, "--metric", *metric.split(), "--importance", importance)
    out = done(run("rewrite", model, *arguments, *ANY, "--report", "r.json"))
    words = " ".join(out.split())
    assert "variance" in out
    assert "gain" in out
    assert "1 × metric" in words
    assert "needs the importance of its entries" in words  # of the head
    layers = {layer["name"]: layer for layer in json.loads(Path("r.json").read_text())["layers"]}
    with np.load(importance) as arrays:
        for name, weight in (("first", "w1"), ("second", "w2")):
            values, exact = arrays[weight], weights()[weight].astype(np.float64)
            variance = values.var() / values.mean() ** 2
            assert layers[name]["importance_variance"] == pytest.approx(variance, rel=0.01)
            held = {
                t.name: numpy_helper.to_array(t).astype(np.float64)
                for t in onnx.load("m.onnxlr.onnx").graph.initializer
            }
            found = held[f"{name}.weight"] @ held[f"{name}.weight.2"]
            u, s, vt = np.linalg.svd(exact, full_matrices=False)
            plain = (u[:, :4] * s[:4]) @ vt[:4]
            own, other = (np.sqrt(np.sum(values * (exact - a) ** 2)) for a in (found, plain))
            assert layers[name]["importance_gain"] == pytest.approx(1 - own / other, abs=2e-3)
    assert layers["first"]["importance_gain"] > 0
    assert layers["head"]["choice"]["method"] == "keep"


def test_kfac(run: Run, model: Path, data: Path, importance: Path) -> None:
    known = ("--calibration", data, "--importance", importance, "--metric", "kfac")
    done(run("rewrite", model, "--rank", 4, "--holdout", 0, *known, *ANY))
    entries = plan_of("m.onnxlr.onnx")["layers"]
    assert [entries[name].get("metric") for name in ("first", "second")] == ["kfac"] * 2
    assert "covariance of its output's gradients" in entries["head"]["reason"]


# --- what is refused -----------------------------------------------------------------------------


REFUSED: dict[str, tuple[list[object], list[str]]] = {
    "mask alone": (["--mask", "x"], ["mask 'x' is for calibration data, and there is none"]),
    "unknown mask": (["--calibration", "c.npz", "--mask", "z"], ["no tensor 'z'", "'x'"]),
    "gptq alone": (
        ["--method", "quantize", "--format", "int4", "--rounding", "gptq"],
        ["rounding gptq needs statistics", "--calibration or --statistics"],
    ),
    "static alone": (
        ["--format", "int8", "--activations", "static_int8"],
        ["activations static_int8 needs statistics", "--calibration or --statistics"],
    ),
    "activation alone": (["--metric", "activation"], ["metric activation needs statistics"]),
    "kfac alone": (["--metric", "kfac"], ["metric kfac needs statistics"]),
    "kfac without gradients": (
        ["--metric", "kfac", "--calibration", "c.npz"],
        ["metric kfac needs covariances of output gradients", "--importance"],
    ),
    "fisher alone": (["--metric", "fisher"], ["metric fisher needs importance", "--importance"]),
    "rows alone": (["--metric", "fisher-rows"], ["metric fisher-rows needs importance"]),
    "unknown metric": (["--metric", "euclid"], ["metric 'euclid' is unknown", "frobenius"]),
    "solver without fisher": (["--solver", "em"], ["solver 'em' is for metric fisher"]),
    "solver of another": (
        ["--solver", "em", "--metric", "kfac"],
        ["solver 'em' is for metric fisher"],
    ),
    "unknown solver": (
        ["--metric", "fisher", "--solver", "newton"],
        ["solver 'newton' is unknown", "als, em, adam-sgd"],
    ),
    "group of 33": (["--format", "int4", "--group-size", 33], ["33", "32", "64", "128"]),
    "group of a half": (["--format", "int4", "--group-size", 1.5], ["--group-size", "1.5"]),
    "group of a float": (["--format", "float16", "--group-size", 32], ["float16"]),
    "rounding of a float": (["--format", "float16", "--rounding", "gptq"], ["float16"]),
    "rounding of nothing": (["--rounding", "gptq"], ["give --format"]),
    "unknown rounding": (
        ["--format", "int4", "--rounding", "up"],
        ["rounding 'up'", "nearest", "gptq"],
    ),
    "gptq that weighs nothing": (
        [
            *("--method", "quantize", "--format", "int4", "--rounding", "gptq"),
            *("--metric", "frobenius", "--calibration", "c.npz"),
        ],
        ["rounding gptq", "metric frobenius", "activation or kfac"],
    ),
    "unknown format": (["--format", "int3"], ["format 'int3'", "int4"]),
    "int8 data of floats": (
        ["--format", "float16", "--activations", "dynamic_int8"],
        ["activations dynamic_int8 are for int8, int4, int2 and ternary formats, not float16"],
    ),
    "unknown activations": (["--activations", "int8"], ["activations 'int8' is unknown"]),
    "unknown target": (["--target", "tensorrt"], ["target 'tensorrt' is unknown", "onnx, ort"]),
    "unknown allocation": (["--allocate", "best"], ["allocate 'best' is unknown"]),
    "global without data": (
        ["--allocate", "global", "--ratio", 0.5],
        ["global allocation", "give --calibration"],
    ),
    "global without ratio": (
        ["--allocate", "global", "--rank", 3, "--calibration", "c.npz"],
        ["give --method svd and --ratio"],
    ),
    "sequential without data": (["--sequential"], ["sequential fitting", "give --calibration"]),
    "holdout of all": (["--calibration", "c.npz", "--holdout", 1], ["a holdout of 1"]),
    "negative holdout": (["--calibration", "c.npz", "--holdout", -0.5], ["a holdout of -0.5"]),
    "holdout of nan": (["--calibration", "c.npz", "--holdout", "nan"], ["a holdout of nan"]),
    "no holdout": (["--calibration", "c.npz", "--holdout", "no.npz"], ["no.npz: no such file"]),
    "no data": (["--calibration", "no.npz"], ["no.npz: no such file"]),
    "no statistics": (["--statistics", "no.npz"], ["no.npz: no such statistics file"]),
    "data for statistics": (["--statistics", "c.npz"], ["c.npz: is not a statistics file"]),
    "the model for statistics": (["--statistics", "m.onnx"], ["m.onnx: is not a statistics file"]),
    "no importance": (["--importance", "no.npz"], ["no.npz: no such file"]),
    "importance of another": (["--importance", "c.npz"], ["c.npz: 'x' is no weight of a layer"]),
}


@pytest.mark.parametrize("command", ["plan", "rewrite"])
@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence(refused: Refused, data: Path, command: str, case: str) -> None:
    arguments, words = REFUSED[case]
    refused([command, "m.onnx", *arguments], 2, words)


def bad(kind: str) -> dict[str, Any]:
    """Return calibration data that does not do."""
    x = samples(80)
    if kind == "nan":
        x[40, 3] = np.nan
    if kind == "huge":
        x = np.full((80, 24), 3e38, np.float32)
    return {
        "another name": {"z": x},
        "another width": {"x": x[:, :23]},
        "another type": {"x": x.astype(np.float64)},
        "nothing": {"x": x[:0]},
        "objects": {"x": np.array([{}] * 8, dtype=object)},
    }.get(kind, {"x": x})


WORDS = {
    "nan": ["layer 'first': its data 'x' has 1 entries that are NaN or infinite", "run 6"],
    "huge": ["NaN or infinite", "--skip"],
    "another name": ["'x'"],
    "another width": ["'x'", "24"],
    "another type": ["'x'", "float64"],
    "nothing": ["no samples"],
    "objects": ["pickles"],
}


@pytest.mark.parametrize("command", ["observe", "plan", "rewrite"])
@pytest.mark.parametrize("kind", WORDS)
def test_data_that_does_not_do(refused: Refused, model: Path, command: str, kind: str) -> None:
    np.savez("bad.npz", **bad(kind))
    output = ["-o", "out"] if command == "observe" else []
    refused([command, model, "--calibration", "bad.npz", *output], 2, WORDS[kind])


def test_a_layer_with_overflowing_data_can_be_skipped(run: Run, model: Path) -> None:
    """As the message says."""
    changed = weights()["w2"] * np.float32(1e38)
    onnx.save(classifier(w2=changed), model)
    np.savez("c.npz", x=RUNS)
    known = ("--calibration", "c.npz", "--ratio", 0.5, "-o", "p.json")
    for way in ([], ["--sequential"]):
        ended = run("plan", model, *known, *way)
        assert ended.code == 2
        assert "(--skip 'second' leaves it alone)" in ended.err
        done(run("plan", model, *known, *way, "--skip", "second", "--skip", "head"))


def test_statistics_of_another_model(refused: Refused, model: Path, statistics: Path) -> None:
    onnx.save(classifier(w2=2 * weights()["w2"]), "other.onnx")
    for command in ("plan", "rewrite"):
        arguments = [command, "other.onnx", "--statistics", statistics]
        refused(arguments, 2, ["made for another model", "layer 'second'", "calibrate again"])


def test_damaged_statistics(refused: Refused, model: Path, statistics: Path) -> None:
    whole = statistics.read_bytes()
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    Path("flipped.npz").write_bytes(whole[:2000] + bytes(64) + whole[2064:])
    for name in ("cut.npz", "flipped.npz"):
        refused(["plan", model, "--statistics", name], 2, [name, "damaged"])


def test_a_plan_takes_its_own_settings_only(refused: Refused, run: Run, data: Path) -> None:
    assert run("plan", "m.onnx", "--ratio", 0.5, "--calibration", data, "-o", "p.json").code == 0
    for extra in (
        ["--metric", "activation"],
        ["--sequential"],
        ["--allocate", "global"],
        ["--no-bias-correction"],
        ["--format", "int8"],
        ["--ratio", 0.5],
    ):
        arguments = ["rewrite", "m.onnx", "--plan", "p.json", "--calibration", data, *extra]
        refused(arguments, 2, ["give either a plan, or a method"])


# --- what results are compared on ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "more", "is_noted"),
    [
        (1, (), True),
        (80, ("--holdout", "0"), True),
        (80, (), False),
        (1, ("--data", "d.npz"), False),
    ],
)
def test_a_proof_on_what_layers_were_fitted_to_says_so(
    run: Run, model: Path, rows: int, more: tuple[str, ...], is_noted: bool
) -> None:
    np.savez("c.npz", x=RUNS[:rows])
    np.savez("d.npz", x=RUNS)
    arguments = ("rewrite", model, "--rank", 4, "--calibration", "c.npz", *more, *ANY)
    note = "layers were fitted to these very inputs"
    assert (note in " ".join(done(run(*arguments)).split())) == is_noted
    report = document(done(run(*arguments, "--json")), "rewrite")["report"]
    assert any(note in text for text in report["notes"]) == is_noted
