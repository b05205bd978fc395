"""Both proofs on whole models: what passes, what fails, and where it is said to drift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxlr
from onnxlr.errors import DataError, ModelError, RuntimeFailureError, VerificationError
from onnxlr.methods import METHODS
from onnxlr.plan import Choice, Plan
from onnxlr.verification import Report
from tests.classifier import FLOAT, INT64, classifier, one_node, reference, samples, weights
from tests.onelayer import model_of

svd = METHODS["svd"].options
LAYERS = {"first": "w1", "second": "w2", "head": "w3"}


def plan(**ranks: int) -> Plan:
    choices = {name: Choice("svd", svd(rank=rank)) for name, rank in ranks.items()}
    return Plan(choices, None, "onnx", 0, "by hand")


def saved(model: onnx.ModelProto, file: Path) -> Path:
    onnx.save(model, file)
    return file


def inner(values: dict[str, np.ndarray], x: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each layer gives, by numpy."""
    first = x @ values["w1"].astype(np.float64)
    second = np.maximum(first, 0) @ values["w2"].astype(np.float64)
    head = np.maximum(second, 0) @ values["w3"].astype(np.float64) + values["bias"]
    return {"first": first, "second": second, "head": head}


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return np.asarray(u[:, :rank] * s[:rank] @ vt[:rank])


@pytest.mark.parametrize("ruined", list(LAYERS))
def test_the_layer_that_is_ruined_drifts_first_and_by_as_much_as_numpy_finds(
    tmp_path: Path, ruined: str
) -> None:
    x = samples(50)
    ranks = {name: 1 if name == ruined else 6 for name in LAYERS}
    with pytest.raises(VerificationError) as error:
        onnxlr.rewrite(
            classifier(), tmp_path / "o", plan=plan(**ranks), data={"x": x}, isolate=False
        )
    values = weights()
    bad = values | {w: truncated(values[w], ranks[name]) for name, w in LAYERS.items()}
    before, after = inner(values, x), inner(bad, x)
    expected = {
        name: np.linalg.norm(before[name] - after[name]) / np.linalg.norm(before[name])
        for name in LAYERS
    }
    drifts = error.value.report.drifts
    assert {drift.layer: drift.relative_l2 for drift in drifts} == pytest.approx(expected, rel=1e-3)
    assert [d.layer for d in drifts] == sorted(expected, key=lambda name: -expected[name])
    upstream = [name for name in LAYERS if list(LAYERS).index(name) < list(LAYERS).index(ruined)]
    assert all(expected[name] < 0.05 for name in upstream)
    assert not (tmp_path / "o").exists()


def test_a_pass_has_no_drifts_and_says_what_was_run(tmp_path: Path) -> None:
    x = samples(70)
    result = onnxlr.rewrite(classifier(), tmp_path / "o", rank=4, data={"x": x}, isolate=False)
    report = result.report
    assert report is not None
    assert report.passed
    assert report.drifts == ()
    assert report.failures == []
    assert report.notes == ()
    assert report.data == "the given data: 3 runs"
    assert report.runtime.startswith("ONNX Runtime ")
    found = next(c for c in report.checks if c.proof == "approximation").comparisons[0]
    bad = weights() | {w: truncated(weights()[w], 4) for w in ("w1", "w2", "w3")}
    y, z = reference(x), reference(x, bad)
    assert found.relative_l2 == pytest.approx(np.linalg.norm(y - z) / np.linalg.norm(y), rel=1e-3)
    assert found.entries == y.size


def changed(file: Path, target: Path, change: Any) -> Path:
    model = onnx.load(file)
    change(model)
    return saved(model, target)


def verify(original: Path, rewritten: Path, **options: Any) -> Report:
    return onnxlr.verify(original, rewritten, isolate=False, **options)


def passed(report: Report) -> dict[str, bool]:
    proofs: dict[str, bool] = {}
    for check in report.checks:
        proofs[check.proof] = proofs.get(check.proof, True) and check.passed
    return proofs


@pytest.mark.parametrize("position", range(6))
def test_the_emission_proof_sees_a_change_of_any_factor(tmp_path: Path, position: int) -> None:
    original = saved(classifier(), tmp_path / "m.onnx")
    onnxlr.rewrite(
        original, tmp_path / "o.onnx", plan=plan(first=4, second=4, head=4), isolate=False
    )

    def tamper(model: onnx.ModelProto) -> None:
        factors = [t for t in model.graph.initializer if t.name not in weights()]
        tensor = [t for t in factors if len(t.dims) == 2][position]
        values = numpy_helper.to_array(tensor).copy()
        values[0, 0] += 0.02 * np.abs(values).max()
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    assert passed(verify(original, tmp_path / "o.onnx")) == {
        "emission": True,
        "approximation": True,
    }
    tampered = changed(tmp_path / "o.onnx", tmp_path / "t.onnx", tamper)
    assert passed(verify(original, tampered)) == {"emission": False, "approximation": True}


def test_the_emission_proof_sees_a_plan_that_is_not_the_one_followed(tmp_path: Path) -> None:
    original = saved(classifier(), tmp_path / "m.onnx")
    onnxlr.rewrite(original, tmp_path / "o.onnx", rank=4, isolate=False)

    def lie(model: onnx.ModelProto) -> None:
        entry = model.metadata_props[0]
        entry.value = entry.value.replace('"rank":4', '"rank":3')

    lying = changed(tmp_path / "o.onnx", tmp_path / "t.onnx", lie)
    assert not passed(verify(original, lying))["emission"]


def no_plan(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def broken_plan(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = "{}"


@pytest.mark.parametrize("change", [no_plan, broken_plan])
def test_without_a_plan_the_emission_proof_is_not_made_and_that_is_said(
    tmp_path: Path, change: Any
) -> None:
    original = saved(classifier(), tmp_path / "m.onnx")
    onnxlr.rewrite(original, tmp_path / "o.onnx", rank=4, isolate=False)
    report = verify(original, changed(tmp_path / "o.onnx", tmp_path / "t.onnx", change))
    assert passed(report) == {"approximation": True}
    assert any("emission proof was not made" in note for note in report.notes)


@pytest.mark.parametrize(("factor", "passes"), [(1.2, True), (2.0, False), (0.3, False)])
def test_a_layer_on_rounded_data_may_be_off_by_half_and_no_more(
    tmp_path: Path, factor: float, passes: bool
) -> None:
    original = saved(classifier(), tmp_path / "m.onnx")
    onnxlr.rewrite(
        original,
        tmp_path / "o.onnx",
        method="quantize",
        format="int8",
        activations="dynamic_int8",
        isolate=False,
    )

    def tamper(model: onnx.ModelProto) -> None:
        (scales,) = (t for t in model.graph.initializer if t.name == "second.scales")
        values = numpy_helper.to_array(scales) * np.float32(factor)
        scales.CopyFrom(numpy_helper.from_array(values, scales.name))

    file = changed(tmp_path / "o.onnx", tmp_path / "t.onnx", tamper)
    report = verify(original, file, tolerance="cosine>=-1")
    assert passed(report) == {"emission": passes, "approximation": True}
    worst = next(c for c in report.checks if c.proof == "emission").comparisons[0]
    assert worst.output == "second"
    assert worst.relative_l2 == pytest.approx(abs(factor - 1), abs=0.02)
    assert all("'second'" in failure for failure in report.failures)


def in_branches(main: bool) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a model whose layers are in the branches of an If, and one before it if asked."""
    square = {
        name: samples(32, seed=i).T @ samples(32, seed=i) / 24 for i, name in enumerate("abc")
    }
    branches = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["h", name], ["r"], name=kind)],
            kind,
            [],
            [helper.make_tensor_value_info("r", FLOAT, [8, 24])],
            [numpy_helper.from_array(square[name].astype(np.float32), name)],
        )
        for kind, name in (("then", "a"), ("else", "b"))
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul" if main else "Add", ["x", "c"], ["h"], name="first"),
            helper.make_node("If", ["on"], ["y"], name="either", **branches),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", FLOAT, [8, 24]),
            helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", FLOAT, [8, 24])],
        [numpy_helper.from_array(square["c"].astype(np.float32)[: 24 if main else 1], "c")],
    )
    opsets = [helper.make_opsetid("", 17)]
    feeds = [{"x": samples(8, seed=i), "on": np.array(i % 2 == 0)} for i in range(4)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), {"data": feeds}


@pytest.mark.parametrize("main", [False, True])
def test_layers_in_subgraphs_whose_data_is_rounded_are_not_proved_and_that_is_said(
    tmp_path: Path, main: bool
) -> None:
    model, data = in_branches(main)
    asked: dict[str, Any] = {"method": "quantize", "format": "int8"}
    result = onnxlr.rewrite(
        model, tmp_path / "o", activations="dynamic_int8", isolate=False, **asked, **data
    )
    original = saved(model, tmp_path / "m.onnx")
    for report in (result.report, verify(original, tmp_path / "o", **data)):
        assert report is not None
        emission = [check for check in report.checks if check.proof == "emission"]
        assert [[c.output for c in check.comparisons] for check in emission] == [
            ["first"]
        ] * 2 * main
        (note,) = report.notes
        assert "the emission proof was not made of layers in subgraphs" in note
        labels = {f"{kind} in {kind}_branch of If 'either'" for kind in ("then", "else")}
        assert set(note.rpartition("cannot be: ")[2].split("; ")) == labels
    floats = onnxlr.rewrite(model, tmp_path / "f", isolate=False, **asked, **data).report
    assert floats is not None
    assert floats.notes == ()
    assert passed(floats) == {"emission": True, "approximation": True}


def test_each_failure_is_said_once_for_both_levels(tmp_path: Path) -> None:
    original = saved(classifier(), tmp_path / "m.onnx")
    report = verify(original, original, tolerance="cosine>=2,max_abs<=1")
    assert len(report.failures) == 1
    assert report.failures[0].startswith(
        "approximation proof, graph optimisation all and none: output 'logits': cosine is 1,"
    )
    assert [len(check.failures) for check in report.checks] == [1, 1]


# --- outputs of other kinds ----------------------------------------------------------------------


def labels() -> onnx.ModelProto:
    """Return the classifier with labels for its only output."""
    model = classifier()
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("label", INT64, ["N"]))
    return model


def test_models_of_integers_alone(tmp_path: Path) -> None:
    x = samples(200)
    result = onnxlr.rewrite(labels(), tmp_path / "o", rank=4, data={"x": x}, isolate=False)
    assert result.report is not None
    assert passed(result.report) == {"emission": True, "approximation": True}
    with pytest.raises(VerificationError, match="'label': agreement is") as error:
        onnxlr.rewrite(labels(), tmp_path / "p", rank=1, data={"x": x}, isolate=False)
    checks = error.value.report.checks
    found = next(c for c in checks if c.proof == "approximation").comparisons[0]
    bad = weights() | {w: truncated(weights()[w], 1) for w in ("w1", "w2", "w3")}
    same = reference(x).argmax(1) == reference(x, bad).argmax(1)
    assert found.agreement == pytest.approx(same.mean(), abs=0.01)


def test_sequences_are_compared_part_by_part(tmp_path: Path) -> None:
    model = classifier()
    model.graph.node.append(
        helper.make_node("SplitToSequence", ["logits"], ["rows"], axis=1, keepdims=0)
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("rows", FLOAT, None))
    file = saved(model, tmp_path / "m.onnx")
    report = verify(file, file, tolerance="rows:cosine>=0.99")
    names = [c.output for c in report.checks[0].comparisons]
    assert names == [f"rows[{i}]" for i in range(10)]
    assert report.passed
    assert not verify(file, file, tolerance="rows:cosine>=2").passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_fail_whatever_the_tolerance(
    tmp_path: Path, value: float
) -> None:
    bias = weights()["bias"].copy()
    bias[2] = value
    fine = saved(classifier(), tmp_path / "fine.onnx")
    spoilt = saved(classifier(bias=bias), tmp_path / "spoilt.onnx")
    for original, other, words in (
        (fine, spoilt, "6 NaN or infinite entries (the model it is compared to has none)"),
        (spoilt, spoilt, "6 NaN or infinite entries (the model it is compared to has some"),
        (spoilt, fine, "finite entries where the model it is compared to has 6 NaN or"),
    ):
        report = verify(original, other, tolerance="cosine>=-1")
        assert not report.passed
        assert words in report.failures[0]


def test_nothing_to_compare_is_no_proof(tmp_path: Path) -> None:
    model = one_node("NonZero", [("x", FLOAT, [3])], [("y", INT64, [1, "K"])])
    file = saved(model, tmp_path / "m.onnx")
    assert verify(file, file, data={"x": np.ones(3, np.float32)}).passed
    report = verify(file, file, data={"x": np.zeros(3, np.float32)})
    assert not report.passed
    assert "nothing to compare" in report.failures[0]


@pytest.mark.parametrize("name", ["file", "args", "allow_pickle", "a/b:0", "x.npy", "ü"])
def test_inputs_and_outputs_of_any_name(tmp_path: Path, name: str) -> None:
    weight = np.eye(3, dtype=np.float32)
    model = one_node("MatMul", [(name, FLOAT, [2, 3])], [("y", FLOAT, [2, 3])], {"w": weight})
    model.graph.node[0].output[0] = model.graph.output[0].name = f"{name}.out"
    file = saved(model, tmp_path / "m.onnx")
    data = {name: np.ones((2, 3), np.float32)}
    report = verify(file, file, data=data, tolerance=f"{name}.out:max_abs<=0")
    assert report.passed
    assert report.checks[0].comparisons[0].output == f"{name}.out"


# --- what cannot be run --------------------------------------------------------------------------


def test_a_model_that_runs_on_no_random_inputs(tmp_path: Path) -> None:
    model = classifier()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "F"
    file = saved(model, tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"m\.onnx: .*random inputs do not fit.*--data"):
        verify(file, file)
    assert verify(file, file, data={"x": samples(7)}).passed


def test_a_rewritten_model_that_does_not_run_is_named(tmp_path: Path) -> None:
    fine = saved(classifier(), tmp_path / "m.onnx")
    broken = saved(classifier("float64"), tmp_path / "other.onnx")
    with pytest.raises(RuntimeFailureError, match=r"rewritten model \(other\.onnx\)"):
        verify(fine, broken)


def test_another_interface_is_refused(tmp_path: Path) -> None:
    fine = saved(classifier(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"l\.onnx: its outputs are \['label'\]"):
        verify(fine, saved(labels(), tmp_path / "l.onnx"))


def test_a_table_beside_layers_whose_data_is_rounded(tmp_path: Path) -> None:
    """Its data are indices, of whole numbers."""
    random = np.random.default_rng(0)
    table = random.standard_normal((100, 64)).astype(np.float32)
    weight = random.standard_normal((64, 48)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["T", "ids"], ["e"], name="table"),
            helper.make_node("MatMul", ["e", "W"], ["y"], name="product"),
        ],
        "g",
        [helper.make_tensor_value_info("ids", INT64, ["N"])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 48])],
        [numpy_helper.from_array(table, "T"), numpy_helper.from_array(weight, "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    choices = {
        "table": Choice("quantize", format="int8"),
        "product": Choice("quantize", format="int8", activations="dynamic_int8"),
    }
    report = onnxlr.rewrite(
        model,
        tmp_path / "o.onnx",
        plan=Plan(choices, None, "onnx", 0, "by hand"),
        data={"ids": random.integers(0, 100, 24)},
        isolate=False,
    ).report
    assert report is not None
    emission = [check for check in report.checks if check.proof == "emission"]
    assert [{c.output for c in check.comparisons} for check in emission] == [
        {"table", "product"}
    ] * 2


def test_a_model_whose_constants_are_inputs_on_rounded_data(tmp_path: Path) -> None:
    """As in IR version 3."""
    x = samples(8)
    weight = weights()["w1"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    model = model_of([node], {"x": x}, ["y"], {"w": weight}, opset=11, ir_version=3)
    report = onnxlr.rewrite(
        model,
        tmp_path / "o.onnx",
        method="quantize",
        format="int8",
        activations="dynamic_int8",
        data=[{"x": x}],
        isolate=False,
    ).report
    assert report is not None
    assert passed(report) == {"emission": True, "approximation": True}
