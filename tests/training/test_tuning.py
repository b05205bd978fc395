"""Tuning of rewritten models: what it reaches and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import onnxlr  # noqa: E402
from onnxlr.errors import (  # noqa: E402
    UsageError,
)
from onnxlr.plan import TRAINED_KEY  # noqa: E402
from tests.onelayer import run  # noqa: E402
from tests.training.tuning_case import (  # noqa: E402
    ANY,
    INPUTS,
    Case,
    one_layer,
    outputs_of,
    relative,
    samples,
    two_layers,
)


def test_low_rank_factors_reach_the_best_there_are(tmp_path: Path) -> None:
    """The best of a rank on given inputs is known: the truncated SVD of their outputs."""
    x = samples()
    case = Case(tmp_path, one_layer(), rank=4)
    y = outputs_of(case.original, x)
    tail = np.linalg.svd(y, compute_uv=False)[4:]
    best = float(np.linalg.norm(tail) / np.linalg.norm(y))
    result = case.tune(
        {"x": x}, holdout={"x": x}, train="factors", steps=1500, rate=3e-2, patience=None, batch=160
    )
    found = relative(outputs_of(case.output, x), y)
    came = relative(outputs_of(case.rewritten, x), y)
    assert result.before == pytest.approx(came, rel=1e-4)
    assert result.after == pytest.approx(found, rel=1e-4)
    assert best * (1 - 1e-5) <= found <= best * 1.01
    assert came > 1.3 * best


def test_scales_reach_their_least_squares(tmp_path: Path) -> None:
    x = samples()
    case = Case(tmp_path, one_layer(200), method="quantize", format="int4", group_size=0)
    opened = onnx.load(case.rewritten)
    y = outputs_of(case.original, x)
    weight = run(opened, {"x": np.eye(INPUTS, dtype=np.float32)})[0].astype(np.float64)
    parts = x @ weight  # each column times a scale that is trained
    factors = (parts * y).sum(0) / (parts * parts).sum(0)
    best = relative(parts * factors, y)
    case.tune(
        {"x": x}, holdout={"x": x}, train="scales", steps=600, rate=1e-2, patience=None, batch=160
    )
    found = relative(outputs_of(case.output, x), y)
    came = relative(parts, y)
    assert came > best * 1.001
    assert best * (1 - 1e-5) <= found <= best + 0.02 * (came - best)
    tuned = run(onnx.load(case.output), {"x": np.eye(INPUTS, dtype=np.float32)})[0]
    ratios = tuned.astype(np.float64) / np.where(weight == 0, 1, weight)
    assert np.allclose(
        ratios[weight != 0], np.broadcast_to(factors, weight.shape)[weight != 0], atol=2e-3
    )


def test_what_it_writes_and_tells(case: Case) -> None:
    before = case.rewritten.read_bytes()
    result = case.tune(steps=60, seed=2)
    assert result.output == case.output
    assert case.rewritten.read_bytes() == before
    assert not Path(f"{case.output}.checkpoint").exists()
    assert result.after < result.before
    assert result.steps in [one.step for one in result.course]
    assert result.report.passed
    assert {check.proof for check in result.report.checks} == {"torch", "approximation"}
    # What held-out data says is what verification finds on it.
    errors = [c.relative_l2 for c in result.report.checks[-1].comparisons]
    assert result.after == pytest.approx(np.mean(errors), rel=1e-4)
    old, new = onnx.load(case.rewritten), onnx.load(case.output)
    assert [n.SerializeToString() for n in new.graph.node] == [
        n.SerializeToString() for n in old.graph.node
    ]
    changed = {
        a.name for a, b in zip(old.graph.initializer, new.graph.initializer, strict=True) if a != b
    }
    assert changed
    assert changed <= {t.name for t in old.graph.initializer if t.data_type == TensorProto.FLOAT}
    onnx.checker.check_model(new, full_check=True)


def test_the_metadata_says_what_was_done_and_verify_why_no_plan_gives_it(case: Case) -> None:
    case.tune(steps=30, seed=5)
    entries = {e.key: e.value for e in onnx.load(case.output).metadata_props}
    told = json.loads(entries[TRAINED_KEY])
    assert told["by"] == "tune"
    assert told["seed"] == 5
    assert 0 < told["steps"] <= 30
    assert told["train"] == "factors"
    assert "144 samples, 16 held out" in told["data"]
    assert told["held_out"]["after"] < told["held_out"]["before"]
    report = onnxlr.verify(case.original, case.output, tolerance=ANY, isolate=False)
    assert report.passed
    assert {check.proof for check in report.checks} == {"approximation"}
    assert any("trained by onnxlr tune" in note for note in report.notes)
    untouched = onnxlr.verify(case.original, case.rewritten, tolerance=ANY, isolate=False)
    assert "emission" in {check.proof for check in untouched.checks}


def test_a_tuned_model_that_is_rewritten_is_proved_against_itself(tmp_path: Path) -> None:
    case = Case(tmp_path, two_layers(), rank=4, layers=["first"])
    case.tune(steps=20)
    again = tmp_path / "again.onnx"
    result = onnxlr.rewrite(
        case.output, again, rank=2, layers=["second"], tolerance=ANY, isolate=False
    )
    assert result.report is not None
    report = onnxlr.verify(case.output, again, tolerance=ANY, isolate=False)
    assert "emission" in {check.proof for check in report.checks}


def test_the_usual_place_of_the_result(case: Case) -> None:
    result = onnxlr.tune(
        case.original, case.rewritten, {"x": samples()}, steps=10, tolerance=ANY, isolate=False
    )
    assert result.output == case.rewritten.with_name("r.tuned.onnx")
    with pytest.raises(UsageError, match="a model without a file needs an output path"):
        onnxlr.tune(onnx.load(case.original), onnx.load(case.rewritten), {"x": samples()})


def test_models_in_memory(case: Case) -> None:
    case.tune(steps=20)
    expected = case.output.read_bytes()
    onnxlr.tune(
        onnx.load(case.original),
        case.rewritten.read_bytes(),
        {"x": samples()},
        case.output,
        steps=20,
        tolerance=ANY,
        isolate=False,
    )
    # All but the hash of the original, of which there is no file.
    assert onnx.load(case.output).graph == onnx.load_from_string(expected).graph


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("train", ["scales", "factors"])
def test_on_cuda_it_learns_as_on_the_cpu(tmp_path: Path, train: str) -> None:
    case = Case(tmp_path, two_layers(), rank=4)
    on_cpu = case.tune(steps=40, train=train)
    on_cuda = case.tune(steps=40, train=train, device="cuda")
    assert on_cuda.after == pytest.approx(on_cpu.after, rel=1e-2)
    assert on_cuda.report.passed


def test_a_model_of_a_fixed_number_of_samples(tmp_path: Path) -> None:
    model = two_layers()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    case = Case(tmp_path, model, rank=4)
    result = case.tune(batch=16)
    assert result.after < result.before
    assert "150 samples, 10 held out" in result.data or "145 samples, 15 held out" in result.data


def test_texts_beside_the_inputs_are_no_matter(case: Case) -> None:
    texts = np.array([f"sentence {number}" for number in range(160)])
    result = case.tune({"x": samples(), "text": texts}, loss=lambda o, _: o["y"].square().mean())
    assert result.after < result.before
