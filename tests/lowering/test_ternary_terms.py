"""Ternary matrices where the operators are not: decoded, or each term as integers."""

from __future__ import annotations

import numpy as np
import pytest

from onnxlr.lowering import LoweringRefusedError
from onnxlr.numbers import Encoded
from onnxlr.stages import Adjustment, Linear, Scale
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
from tests.lowering.written import RUNTIME, constant_bytes, operators, optimised
from tests.onelayer import distance, newest_opset

OPSETS = sorted({9, 11, 13, 17, 21, newest_opset()})
TARGETS = ("onnx", "ort", "onnxlr")
GROUPS = (None, 32, 64, 128)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("opset", sorted({21, newest_opset()}))
def test_targets_agree_with_int8_data(group, terms, opset):
    stage, dense = matrix(5, 200, 48, terms, group)
    d = factors(5, 200)
    x = normal(5, 6, 200)
    expected = (x * d) @ dense
    model = matmul_model(normal(0, 200, 48), x, opset)
    for target, kind in (
        ("onnx", "DynamicQuantizeLinear" if group is None else "DequantizeLinear"),
        ("ort", "MatMulNBits"),
        ("onnxlr", "TernaryMatMul"),
    ):
        if target == "ort" and RUNTIME < (1, 24):
            continue
        if target == "onnx" and group and RUNTIME < (1, 20):
            continue  # it decodes no groups
        changed = lowered(model, [Scale(d), stage], target, "dynamic_int8")
        found = operators(changed)
        assert found[kind] == (1 if target == "onnxlr" else terms)
        assert found.get("Mul", 0) >= (target != "onnxlr")
        assert distance(by_functions(changed, {"x": x}), expected) < 0.05


def test_a_rank_in_integers_at_every_target():
    stages, dense = svd_chain(3, 96, 80, 150)
    x = normal(4, 9, 96)
    model = matmul_model(normal(0, 96, 80), x)
    for target in TARGETS:
        if target == "ort" and RUNTIME < (1, 24):
            continue
        changed = lowered(model, stages, target, "dynamic_int8")
        assert 1e-4 < distance(by_functions(changed, {"x": x}), x @ dense) < 0.05


@pytest.mark.parametrize("opset", [7, 8])
def test_below_its_opset_it_is_decoded(opset):
    stage, dense = matrix(0, 20, 7, 2)
    x = normal(1, 3, 20)
    changed = lowered(matmul_model(normal(0, 20, 7), x, opset), [stage], "onnxlr")
    assert not own_nodes(changed)
    assert not changed.functions
    expect_all(changed, {"x": x}, x @ dense, 1e-5)
    reasons = f"DynamicQuantizeLinear needs opset 11, the model has {opset}.*with float data$"
    with pytest.raises(LoweringRefusedError, match=reasons):
        lowered(matmul_model(normal(0, 20, 7), x, opset), [stage], "onnx", "dynamic_int8")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("group", [None, 32])
def test_other_float_types_are_decoded(dtype, terms, group):
    stage, dense = matrix(0, 70, 7, terms, group, dtype)
    x = normal(1, 3, 70, dtype=dtype)
    changed = lowered(matmul_model(normal(0, 70, 7, dtype=dtype), x), [stage], "onnxlr")
    assert not own_nodes(changed)
    found = by_functions(changed, {"x": x})
    assert found.dtype == dtype
    expect_all(
        changed, {"x": x}, x.astype(np.float64) @ dense, 3e-3 if dtype == "float16" else 1e-6
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_stack_of_matrices_is_decoded(target):
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (2, 3, 40, 8)).astype(np.int8)
    scales = rng.standard_normal((3, 2, 2, 8)).astype(np.float32)
    stage = Linear(Encoded.of_trits(trits, scales, 32))
    expanded = np.repeat(scales.astype(np.float64), 32, axis=2)[:, :, :40]
    dense = sum(trits[term] * expanded[:, term] for term in range(2))
    x = normal(1, 3, 5, 40)
    changed = lowered(matmul_model(normal(0, 3, 40, 8), x), [stage], target)
    assert not own_nodes(changed)
    expect_all(changed, {"x": x}, x @ dense, 1e-5)


def test_grouped_integers_need_opset_21_without_operators():
    stage, _ = matrix(5, 200, 48, 2, 64)
    model = matmul_model(normal(0, 200, 48), normal(5, 6, 200), 17)
    reason = r"one for each 64 inputs.*needs opset 21, the model has 17.*with float data$"
    with pytest.raises(LoweringRefusedError, match=reason):
        lowered(model, [stage], "onnx", "dynamic_int8")


@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_data_in_known_ranges(terms, scaled, target):
    stage, dense = matrix(5, 60, 9, terms)
    x, d = normal(5, 6, 60), factors(5, 60)
    between = [(float(x.min()), float(x.max()))]
    stages = [stage]
    if scaled:
        stages, dense = [Scale(d), stage], d[:, None] * dense
        between.append((float((x * d).min()), float((x * d).max())))
    adjustment = Adjustment(None, (*between, (-99.0, 99.0)))
    model = matmul_model(normal(0, 60, 9), x)
    changed = lowered(model, stages, target, "static_int8", [adjustment])
    found = operators(changed)
    assert found["MatMulInteger"] == found["QuantizeLinear"] == terms
    assert 1e-4 < distance(by_functions(changed, {"x": x}), x @ dense) < 0.05


@pytest.mark.skipif(RUNTIME < (1, 24), reason="it has no numbers of 2 bits")
@pytest.mark.parametrize(
    ("inputs", "group", "block"),
    [(5, None, 32), (33, None, 64), (100, None, 128), (300, None, 128), (300, 64, 64)],
)
def test_matmul_nbits_holds_codes_and_scales_only(inputs, group, block):
    """Trits are −1, 0, 1 around the operator's own zero: no zero points in the file."""
    stage, dense = matrix(1, inputs, 6, 1, group)
    x = normal(2, 4, inputs)
    changed = lowered(matmul_model(normal(0, inputs, 6), x), [stage], "ort", "dynamic_int8")
    (node,) = changed.graph.node
    attributes = {a.name: a.i for a in node.attribute}
    assert (attributes["bits"], attributes["block_size"]) == (2, block)
    assert len(node.input) == 3
    groups = -(-inputs // block)
    assert constant_bytes(changed) == groups * 6 * (block // 4 + 4)
    assert distance(by_functions(changed, {"x": x}), x @ dense) < 0.05


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("group", [None, 32])
def test_bytes_of_packed_codes(terms, group):
    """Two bits for each trit, a scale for each group, column and term, and what all share."""
    stage, _ = matrix(1, 384, 64, terms, group)
    changed = lowered(matmul_model(normal(0, 384, 64), normal(2, 4, 384)), [stage], "onnx")
    numbers = terms * (384 * 64 // 4 + 4 * (12 if group else 1) * 64)
    assert stage.nbytes == numbers
    shared = 4 * 4 + 4 + 4 + (4 * 32 if group else 0)  # shifts, one, zero point, ones
    assert constant_bytes(changed) == numbers + shared


def test_folded_when_the_model_is_loaded():
    stage, _ = matrix(1, 96, 8, 3, 32)
    changed = lowered(matmul_model(normal(0, 96, 8), normal(2, 4, 96)), [stage], "onnx")
    assert operators(optimised(changed)) == {"MatMul": 1}
