"""Factors of inputs: a node of their own, or inside the operator behind them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxlr.lowering import LoweringRefusedError
from onnxlr.numbers import Format
from onnxlr.stages import Linear, Scale
from tests.lowering.ternary import (
    by_functions,
    expect_all,
    factors,
    lowered,
    matmul_model,
    matrix,
    normal,
    own_nodes,
    svd_chain,
)
from tests.lowering.written import RUNTIME, operators
from tests.onelayer import distance, model_of, newest_opset

OPSETS = sorted({9, 11, 13, 17, 21, newest_opset()})
TARGETS = ("onnx", "ort", "onnxlr")
GROUPS = (None, 32, 64, 128)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
def test_a_site_that_takes_the_matrix_transposed(target, activations):
    """The factors of inputs are the last step there, with Gemm's alpha and bias behind them."""
    if target == "ort" and activations == "dynamic_int8" and RUNTIME < (1, 24):
        pytest.skip("MatMulNBits has no numbers of 2 bits there")
    stages, dense = svd_chain(0, 24, 24, 30)
    weight, x, c = normal(0, 24, 24), normal(1, 5, 24), normal(2, 24)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w", "c"], ["y"], transB=1, alpha=0.5, beta=3.0),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"w": weight, "c": c})
    changed = lowered(model, stages, target, activations)
    assert len(own_nodes(changed)) == (2 if target == "onnxlr" else 0)
    expected = 0.5 * (x @ dense) @ dense.T + 3.0 * c
    if activations == "float":
        expect_all(changed, {"x": x}, expected, 1e-5)
    else:
        assert distance(by_functions(changed, {"x": x}), expected) < 0.05


@pytest.mark.parametrize(
    ("operator", "names", "alpha"),
    [("MatMul", ["x", "w"], 1.0), ("MatMul", ["w", "x"], 1.0), ("Gemm", ["x", "w", "c"], 0.5)],
)
def test_a_scale_alone_and_at_the_end(operator, names, alpha):
    d = factors(0, 6)
    x, c = normal(1, 6, 6), normal(2, 6)
    attributes = {"alpha": alpha, "beta": 2.0} if operator == "Gemm" else {}
    constants = {"w": normal(0, 6, 6)} | ({"c": c} if operator == "Gemm" else {})
    node = helper.make_node(operator, names, ["y"], **attributes)
    model = model_of([node], {"x": x}, ["y"], constants)
    added = 2.0 * c if operator == "Gemm" else 0
    left = names[0] == "w"
    scaled = d[:, None] * x if left else x * d
    expect_all(lowered(model, [Scale(d)]), {"x": x}, alpha * scaled + added, 1e-6)
    stage, dense = matrix(0, 6, 6)
    product = d[:, None] * (dense.T @ x) if left else (x @ dense) * d
    changed = lowered(model, [stage, Scale(d)])
    expect_all(changed, {"x": x}, alpha * product + added, 1e-5)
    twice = lowered(model, [Scale(d), Scale(d)])
    expect_all(twice, {"x": x}, alpha * (d[:, None] ** 2 * x if left else x * d**2) + added, 1e-6)


@pytest.mark.parametrize("target", ["onnx", "onnxlr"])
def test_data_of_rank_1(target):
    stage, dense = matrix(0, 20, 7, 2)
    d, x = factors(0, 20), normal(1, 20)
    for names, weight in ((["x", "w"], normal(0, 20, 7)), (["w", "x"], normal(0, 7, 20))):
        model = model_of([helper.make_node("MatMul", names, ["y"])], {"x": x}, ["y"], {"w": weight})
        changed = lowered(model, [Scale(d), stage], target)
        expect_all(changed, {"x": x}, (x * d) @ dense, 1e-5)


def test_a_scale_before_a_float_stage_is_a_node():
    d, x = factors(0, 20), normal(1, 3, 20)
    weight = normal(0, 20, 7)
    stage = Linear.of(weight).encoded(Format("float32"), np.float32)
    for target in TARGETS:
        changed = lowered(matmul_model(weight, x), [Scale(d), stage], target)
        assert operators(changed) == {"Mul": 1, "MatMul": 1}
        expect_all(changed, {"x": x}, (x * d) @ weight.astype(np.float64), 1e-6)


def test_factors_of_columns_need_the_rank():
    d = factors(0, 6)
    node = helper.make_node("MatMul", ["w", "h"], ["y"])
    graph = helper.make_graph(
        [
            helper.make_node("Own", ["x"], ["h"], domain="own"),
            node,
            helper.make_node("Own", ["y"], ["z"], domain="own"),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [6, 3])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [4, 3])],
        [numpy_helper.from_array(normal(0, 4, 6), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    stage, _ = matrix(0, 6, 4)
    with pytest.raises(LoweringRefusedError, match="columns need the rank of its data"):
        lowered(model, [Scale(d), stage])
    assert not own_nodes(lowered(model, [stage]))
