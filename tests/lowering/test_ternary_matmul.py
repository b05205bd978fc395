"""Ternary matrices as TernaryMatMul nodes: every target, layout, opset; functions and kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxlr.stages import Adjustment, Scale
from tests.lowering.ternary import (
    by_functions,
    by_kernels,
    expect_all,
    factors,
    lowered,
    matmul_model,
    matrix,
    normal,
    own_nodes,
    row_rounded,
    svd_chain,
)
from tests.lowering.written import RUNTIME, operators
from tests.onelayer import distance, model_of, newest_opset

OPSETS = sorted({9, 11, 13, 17, 21, newest_opset()})
TARGETS = ("onnx", "ort", "onnxlr")
GROUPS = (None, 32, 64, 128)


@settings(deadline=None, max_examples=60)
@given(
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 40),
    terms=st.integers(1, 3),
    group=st.sampled_from(GROUPS),
    lead=st.lists(st.integers(1, 4), max_size=3),
    no_rows=st.booleans(),
    left=st.booleans(),
    opset=st.sampled_from(OPSETS),
    target=st.sampled_from(TARGETS),
    seed=st.integers(0, 2**16),
)
def test_direct_matrices_of_float_data(
    inputs, outputs, terms, group, lead, no_rows, left, opset, target, seed
):
    if no_rows and len(lead) == 1 and not left:
        lead = [0]
    stage, dense = matrix(seed, inputs, outputs, terms, group)
    x = normal(seed, *lead, inputs)
    expected = x @ dense
    names, weight = ["x", "w"], normal(seed, inputs, outputs)
    if left:
        names, weight = ["w", "x"], weight.T.copy()
        if lead:
            x, expected = (np.swapaxes(a, -1, -2).copy() for a in (x, expected))
    model = model_of(
        [helper.make_node("MatMul", names, ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    changed = lowered(model, [stage], target)
    assert len(own_nodes(changed)) == (target == "onnxlr")
    size = np.linalg.norm(x) * np.linalg.norm(dense) / max(np.linalg.norm(expected), 1e-9)
    expect_all(changed, {"x": x}, expected, 1e-6 * max(10, size))


@settings(deadline=None, max_examples=40)
@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    rank=st.integers(1, 150),
    lead=st.lists(st.integers(1, 4), max_size=2),
    left=st.booleans(),
    scaled=st.booleans(),
    opset=st.sampled_from(OPSETS),
    target=st.sampled_from(TARGETS),
    seed=st.integers(0, 2**16),
)
def test_ternary_svd_of_float_data(inputs, outputs, rank, lead, left, scaled, opset, target, seed):
    """Ranks may be above both sizes."""
    stages, dense = svd_chain(seed, inputs, outputs, rank, scaled)
    x = normal(seed, *lead, inputs)
    expected = x @ dense
    names, weight = ["x", "w"], normal(seed, inputs, outputs)
    if left:
        names, weight = ["w", "x"], weight.T.copy()
        if lead:
            x, expected = (np.swapaxes(a, -1, -2).copy() for a in (x, expected))
    model = model_of(
        [helper.make_node("MatMul", names, ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    changed = lowered(model, stages, target)
    found = operators(changed)
    if target == "onnxlr":
        assert found.get("TernaryMatMul") == 2
        assert "Mul" not in found  # the first operator scales its inputs
    else:
        assert found["MatMul"] == 2
    size = np.linalg.norm(x) * np.linalg.norm(dense) / max(np.linalg.norm(expected), 1e-9)
    expect_all(changed, {"x": x}, expected, 1e-6 * max(10, 3 * size))


@settings(deadline=None, max_examples=40)
@given(
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 40),
    terms=st.integers(1, 3),
    group=st.sampled_from(GROUPS),
    rows=st.integers(1, 5),
    scaled=st.booleans(),
    left=st.booleans(),
    opset=st.sampled_from(OPSETS),
    seed=st.integers(0, 2**16),
)
def test_rows_are_rounded_as_the_document_says(
    inputs, outputs, terms, group, rows, scaled, left, opset, seed
):
    stage, dense = matrix(seed, inputs, outputs, terms, group)
    x, stages = normal(seed, rows, inputs), [stage]
    data = x
    if scaled:
        d = factors(seed, inputs)
        stages, data = [Scale(d), stage], x * d
    expected = row_rounded(data) @ dense
    names, weight = ["x", "w"], normal(seed, inputs, outputs)
    if left:
        names, weight, x, expected = ["w", "x"], weight.T.copy(), x.T.copy(), expected.T.copy()
    model = model_of(
        [helper.make_node("MatMul", names, ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    changed = lowered(model, stages, "onnxlr", "dynamic_int8")
    (node,) = own_nodes(changed)
    assert {a.name: a.i for a in node.attribute}["accuracy_level"] == 4
    size = np.linalg.norm(data) * np.linalg.norm(dense) / max(np.linalg.norm(expected), 1e-9)
    expect_all(changed, {"x": x}, expected, 1e-6 * max(10, size))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
@pytest.mark.parametrize("bias", [None, "row", "one row", "column", "full", "scalar", "computed"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.0, -2.0), (0.5, -2.0)])
def test_gemm(target, activations, bias, left, transposed, alpha, beta):
    if target == "ort" and activations == "dynamic_int8" and RUNTIME < (1, 24):
        pytest.skip("MatMulNBits has no numbers of 2 bits there")
    stage, dense = matrix(0, 70, 5, 2)
    d = factors(1, 70)
    dense = d[:, None].astype(np.float64) * dense
    x = normal(1, 70, 3) if left else normal(1, 3, 70)
    expected = alpha * (dense.T @ x if left else x @ dense)
    constants = {"w": normal(2, 5, 70) if left else normal(2, 70, 5)}
    names = ["w", "x"] if left else ["x", "w"]
    if bias:
        rows, columns = expected.shape
        shapes = {"row": (columns,), "one row": (1, columns), "column": (rows, 1), "scalar": ()}
        values = normal(2, *shapes.get(bias, (rows, columns)))
        expected = expected + beta * values.astype(np.float64)
        names.append("c")
    if transposed:
        x, constants = x.T.copy(), {"w": constants["w"].T.copy()}
    flags = {"transA": int(transposed), "transB": int(transposed)}
    nodes = [helper.make_node("Gemm", names, ["y"], alpha=alpha, beta=beta, **flags)]
    inputs = {"x": x}
    if bias == "computed":
        inputs["c"] = values
    elif bias:
        constants["c"] = values
    changed = lowered(
        model_of(nodes, inputs, ["y"], constants), [Scale(d), stage], target, activations
    )
    if activations == "float":
        expect_all(changed, inputs, expected, 1e-5)
    else:
        assert distance(by_functions(changed, inputs), expected) < 0.05
    if target == "onnxlr":
        along = {"row": not left, "one row": not left, "column": left, "scalar": True}
        taken = along.get(bias, False) and alpha == 1
        found = operators(changed)
        assert found.get("Add", 0) == (bias is not None and not taken)
        assert ("c" in {t.name for t in changed.graph.initializer}) == (
            bias not in (None, "computed") and not taken
        )


@pytest.mark.parametrize("left", [False, True])
def test_a_bias_correction_is_the_operators_bias(left):
    stage, dense = matrix(0, 40, 12)
    weight, x = normal(0, 40, 12), normal(1, 40, 3) if left else normal(1, 3, 40)
    correction = np.arange(12.0)
    names = ["w", "x"] if left else ["x", "w"]
    model = model_of(
        [helper.make_node("MatMul", names, ["y"])],
        {"x": x},
        ["y"],
        {"w": weight.T.copy() if left else weight},
    )
    changed = lowered(model, [stage], adjustments=[Adjustment(correction)])
    assert "Add" not in operators(changed)
    expected = dense.T @ x + correction[:, None] if left else x @ dense + correction
    expect_all(changed, {"x": x}, expected, 1e-5)


def test_two_sites_share_their_constants():
    stage, dense = matrix(0, 20, 20)
    x = normal(1, 3, 20)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"w": normal(0, 20, 20)})
    changed = lowered(model, [stage])
    first, second = own_nodes(changed)
    assert first.input[1:] == second.input[1:]
    assert len(changed.graph.initializer) == 4
    expect_all(changed, {"x": x}, x @ dense @ dense, 1e-5)


def test_value_infos_are_what_is_computed():
    stages, _ = svd_chain(0, 24, 10, 30)
    x = normal(1, 2, 3, 24)
    changed = lowered(matmul_model(normal(0, 24, 10), x), stages)
    (value,) = changed.graph.value_info
    assert value.name == own_nodes(changed)[0].output[0]
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [2, 3, 30]
    inferred = onnx.shape_inference.infer_shapes(changed, strict_mode=True)
    assert inferred.graph.value_info[0] == value


def test_float_data_is_not_rounded_by_the_kernels():
    stage, dense = matrix(0, 256, 32, 2, 64)
    x = normal(1, 4, 256)
    changed = lowered(matmul_model(normal(0, 256, 32), x), [stage])
    assert distance(by_kernels(changed, {"x": x}), x @ dense) < 1e-6
