"""Every command with its options, as a user who means well runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import onnxlr
from onnxlr import cli
from tests.classifier import CLASSES, FEATURES, HIDDEN, classifier, reference, samples, weights
from tests.cli.conftest import Run, contents


def document(text: str, schema: str) -> dict[str, Any]:
    """Return a JSON document of that schema; nothing else may be around it."""
    values = json.loads(text)
    assert values["schema"] == f"onnxlr.{schema}/1"
    return dict(values)


def initializers(file: str | Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


def logits(file: str | Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def plan_of(file: str | Path) -> dict[str, Any]:
    entries = {e.key: e.value for e in onnx.load(file).metadata_props}
    return dict(json.loads(entries["onnxlr.plan"]))


# --- inspect -------------------------------------------------------------------------------------


def test_inspect_lists_the_layers_with_the_numbers_numpy_finds(run: Run, model: Path) -> None:
    found = document(run("inspect", model, "--json").out, "inspection")
    by_name = {layer["name"]: layer for layer in found["layers"]}
    assert list(by_name) == ["first", "second", "head"]
    total = sum(t.ByteSize() for t in onnx.load(model).graph.initializer)
    for name, weight in zip(by_name, ("w1", "w2", "w3"), strict=True):
        matrix = weights()[weight]
        layer = by_name[name]
        assert layer["weight"] == weight
        assert layer["shape"] == list(matrix.shape)
        assert layer["parameters"] == matrix.size
        assert layer["skip"] is None
        assert layer["multiply_adds"] == matrix.size
        assert layer["per"] == ["N"]
        assert layer["share"] == pytest.approx(layer["bytes"] / total)
        energy = np.cumsum(np.linalg.svd(matrix.astype(float), compute_uv=False) ** 2)
        assert layer["rank90"] == int(np.sum(energy < 0.9 * energy[-1])) + 1
        assert layer["rank99"] == int(np.sum(energy < 0.99 * energy[-1])) + 1
        r, (m, n) = layer["break_even"], matrix.shape
        assert r * (m + n) < m * n <= (r + 1) * (m + n)


def test_inspect_prints_a_table_of_the_same(run: Run, model: Path) -> None:
    ended = run("inspect", model)
    assert (ended.code, ended.err) == (0, "")
    for word in ("first", "second", "head", "MatMul", "Gemm", f"{FEATURES}×{HIDDEN}"):
        assert word in ended.out


# --- rewrite -------------------------------------------------------------------------------------


def test_default_path_budget_and_tolerance(run: Run, model: Path) -> None:
    ended = run("rewrite", model, "--method", "svd", "--tolerance", "cosine>=0.98")
    assert (ended.code, ended.err) == (0, "")
    first_line = ended.out.splitlines()[0]
    assert "svd, max_error 0.05 per layer" in first_line
    assert "tolerance cosine>=0.98" in first_line
    assert "m.onnxlr.onnx" in ended.out
    assert sorted(contents(Path())) == ["m.onnx", "m.onnxlr.onnx"]
    x = samples(64)
    distance = logits("m.onnxlr.onnx", x) - reference(x)
    assert np.linalg.norm(distance) < 0.1 * np.linalg.norm(reference(x))
    assert Path("m.onnxlr.onnx").stat().st_size < Path(model).stat().st_size


def rank_of(matrix: np.ndarray, budget: str, value: float) -> int:
    """Return the rank a budget means, by its definition."""
    m, n = matrix.shape
    squares = np.linalg.svd(matrix.astype(float), compute_uv=False) ** 2
    if budget == "rank":
        return int(value)
    if budget == "ratio":
        return int(value * m * n / (m + n))
    if budget == "energy":
        return int(np.sum(np.cumsum(squares) < value * squares.sum())) + 1
    if budget == "bits":
        return int(value * m * n / 32 / (m + n))
    tails = [np.sqrt(squares[r:].sum() / squares.sum()) for r in range(1, len(squares) + 1)]
    return 1 + next(i for i, tail in enumerate(tails) if tail <= value)


@pytest.mark.parametrize(
    ("budget", "value"),
    [("rank", 5), ("ratio", 0.4), ("energy", 0.9999), ("max-error", 0.2), ("bits", 16)],
)
def test_budgets_mean_what_they_say(run: Run, model: Path, budget: str, value: float) -> None:
    ended = run("rewrite", model, f"--{budget}", value, "--layers", "second", "--keep")
    assert ended.code in (0, 1)
    assert f"{budget.replace('-', '_')} {value}" in ended.out.splitlines()[0]
    found = plan_of("m.onnxlr.onnx")["layers"]["second"]
    assert found["options"] == {"rank": rank_of(weights()["w2"], budget, value)}


def test_layers_and_skip_take_patterns_more_than_once(run: Run, model: Path) -> None:
    run("rewrite", model, "--rank", 4, "--layers", "fir*", "--layers", "head", "--skip", "he?d")
    methods = {k: v["method"] for k, v in plan_of("m.onnxlr.onnx")["layers"].items()}
    assert methods == {"first": "svd", "second": "keep", "head": "keep"}
    assert np.array_equal(initializers("m.onnxlr.onnx")["w2"], weights()["w2"])
    assert "w1" not in initializers("m.onnxlr.onnx")


@pytest.mark.parametrize(("format", "dtype"), [("int8", "int8"), ("float16", "float16")])
def test_format_is_the_type_factors_are_stored_in(
    run: Run, model: Path, format: str, dtype: str
) -> None:
    assert run("rewrite", model, "--rank", 6, "--format", format).code == 0
    factors = [a for n, a in initializers("m.onnxlr.onnx").items() if n not in weights()]
    assert sum(a.dtype == dtype and a.ndim == 2 for a in factors) == 6


def test_json_is_all_of_standard_output_and_equals_the_report(run: Run, model: Path) -> None:
    ended = run("rewrite", model, "--rank", 4, "--json", "--report", "r.json", "-o", "o.onnx")
    assert (ended.code, ended.err) == (0, "")
    found = document(ended.out, "rewrite")
    assert found == document(Path("r.json").read_text(), "rewrite")
    assert found["output"] == "o.onnx"
    assert found["bytes_before"] == model.stat().st_size
    assert found["bytes_after"] == Path("o.onnx").stat().st_size
    assert [layer["name"] for layer in found["layers"]] == ["first", "second", "head"]
    for layer, weight in zip(found["layers"], ("w1", "w2", "w3"), strict=True):
        values = np.linalg.svd(weights()[weight].astype(float), compute_uv=False)
        error = np.linalg.norm(values[4:]) / np.linalg.norm(values)
        assert layer["error"] == pytest.approx(error, rel=1e-3)
    checks = [(c["proof"], c["optimisation"], c["passed"]) for c in found["report"]["checks"]]
    assert checks == [
        ("emission", "all", True),
        ("emission", "none", True),
        ("approximation", "all", True),
        ("approximation", "none", True),
    ]


def test_measures_are_those_of_the_data_given(run: Run, model: Path) -> None:
    x = samples(10)
    np.savez("d.npz", x=x)
    ended = run("rewrite", model, "--rank", 4, "--data", "d.npz", "--json")
    checks = document(ended.out, "rewrite")["report"]["checks"]
    found = next(c for c in checks if c["proof"] == "approximation")["comparisons"][0]
    y, z = reference(x), logits("m.onnxlr.onnx", x).astype(float)
    cosine = np.sum(y * z) / np.linalg.norm(y) / np.linalg.norm(z)
    assert found["cosine"] == pytest.approx(cosine, abs=1e-6)
    relative = np.linalg.norm(y - z) / np.linalg.norm(y)
    assert found["relative_l2"] == pytest.approx(relative, rel=1e-2)
    assert found["max_abs"] == pytest.approx(np.abs(y - z).max(), rel=1e-2)
    assert found["sqnr"] == pytest.approx(-20 * np.log10(relative), abs=0.1)
    assert found["top1"] == np.mean(y.argmax(1) == z.argmax(1))


def test_random_inputs_depend_on_the_seed_and_say_how_little_they_prove(
    run: Run, model: Path
) -> None:
    texts = [run("rewrite", model, "--rank", 4, "--seed", s, "--json").out for s in (0, 0, 7)]
    reports = [document(text, "rewrite")["report"] for text in texts]
    assert reports[0] == reports[1]
    assert reports[0]["checks"] != reports[2]["checks"]
    assert "seed 7" in reports[2]["data"]
    assert reports[0]["is_random"]
    assert "random inputs" in reports[0]["notes"][0]
    assert "say little" in reports[0]["notes"][0]


def test_require_change(run: Run, model: Path) -> None:
    ended = run("rewrite", model, "--rank", 30, "--require-change")
    assert ended.code == 4
    assert "m.onnx: no layer was rewritten" in ended.err
    assert list(contents(Path())) == ["m.onnx"]
    assert run("rewrite", model, "--rank", 4, "--require-change").code == 0


def test_nothing_to_rewrite_copies_and_says_so(run: Run, model: Path) -> None:
    ended = run("rewrite", model, "--method", "keep", "-o", "copy.onnx")
    assert ended.code == 0
    assert ended.out.startswith("keep\n")
    assert "Nothing was rewritten: copy.onnx is a copy." in ended.out
    assert Path("copy.onnx").read_bytes() == model.read_bytes()
    quiet = run("rewrite", model, "--method", "keep", "-o", "copy.onnx", "--quiet")
    assert (quiet.code, quiet.out) == (0, "")
    assert quiet.err.startswith("warning: copy.onnx: nothing was rewritten, it is a copy")
    assert quiet.err.count("\n") == 1


def test_a_file_that_grows_is_told(run: Run, model: Path) -> None:
    # The plan it carries takes more than the factors of so small a layer save.
    arguments = ("--rank", 6, "--layers", "head", "--tolerance", "cosine>=0", "-o", "l.onnx")
    ended = run("rewrite", model, *arguments)
    assert Path("l.onnx").stat().st_size > model.stat().st_size
    assert " ".join(ended.out.split()).endswith("%), which is larger than before")
    assert "larger than before" not in run("rewrite", model, "--rank", 4).out


def test_the_heading_says_what_was_asked(run: Run, model: Path) -> None:
    ended = run("rewrite", model, "--method", "quantize", "--format", "int8")
    assert ended.out.startswith("quantize, int8\n")
    ended = run("rewrite", model, "--rank", 4, "--format", "int8", "--tolerance", "cosine>=0.9")
    assert ended.out.startswith("svd, int8, rank 4 per layer; tolerance cosine>=0.9\n")


def test_the_api_writes_the_same_bytes(run: Run, model: Path) -> None:
    run("rewrite", model, "--ratio", 0.4, "--seed", 3, "-o", "cli.onnx")
    onnxlr.rewrite(model, "api.onnx", ratio=0.4, seed=3, isolate=False)
    assert Path("cli.onnx").read_bytes() == Path("api.onnx").read_bytes()


# --- failed verification -------------------------------------------------------------------------


def test_a_miss_ends_with_1_names_the_worst_layer_and_writes_only_the_report(
    run: Run, model: Path
) -> None:
    Path("o.onnx").write_bytes(b"older")
    arguments = ("--rank", 1, "--layers", "second", "-o", "o.onnx", "--report", "r.json")
    ended = run("rewrite", model, *arguments)
    assert ended.code == 1
    assert Path("o.onnx").read_bytes() == b"older"
    assert sorted(contents(Path())) == ["m.onnx", "o.onnx", "r.json"]
    assert len(ended.err.splitlines()) == 1
    assert "'logits': cosine is" in ended.err
    assert "drifts most at 'second'" in ended.err
    assert "Nothing was written" in ended.out
    found = document(Path("r.json").read_text(), "rewrite")
    assert found["output"] is None
    assert not found["report"]["passed"]
    assert found["report"]["drifts"][0]["layer"] == "second"
    assert "Wrote" not in ended.out


def test_the_same_failure_at_both_levels_is_said_once(run: Run, model: Path) -> None:
    out = run("rewrite", model, "--rank", 1).out
    assert out.count("failed:") == 1
    assert "graph optimisation all and none" in " ".join(out.split())


def test_keep_writes_what_failed(run: Run, model: Path) -> None:
    Path("o.onnx").write_bytes(b"older")
    ended = run("rewrite", model, "--rank", 1, "--keep", "-o", "o.onnx")
    assert ended.code == 1
    assert "although it does not hold what was asked" in " ".join(ended.out.split())
    onnx.checker.check_model("o.onnx")
    assert plan_of("o.onnx")["layers"]["second"]["options"] == {"rank": 1}


def test_json_of_a_miss_is_one_document(run: Run, model: Path) -> None:
    ended = run("rewrite", model, "--rank", 1, "--json")
    assert ended.code == 1
    assert not document(ended.out, "rewrite")["report"]["passed"]
    assert ended.err.startswith("error: ")


# --- plan ----------------------------------------------------------------------------------------

DIRECT = [
    ["--rank", "3"],
    ["--ratio", "0.4"],
    ["--energy", "0.99"],
    ["--max-error", "0.1"],
    ["--bits", "12"],
    ["--method", "svd"],
    ["--rank", "5", "--format", "int8"],
    ["--max-error", "0.1", "--format", "int8"],
    ["--ratio", "0.5", "--format", "float16"],
    ["--rank", "4", "--skip", "second"],
    ["--rank", "4", "--layers", "h*", "--seed", "5"],
]


@pytest.mark.parametrize("options", DIRECT, ids=" ".join)
def test_a_plan_gives_the_same_bytes_as_the_direct_way(
    run: Run, model: Path, options: list[str]
) -> None:
    assert run("rewrite", model, *options, "--keep", "-o", "direct.onnx").code in (0, 1)
    ended = run("plan", model, *options, "-o", "p.json")
    assert (ended.code, ended.err) == (0, "")
    assert run("rewrite", model, "--plan", "p.json", "--keep", "-o", "planned.onnx").code in (0, 1)
    assert Path("planned.onnx").read_bytes() == Path("direct.onnx").read_bytes()
    assert Path("direct.onnx").read_bytes() != model.read_bytes()


def test_plan_prints_what_it_writes(run: Run, model: Path) -> None:
    run("plan", model, "--rank", 4, "-o", "p.json")
    written = Path("p.json").read_text()
    assert run("plan", model, "--rank", 4).out == written
    assert run("plan", model, "--rank", 4, "--json").out == written
    table = run("plan", model, "--rank", 4, "-o", "p.json").out
    assert "svd rank 4" in table
    assert "Wrote p.json" in table
    found = document(written, "plan")
    assert list(found["layers"]) == ["first", "second", "head"]
    assert found["layers"]["first"]["options"] == {"rank": 4}


def test_an_edited_rank_is_the_rank_written(run: Run, model: Path) -> None:
    run("plan", model, "--rank", 4, "-o", "p.json")
    plan = json.loads(Path("p.json").read_text())
    plan["layers"]["second"]["options"]["rank"] = 7
    plan["layers"]["first"] = {"method": "keep", "reason": "by hand"}
    Path("p.json").write_text(json.dumps(plan))
    assert run("rewrite", model, "--plan", "p.json").code == 0
    shapes = sorted(
        a.shape
        for n, a in initializers("m.onnxlr.onnx").items()
        if a.ndim == 2 and n not in weights()
    )
    assert shapes == sorted([(HIDDEN, 7), (7, HIDDEN), (HIDDEN, 4), (4, CLASSES)])
    assert np.array_equal(initializers("m.onnxlr.onnx")["w1"], weights()["w1"])


def test_a_plan_may_ask_for_more_bytes_and_is_warned(run: Run, model: Path) -> None:
    run("plan", model, "--rank", 4, "-o", "p.json")
    text = Path("p.json").read_text().replace('"rank": 4', '"rank": 31', 1)
    Path("p.json").write_text(text)
    ended = run("rewrite", model, "--plan", "p.json")
    assert ended.code == 0
    assert ended.err.startswith("warning: layer 'first': ")
    assert len(ended.err.splitlines()) == 1


def test_a_windows_editor_may_leave_its_mark(run: Run, model: Path) -> None:
    run("plan", model, "--rank", 4, "-o", "p.json")
    Path("p.json").write_text(Path("p.json").read_text(), encoding="utf-8-sig")
    assert run("rewrite", model, "--plan", "p.json").code == 0


def test_the_result_holds_its_plan(run: Run, model: Path) -> None:
    run("rewrite", model, "--rank", 4, "--seed", 9)
    run("plan", model, "--rank", 4, "--seed", 9, "-o", "p.json")
    stored = plan_of("m.onnxlr.onnx")
    assert stored == json.loads(Path("p.json").read_text())
    assert stored["source"]["sha256"] == contents(Path())["m.onnx"]
    assert stored["onnxlr"] == onnxlr.__version__
    assert stored["seed"] == 9
    Path("stored.json").write_text(json.dumps(stored))
    run("rewrite", model, "--plan", "stored.json", "-o", "again.onnx")
    assert Path("again.onnx").read_bytes() == Path("m.onnxlr.onnx").read_bytes()


def test_a_rewritten_model_can_be_rewritten(run: Run, model: Path) -> None:
    run("rewrite", model, "--rank", 8, "--layers", "second")
    before = onnx.load("m.onnxlr.onnx")
    ended = run("rewrite", "m.onnxlr.onnx", "--rank", 4, "--layers", "first", "-o", "twice.onnx")
    assert ended.code == 0
    twice = onnx.load("twice.onnx")
    assert [e.key for e in twice.metadata_props] == ["onnxlr.plan", "onnxlr.plan.2"]
    assert twice.metadata_props[0] == before.metadata_props[0]
    second = json.loads(twice.metadata_props[1].value)
    assert second["source"]["sha256"] == contents(Path())["m.onnxlr.onnx"]
    proofs = document(run("verify", "m.onnxlr.onnx", "twice.onnx", "--json").out, "report")
    assert {c["proof"] for c in proofs["checks"]} == {"emission", "approximation"}


# --- verify --------------------------------------------------------------------------------------


def test_verify_makes_both_proofs_from_the_plan_inside(run: Run, model: Path) -> None:
    run("rewrite", model, "--rank", 4)
    ended = run("verify", model, "m.onnxlr.onnx")
    assert (ended.code, ended.err) == (0, "")
    assert "Verified: every check passed." in ended.out
    assert "emission" in ended.out
    assert "not made" not in ended.out
    found = document(run("verify", model, "m.onnxlr.onnx", "--json").out, "report")
    assert found["passed"]
    assert [c["proof"] for c in found["checks"]].count("emission") == 2


def test_verify_finds_a_weight_that_was_tampered_with(run: Run, model: Path) -> None:
    run("rewrite", model, "--rank", 4)
    tampered = onnx.load("m.onnxlr.onnx")
    tensor = next(t for t in tampered.graph.initializer if t.name not in weights())
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(tampered, "tampered.onnx")
    ended = run("verify", model, "tampered.onnx")
    assert ended.code == 1
    assert "tampered.onnx: emission proof" in ended.err
    found = document(run("verify", model, "tampered.onnx", "--json").out, "report")
    passed = {(c["proof"], c["passed"]) for c in found["checks"]}
    assert passed == {("emission", False), ("approximation", True)}
    assert {drift["layer"] for drift in found["drifts"]} == {"first", "second", "head"}


def test_verify_says_that_there_is_no_plan(run: Run, model: Path) -> None:
    shutil.copy(model, "same.onnx")
    ended = run("verify", model, "same.onnx")
    assert ended.code == 0
    assert "the emission proof was not made" in " ".join(ended.out.split())
    run("rewrite", model, "--rank", 4)
    run("rewrite", "m.onnxlr.onnx", "--rank", 2, "--layers", "first*", "--keep", "-o", "t.onnx")
    other = classifier()
    other.doc_string = "another model of the same layers"
    onnx.save(other, "other.onnx")
    out = run("verify", "other.onnx", "m.onnxlr.onnx").out
    assert "the emission proof was not made" in " ".join(out.split())


def test_verify_judges_by_the_tolerance_and_data_given(run: Run, model: Path) -> None:
    run("rewrite", model, "--rank", 4)
    np.save("x.npy", samples(5))
    assert run("verify", model, "m.onnxlr.onnx", "--tolerance", "max_abs<=1").code == 0
    ended = run(
        "verify", model, "m.onnxlr.onnx", "--data", "x.npy", "--tolerance", "logits:max_abs<=1e-9"
    )
    assert ended.code == 1
    assert "max_abs is" in ended.err
    assert "expected <=1e-09" in ended.err
    assert "x.npy: 1 run" in ended.out


@pytest.mark.parametrize("form", ["npz", "npy", "folder", "function"])
def test_data_in_every_form_is_what_is_run(run: Run, model: Path, form: str) -> None:
    x = samples(3)
    given = {"npz": "d.npz", "npy": "d.npy", "folder": "data", "function": "my_feeds:feeds"}[form]
    np.savez("d.npz", x=x)
    np.save("d.npy", x)
    Path("data").mkdir()
    np.savez("data/1.npz", x=x)
    Path("my_feeds.py").write_text(
        "import numpy as np\ndef feeds():\n    yield {'x': np.load('d.npy')}\n"
    )
    run("rewrite", model, "--rank", 2, "--keep")
    found = document(run("verify", model, "m.onnxlr.onnx", "--data", given, "--json").out, "report")
    assert not found["is_random"]
    y, z = reference(x), logits("m.onnxlr.onnx", x)
    approximation = next(c for c in found["checks"] if c["proof"] == "approximation")
    worst = approximation["comparisons"][0]["max_abs"]
    assert worst == pytest.approx(np.abs(y - z).max(), rel=1e-3)


# --- the rest ------------------------------------------------------------------------------------


def test_help_and_version(run: Run) -> None:
    assert run("--version").out.strip() == onnxlr.__version__
    for command in ("inspect", "plan", "rewrite", "verify"):
        assert command in run("--help").out
        assert "MODEL" in run(command, "--help").out or command == "verify"
    flags = ("rank", "ratio", "energy", "max-error", "layers", "skip", "format", "target")
    for flag in [f"--{name}" for name in flags]:
        assert flag in run("rewrite", "--help").out
        assert flag in run("plan", "--help").out


def test_a_defect_of_ours_ends_with_70_and_one_sentence(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(cli.pipeline, "rewrite", defect)
    ended = run("rewrite", model)
    assert ended.code == 70
    assert len(ended.err.splitlines()) == 1
    assert "this is a defect of onnxlr (ZeroDivisionError: two lines)" in ended.err
    assert "ONNXLR_DEBUG=1" in ended.err
    assert document(run("rewrite", model, "--json").out, "error")["exit_code"] == 70
    monkeypatch.setenv("ONNXLR_DEBUG", "1")
    assert "Traceback" in run("rewrite", model).err


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        (["inspect", "nothere.onnx"], "UsageError", 2),
        (["inspect", "text.onnx"], "ModelError", 3),
        (["rewrite", "m.onnx", "--rank", "none"], "UsageError", 2),
        (["rewrite", "m.onnx", "--bogus"], "UsageError", 2),
        (["rewrite", "m.onnx", "--plan", "text.onnx"], "PlanError", 2),
        (["rewrite", "m.onnx", "--method", "keep", "--require-change"], "NothingRewrittenError", 4),
        (["rewrite", "m.onnx", "-o", "m.onnx"], "OutputError", 2),
        (["verify", "m.onnx", "m.onnx", "--data", "nothere.npz"], "DataError", 2),
        (["plan", "m.onnx", "--method", "sdv"], "UsageError", 2),
    ],
)
def test_errors_are_documents_too(
    run: Run, model: Path, arguments: list[str], error: str, code: int
) -> None:
    Path("text.onnx").write_text("text\n")
    ended = run(*arguments, "--json")
    found = document(ended.out, "error")
    assert (ended.code, found["error"], found["exit_code"]) == (code, error, code)
    assert ended.err == f"error: {found['message']}\n"
