"""Models with ternary operators are proved by kernels and by functions, and one by the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxlr
from onnxlr.errors import RuntimeFailureError
from onnxlr.verification import Report, TernaryNodes
from tests.classifier import classifier, samples
from tests.onelayer import model_of
from tests.operators.oplibrary import bias, installed_library, telling_model, ternary
from tests.verification.test_proof import in_branches

INT8, FLOATS = "dynamic_int8", "float"
ANY = "cosine>=0.5"


@pytest.fixture
def library() -> str:
    """Return the op library's file; skip where there is none."""
    return installed_library()


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", "off")


def rewritten(folder: Path, activations: str, **options: Any) -> tuple[Path, Path, Report]:
    """Return the classifier, the same with ternary layers, and the report of the rewrite."""
    original, output = folder / "m.onnx", folder / "o.onnx"
    onnx.save(classifier(), original)
    asked = {"target": "onnxlr", "tolerance": ANY, "isolate": False} | options
    if "method" not in asked:
        asked |= {"method": "ternary", "terms": 3}
    asked["data"] = {"x": samples(70)}
    report = onnxlr.rewrite(original, output, activations=activations, **asked).report
    assert report is not None
    return original, output, report


def verify(original: Path, file: Path, **options: Any) -> Report:
    options = {"tolerance": ANY, "data": {"x": samples(70)}, "isolate": False} | options
    return onnxlr.verify(original, file, **options)


def outcomes(report: Report) -> dict[tuple[str | None, str], bool]:
    """Return whether each proof passed at both levels of optimisation, by way and proof."""
    found: dict[tuple[str | None, str], list[bool]] = {}
    for check in report.checks:
        found.setdefault((check.run_by, check.proof), []).append(check.passed)
    assert all(len(passed) == 2 for passed in found.values())
    return {key: all(passed) for key, passed in found.items()}


def tampered(file: Path, change: Callable[[onnx.FunctionProto], None]) -> Path:
    """Return the model with its only function changed."""
    model = onnx.load(file)
    (function,) = model.functions
    change(function)
    other = file.with_name("t.onnx")
    onnx.save(model, other)
    return other


def result_times(factor: float) -> Callable[[onnx.FunctionProto], None]:
    """Let a function multiply its result."""

    def change(function: onnx.FunctionProto) -> None:
        for node in function.node:
            node.output[:] = ["untouched" if name == "Y" else name for name in node.output]
        value = numpy_helper.from_array(np.array(factor, np.float32))
        function.node.append(helper.make_node("Constant", [], ["factor"], value=value))
        function.node.append(helper.make_node("Mul", ["untouched", "factor"], ["Y"]))

    return change


def other_codes(function: onnx.FunctionProto) -> None:
    """Let a function read −1 in the last of the four numbers of each byte."""
    for node in function.node:
        node.input[:] = ["cut" if name == "codes" else name for name in node.input]
    value = numpy_helper.from_array(np.array(64, np.uint8))
    function.node.insert(0, helper.make_node("Mod", ["codes", "sixty_four"], ["cut"]))
    function.node.insert(0, helper.make_node("Constant", [], ["sixty_four"], value=value))


# --- both ways -----------------------------------------------------------------------------------


SLOW = pytest.param(INT8, True, marks=pytest.mark.slow)


@pytest.mark.parametrize(("activations", "isolate"), [(FLOATS, False), (INT8, False), SLOW])
def test_both_ways_are_run_and_proved(
    tmp_path: Path, library: str, activations: str, isolate: bool
) -> None:
    original, file, first = rewritten(tmp_path, activations, isolate=isolate)
    by_function = "emission" if activations == FLOATS else "equivalence"
    expected = {
        ("kernels", "emission"): True,
        ("kernels", "approximation"): True,
        ("functions", by_function): True,
        ("functions", "equivalence"): True,
        ("functions", "approximation"): True,
    }
    for report in (first, verify(original, file, isolate=isolate)):
        assert outcomes(report) == expected
        assert report.notes == ()
        assert report.drifts == ()
        compared = {
            c.output for k in report.checks if k.proof == "equivalence" for c in k.comparisons
        }
        assert compared == {f"{name}.TernaryMatMul" for name in ("first", "second", "head")}


def test_both_factors_of_a_ternary_svd_are_compared(tmp_path: Path, library: str) -> None:
    *_, report = rewritten(tmp_path, INT8, method="ternary_svd", rank=30)
    assert report.passed
    checks = [check for check in report.checks if check.proof == "equivalence"]
    nodes = {f"{name}.TernaryMatMul{more}" for name in ("first", "second") for more in ("", ".2")}
    assert {c.output for c in checks[0].comparisons} == nodes


def test_convolutions(tmp_path: Path, library: str) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 16, 9, 8)).astype(np.float32)
    kernel = generator.standard_normal((24, 16, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer", pads=[1, 1, 1, 1])
    onnx.save(model_of([node], {"x": x}, ["y"], {"w": kernel}), tmp_path / "m.onnx")
    result = onnxlr.rewrite(
        tmp_path / "m.onnx",
        tmp_path / "o.onnx",
        method="ternary",
        group_size=0,
        target="onnxlr",
        data={"x": x},
        tolerance=ANY,
        isolate=False,
    )
    assert result.report is not None
    assert outcomes(result.report)["functions", "equivalence"]
    other = tampered(tmp_path / "o.onnx", result_times(1.01))
    found = outcomes(verify(tmp_path / "m.onnx", other, data={"x": x}))
    assert [key for key, passed in found.items() if not passed] == [("functions", "equivalence")]


def test_models_without_ternary_operators_are_run_once(tmp_path: Path) -> None:
    *_, report = rewritten(tmp_path, FLOATS, method="svd", rank=6, target="onnx")
    assert outcomes(report) == {(None, "emission"): True, (None, "approximation"): True}
    assert report.notes == ()


# --- what must fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", [FLOATS, INT8])
@pytest.mark.parametrize("factor", [1.02, 0.9997])
def test_a_function_that_is_not_the_kernel_fails_alone(
    tmp_path: Path, library: str, activations: str, factor: float
) -> None:
    original, file, _ = rewritten(tmp_path, activations)
    report = verify(original, tampered(file, result_times(factor)))
    failed = {key for key, passed in outcomes(report).items() if not passed}
    emission = {("functions", "emission")} if activations == FLOATS else set()
    assert failed == {("functions", "equivalence")} | emission
    checks = [check for check in report.checks if check.proof == "equivalence"]
    for comparison in (c for check in checks for c in check.comparisons):
        assert comparison.relative_l2 == pytest.approx(abs(factor - 1), rel=0.01)
    assert any(
        failure.startswith("equivalence proof by functions, graph optimisation all and none: ")
        and "'second.TernaryMatMul'" in failure
        for failure in report.failures
    )


@pytest.mark.parametrize("activations", [FLOATS, INT8])
def test_other_codes_in_the_function_fail(tmp_path: Path, library: str, activations: str) -> None:
    original, file, _ = rewritten(tmp_path, activations)
    report = verify(original, tampered(file, other_codes), tolerance="cosine>=0.99")
    found = outcomes(report)
    assert not any(passed for (way, _), passed in found.items() if way == "functions")
    assert found["kernels", "emission"]
    assert found["kernels", "approximation"]
    assert {drift.layer for drift in report.drifts} == {"first", "second", "head"}


def test_what_fails_in_both_ways_is_said_of_both(tmp_path: Path, library: str) -> None:
    original, file, _ = rewritten(tmp_path, INT8)
    report = verify(original, file, tolerance="cosine>=2")
    failures = [f.partition(", graph")[0] for f in report.failures]
    assert failures == ["approximation proof by kernels", "approximation proof by functions"]


def test_a_kernel_and_a_function_of_the_same_node_against_numpy(
    tmp_path: Path, library: str
) -> None:
    """The kernel multiplies and the function does not; what it loses is known."""
    file = tmp_path / "telling.onnx"
    onnx.save(telling_model(), file)
    x = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    report = verify(file, file, data={"x": x})
    product = x.astype(np.float64) @ ternary()
    lost = np.linalg.norm(product) / np.linalg.norm(product + bias())
    for check in report.checks:
        (comparison,) = check.comparisons
        assert comparison.relative_l2 == pytest.approx(lost * (check.run_by == "functions"))
    assert [check.proof for check in report.checks if not check.passed][:2] == ["equivalence"] * 2


def test_a_function_that_cannot_be_loaded_is_named(tmp_path: Path, library: str) -> None:
    original, file, _ = rewritten(tmp_path, FLOATS)

    def break_it(function: onnx.FunctionProto) -> None:
        for node in function.node:
            node.output[:] = ["untouched" if name == "Y" else name for name in node.output]
        function.node.append(helper.make_node("Not", ["untouched"], ["Y"]))  # of floats

    with pytest.raises(RuntimeFailureError, match=r"\(t\.onnx\), run by its functions: .*load"):
        verify(original, tampered(file, break_it))


# --- one way only --------------------------------------------------------------------------------


@pytest.mark.parametrize(("activations", "isolate"), [(FLOATS, False), (INT8, False), SLOW])
@pytest.mark.usefixtures("off")
def test_without_the_library_functions_are_proved_and_that_is_said(
    tmp_path: Path, activations: str, isolate: bool
) -> None:
    original, file, first = rewritten(tmp_path, activations, isolate=isolate)
    for report in (first, verify(original, file, isolate=isolate)):
        assert outcomes(report) == {
            ("functions", "emission"): True,
            ("functions", "approximation"): True,
        }
        (note,) = report.notes
        assert "ran by its functions of standard operators only" in note
        assert note.endswith("the op library is turned off by ONNXLR_OPS_LIBRARY=off")
    report = verify(original, tampered(file, result_times(3)), isolate=isolate)
    assert not outcomes(report)["functions", "emission"]


def test_where_no_library_was_built_the_note_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONNXLR_OPS_LIBRARY", raising=False)
    monkeypatch.setattr("onnxlr.runtime.library._folders", list)
    *_, report = rewritten(tmp_path, INT8)
    (note,) = report.notes
    assert "has no op library" in note
    assert "pip install" in note


def test_a_model_without_functions_is_proved_by_kernels_and_that_is_said(
    tmp_path: Path, library: str
) -> None:
    original, file, _ = rewritten(tmp_path, INT8)
    model = onnx.load(file)
    del model.functions[:]
    onnx.save(model, tmp_path / "t.onnx")
    report = verify(original, tmp_path / "t.onnx")
    assert outcomes(report) == {("kernels", "emission"): True, ("kernels", "approximation"): True}
    (note,) = report.notes
    assert "no functions for TernaryMatMul" in note


# --- where nodes and weights are -----------------------------------------------------------------


def test_without_a_plan_functions_are_compared_all_the_same(tmp_path: Path, library: str) -> None:
    original, file, _ = rewritten(tmp_path, INT8)
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, file)
    assert verify(original, file).passed
    found = outcomes(verify(original, tampered(file, result_times(1.02))))
    assert found == {
        ("kernels", "approximation"): True,
        ("functions", "equivalence"): False,
        ("functions", "approximation"): True,
    }


def test_weights_in_another_file(tmp_path: Path, library: str) -> None:
    original, file, _ = rewritten(tmp_path, INT8)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    onnx.save_model(
        onnx.load(file),
        elsewhere / "o.onnx",
        save_as_external_data=True,
        location="codes.bin",
        size_threshold=512,  # ONNX Runtime 1.18 wants to see smaller ones when it infers shapes
    )
    assert (elsewhere / "codes.bin").stat().st_size >= 512
    before = sorted(elsewhere.iterdir())
    report = verify(original, elsewhere / "o.onnx")
    assert report.passed
    assert outcomes(report)["functions", "equivalence"]
    assert sorted(elsewhere.iterdir()) == before


def test_weights_that_are_constant_nodes(tmp_path: Path, library: str) -> None:
    original, file, _ = rewritten(tmp_path, INT8)
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".codes"):
            node = helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.node.insert(0, node)
    kept = [t for t in model.graph.initializer if not t.name.endswith(".codes")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, file)
    assert len(TernaryNodes.of(model).alone) == 3
    assert outcomes(verify(original, file))["functions", "equivalence"]
    assert not verify(original, tampered(file, result_times(1.02))).passed


@pytest.mark.parametrize("main", [False, True])
def test_nodes_in_subgraphs_are_not_compared_and_that_is_said(
    tmp_path: Path, library: str, main: bool
) -> None:
    model, data = in_branches(main)
    asked: dict[str, Any] = {"method": "ternary", "terms": 3, "target": "onnxlr"}
    report = onnxlr.rewrite(
        model, tmp_path / "o", activations=FLOATS, tolerance=ANY, isolate=False, **asked, **data
    ).report
    assert report is not None
    assert report.passed
    compared = {c.output for k in report.checks if k.proof == "equivalence" for c in k.comparisons}
    assert compared == ({"first.TernaryMatMul"} if main else set())
    (note,) = report.notes
    assert "were not compared one by one, function against kernel" in note
    for kind in ("then", "else"):
        assert f"{kind}.TernaryMatMul in {kind}_branch of If 'either'" in note
    assert ("functions", "emission") in {(check.run_by, check.proof) for check in report.checks}


def test_nodes_of_a_model() -> None:
    """Data that is constant, or weights that are computed, cannot be run alone."""
    model = telling_model()
    (found,) = TernaryNodes.of(model).alone
    assert (found.label, found.data, found.output) == ("telling", "x", "y")
    assert TernaryNodes.of(model).inside == TernaryNodes.of(model).lacking == ()
    assert TernaryNodes.of(telling_model(with_function=False)).lacking == ("TernaryMatMul",)
    assert not TernaryNodes.of(classifier())
    node = model.graph.node[0]
    for position in (0, 2):
        changed = telling_model()
        name = changed.graph.initializer[0].name if position == 0 else "computed"
        changed.graph.node[0].input[position] = name
        found = TernaryNodes.of(changed)
        assert (found.alone, found.inside) == ((), (node.name,))
        assert found
