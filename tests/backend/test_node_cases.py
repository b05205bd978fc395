"""ONNX's own backend tests: every model passes through unchanged, MatMul and Gemm as factors."""

from __future__ import annotations

import copy
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test import loader
from onnxruntime.capi import onnxruntime_pybind11_state as _states

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.model import Splice, open_model, splice
from tests.fixtures import svd_plan

REFUSED_BY_THE_CHECKER: dict[str, str] = {}
"""Cases that ONNX's own checker refuses, and a part of its reason: none that are known."""


@cache
def node_cases() -> dict[str, Any]:
    """Return the generated test cases of all operators by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # they compute infinities on purpose
        from onnx.backend.test.case.node import collect_testcases

        return {case.name: case for case in collect_testcases(None)}


def stored_files() -> list[Path]:
    """Return the model files that come with onnx: simple, pytorch and light ones."""
    return sorted(Path(loader.DATA_DIR).rglob("*.onnx"))


def expect_unchanged(name: str, source: Path | bytes, proto: onnx.ModelProto) -> int:
    """Open, search, splice nothing, and write; return the number of layers found."""
    if name in REFUSED_BY_THE_CHECKER:
        with pytest.raises(onnxlr.ModelError, match=re.escape(REFUSED_BY_THE_CHECKER[name])):
            open_model(source)
        return 0
    model = open_model(source)
    layers = find_layers(model)
    assert model.types is not None  # shape inference ran, or gave up quietly
    splice(model, Splice())
    assert model.proto == proto, name
    assert model.proto.SerializeToString() == proto.SerializeToString(), name
    return len(layers)


def test_all_node_cases_pass_through_a_splice_of_nothing() -> None:
    assert len(node_cases()) > 1000
    layers = 0
    for name, case in node_cases().items():
        content = case.model.SerializeToString()
        layers += expect_unchanged(name, content, onnx.ModelProto.FromString(content))
    assert layers > 50


def test_all_stored_models_pass_through_a_splice_of_nothing() -> None:
    files = stored_files()
    assert len(files) > 100
    layers = 0
    for file in files:
        content = file.read_bytes()
        proto = onnx.ModelProto.FromString(content)
        assert proto.SerializeToString() == content
        layers += expect_unchanged(str(file.relative_to(loader.DATA_DIR)), file, proto)
    assert layers > 200


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_all_node_cases_are_copied_by_an_empty_plan(tmp_path: Path, step: int) -> None:
    source, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    for name in sorted(node_cases().keys() - REFUSED_BY_THE_CHECKER.keys())[::step]:
        content = node_cases()[name].model.SerializeToString()
        source.write_bytes(content)
        result = onnxlr.rewrite(source, output, method="keep")
        assert output.read_bytes() == content, name
        assert result.report is None
        output.unlink()


def test_all_stored_models_are_copied_by_an_empty_plan(tmp_path: Path) -> None:
    for file in stored_files():
        if str(file.relative_to(loader.DATA_DIR)) not in REFUSED_BY_THE_CHECKER:
            onnxlr.rewrite(file, tmp_path / "out.onnx", method="keep")
            assert (tmp_path / "out.onnx").read_bytes() == file.read_bytes(), str(file)


# -- MatMul and Gemm ---------------------------------------------------------------------------

FULL_RANK_CASES = {
    "test_matmul_2d",
    "test_matmul_3d",
    "test_matmul_4d",
    "test_matmul_bcast",
    "test_matmul_1d_1d",
    "test_matmul_1d_3d",
    "test_matmul_4d_1d",
    "test_gemm_all_attributes",
    "test_gemm_alpha",
    "test_gemm_beta",
    "test_gemm_default_matrix_bias",
    "test_gemm_default_no_bias",
    "test_gemm_default_scalar_bias",
    "test_gemm_default_single_elem_vector_bias",
    "test_gemm_default_vector_bias",
    "test_gemm_default_zero_bias",
    "test_gemm_transposeA",
    "test_gemm_transposeB",
}

NOT_IN_ONNX_1_17 = {
    "test_matmul_bcast",
    "test_matmul_1d_1d",
    "test_matmul_1d_3d",
    "test_matmul_4d_1d",
}

VECTOR = "its weight is a vector: nothing to factorize"
STACK_ON_A_VECTOR = "a stack of matrices applied to data of rank 1"
SKIPPED = {
    ("test_matmul_1d_1d", 0): VECTOR,
    ("test_matmul_1d_1d", 1): VECTOR,
    ("test_matmul_1d_3d", 0): VECTOR,
    ("test_matmul_1d_3d", 1): STACK_ON_A_VECTOR,
    ("test_matmul_4d_1d", 0): STACK_ON_A_VECTOR,
    ("test_matmul_4d_1d", 1): VECTOR,
}
"""Cases that are left alone, by the operand that is constant, and why."""

NEWEST = "newest"
OPSETS = (7, 9, 11, 13, 17, 21, NEWEST)


@cache
def newest_opset() -> int:
    """Return the newest opset of which ONNX Runtime runs a model made by this onnx."""
    identity = helper.make_node("Identity", ["x"], ["y"])
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([identity], "g", value[:1], value[1:])
    for opset in range(onnx.defs.onnx_opset_version(), 21, -1):
        model = helper.make_model(graph, ir_version=10)
        model.opset_import[0].version = opset
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except (_states.Fail, _states.InvalidArgument, _states.InvalidGraph):
            continue
        return opset
    return 21


def with_constant(case: Any, operand: int, opset: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a case's model of one node at an opset, an operand made constant, and its inputs.

    The operators have not changed what they compute since opset 7 (Gemm: its bias became optional
    at 11), so that the cases hold at any of them.
    """
    model = copy.deepcopy(case.model)
    graph, (node,) = model.graph, model.graph.node
    model.opset_import[0].version = opset
    model.ir_version = 3 if opset < 9 else 8 if opset < 21 else 10
    inputs = dict(zip([v.name for v in graph.input], case.data_sets[0][0], strict=True))
    name = node.input[operand]
    graph.initializer.append(numpy_helper.from_array(inputs.pop(name), name))
    if model.ir_version > 3:
        graph.input.remove(next(v for v in graph.input if v.name == name))
    return model, inputs


def run(path: Path, inputs: dict[str, Any], level: ort.GraphOptimizationLevel) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_the_cases_are_all_there_is() -> None:
    """A case that onnx adds some day is listed above, or a test says so."""
    plain = re.compile(r"test_(matmul|gemm)_")
    named = {name for name in node_cases() if plain.match(name)}
    assert named == {name for name, case in node_cases().items() if is_product(case)}
    assert FULL_RANK_CASES - NOT_IN_ONNX_1_17 <= named <= FULL_RANK_CASES


def is_product(case: Any) -> bool:
    nodes = case.model.graph.node
    return len(nodes) == 1 and nodes[0].op_type in ("MatMul", "Gemm")


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("operand", [0, 1], ids=["A constant", "B constant"])
@pytest.mark.parametrize("name", sorted(FULL_RANK_CASES))
def test_products_at_full_rank(name: str, operand: int, opset: int | str, tmp_path: Path) -> None:
    if name in NOT_IN_ONNX_1_17 - node_cases().keys():
        pytest.skip(f"onnx {onnx.__version__} has no case {name}")
    case = node_cases()[name]
    version = newest_opset() if opset == NEWEST else int(opset)
    if name == "test_gemm_default_no_bias" and version < 11:
        with pytest.raises(onnxlr.ModelError, match="input size 2 not in range"):
            open_model(with_constant(case, operand, version)[0])
        return
    model, inputs = with_constant(case, operand, version)
    (layer,) = find_layers(open_model(model))
    assert layer.skip == SKIPPED.get((name, operand))
    if layer.skip:
        with pytest.raises(onnxlr.PlanError, match=re.escape(layer.skip)):
            onnxlr.rewrite(model, tmp_path / "out.onnx", plan=svd_plan([layer.name], 1))
        return
    assert layer.shape is not None
    result = rewrite_at_full_rank(model, layer.name, min(layer.shape[-2:]), tmp_path)
    (record,) = result.layers
    assert record.error is not None
    assert record.error < 1e-6
    rewritten = onnx.load(tmp_path / "out.onnx")
    assert len(rewritten.graph.node) >= 2
    (expected,) = case.data_sets[0][1]
    for level in (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        found = run(tmp_path / "out.onnx", inputs, level)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def rewrite_at_full_rank(
    model: onnx.ModelProto, layer: str, rank: int, folder: Path
) -> onnxlr.pipeline.RewriteResult:
    with pytest.warns(onnxlr.OnnxlrWarning, match=f"layer '{layer}'.*because the plan says so"):
        return onnxlr.rewrite(
            model, folder / "out.onnx", plan=svd_plan([layer], rank), isolate=False
        )
