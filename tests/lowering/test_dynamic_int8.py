"""int8 weights and data rounded as it comes, against the standard's definition in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxlr.lowering import LoweringRefusedError
from onnxlr.lowering.integer_product import _MOST_INPUTS
from onnxlr.numbers import Format
from tests.lowering.written import (
    RUNTIME,
    constant_bytes,
    expect,
    integers_are_exact,
    is_clear,
    operators,
    optimised,
    simulated,
    stage_of,
    written,
)
from tests.onelayer import model_of, newest_opset

exact = pytest.mark.skipif(
    not integers_are_exact(), reason="ONNX Runtime adds pairs of products in 16 bits here"
)
TARGETS = st.sampled_from(["onnx", "ort"])


def _normal(seed, *shape, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _range(x):
    """Return scale and zero point by the definition of DynamicQuantizeLinear."""
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((high - low) / np.float32(255))
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _int8(matrix):
    """Round to 255 levels, one scale for each column, straight from the definition."""
    scale = np.float32(np.abs(matrix.astype(np.float64)).max(axis=-2, keepdims=True) / 127)
    return np.clip(np.rint(matrix / scale.astype(np.float64)), -127, 127) * scale


def _rounded(x):
    scale, zero_point = _range(x)
    assume(is_clear(x, scale) and abs(-min(x.min(), 0) / scale % 1 - 0.5) > 1e-3)
    return simulated(x, scale, zero_point)


@exact
@settings(deadline=None, max_examples=80)
@given(
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 20),
    lead=st.lists(st.integers(1, 4), max_size=3),
    batch=st.lists(st.integers(1, 3), max_size=2),
    left=st.booleans(),
    opset=st.sampled_from(sorted({11, 13, 17, 21, newest_opset()})),
    target=TARGETS,
    seed=st.integers(0, 2**16),
)
def test_products(inputs, outputs, lead, batch, left, opset, target, seed):
    if batch:
        lead = [*batch, 3]
    weight, x = _normal(seed, *batch, inputs, outputs), _normal(seed + 1, *lead, inputs)
    expected = _rounded(x) @ _int8(weight)
    stage = stage_of(weight, Format("int8"))
    names = ["x", "w"]
    if left:
        names, weight = ["w", "x"], np.swapaxes(weight, -1, -2).copy()
        if lead:
            x, expected = (np.swapaxes(a, -1, -2).copy() for a in (x, expected))
    node = helper.make_node("MatMul", names, ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight}, opset)
    changed = written(model, [stage], target, "dynamic_int8")
    expect(changed, {"x": x}, expected, 1e-5)
    turned = {"Transpose": 2} if left and lead else {}
    product = {"DynamicQuantizeLinear": 1, "MatMulInteger": 1, "Cast": 1, "Mul": 2}
    assert operators(changed) == {**product, **turned}
    assert operators(optimised(changed))["DynamicQuantizeMatMul"] == 1


@exact
@pytest.mark.parametrize("bias", [None, "row", "full"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0)])
def test_gemm(left, bias, alpha, beta):
    weight = _normal(0, 70, 5)
    x = _normal(3, 70, 3) if left else _normal(3, 3, 70)
    scale, zero_point = _range(x)
    rounded, dense = simulated(x, scale, zero_point), _int8(weight)
    expected = alpha * (dense.T @ rounded if left else rounded @ dense)
    constants = {"w": weight.T.copy() if left else weight}
    names = ["w", "x"] if left else ["x", "w"]
    if bias:
        shape = expected.shape if bias == "full" else expected.shape[1:]
        constants["c"] = _normal(2, *shape)
        names.append("c")
        expected = expected + beta * constants["c"]
    node = helper.make_node("Gemm", names, ["y"], alpha=alpha, beta=beta)
    model = model_of([node], {"x": x}, ["y"], constants)
    changed = written(model, [stage_of(weight, Format("int8"))], "onnx", "dynamic_int8")
    expect(changed, {"x": x}, expected, 1e-5)


@pytest.mark.parametrize("target", ["onnx", "ort"])
def test_no_rows(target):
    weight, x = _normal(0, 20, 6), np.zeros((0, 20), np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    changed = written(model, [stage_of(weight, Format("int8"))], target, "dynamic_int8")
    expect(changed, {"x": x}, np.zeros((0, 6)), 0)


def test_bytes_are_those_of_codes_and_scales():
    weight, x = _normal(0, 33, 7), _normal(1, 2, 33)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    stage = stage_of(weight, Format("int8"))
    changed = written(model, [stage], "onnx", "dynamic_int8")
    assert constant_bytes(changed) == stage.nbytes == 33 * 7 + 4 * 7


def test_two_sides_share_the_codes():
    weight, x = _normal(0, 33, 7), _normal(1, 33, 33)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["right"]),
        helper.make_node("Gemm", ["w", "x"], ["left"], transA=1),
    ]
    model = model_of(nodes, {"x": x}, ["right", "left"], {"w": weight})
    stage = stage_of(weight, Format("int8"))
    changed = written(model, [stage], "onnx", "dynamic_int8")
    assert constant_bytes(changed) == stage.nbytes
    assert operators(changed)["MatMulInteger"] == 2


@pytest.mark.parametrize(("kind", "opset"), [("int4", 21), ("int8", 21), ("int2", 25)])
@pytest.mark.parametrize(("inputs", "group"), [(96, 32), (100, 32), (384, 128), (33, 32)])
@pytest.mark.skipif(RUNTIME < (1, 20), reason="DequantizeLinear has no groups in this ONNX Runtime")
def test_groups_are_left_to_dequantize_linear(kind, opset, inputs, group):
    if opset > newest_opset():
        pytest.skip(f"opset {opset} is not known here")
    weight, x = _normal(0, inputs, 40), _normal(1, 5, inputs)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    stage = stage_of(weight, Format(kind, group))
    changed = written(model, [stage], "onnx", "dynamic_int8")
    assert operators(changed) == {"DequantizeLinear": 1, "MatMul": 1}
    expect(changed, {"x": x}, x @ stage.weight.decode(), 2e-2)
    assert constant_bytes(changed) == stage.nbytes


def test_a_site_that_takes_the_matrix_transposed_is_left_to_dequantize_linear():
    weight, x = _normal(0, 64, 64), _normal(1, 64, 64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"], transB=1),
    ]
    stage = stage_of(weight, Format("int8"))
    model = model_of(nodes, {"x": x}, ["y"], {"w": weight})
    changed = written(model, [stage], "onnx", "dynamic_int8")
    assert operators(changed)["MatMulInteger"] == operators(changed)["DequantizeLinear"] == 1
    dense = stage.weight.decode()
    expect(changed, {"x": x}, x @ dense @ dense.T, 3e-2)


@pytest.mark.parametrize(
    ("shape", "x_shape", "format", "opset", "dtype", "reason"),
    [
        ((40, 8), (2, 40), Format("int8"), 10, "float32", "needs opset 11, the model has 10"),
        ((40, 8), (2, 40), Format("int8"), 17, "float64", "model computes in float64"),
        ((40, 8), (2, 40), Format("int8", 32), 17, "float32", "one for each 32 inputs"),
        ((40, 8), (2, 40), Format("int4", 32), 17, "float32", "kept as int4, not int8"),
        ((_MOST_INPUTS + 1, 1), (1, 1), Format("int8"), 12, "float32", "not fit into 32 bits"),
        ((8, 4, 3), (1, 4, 5), Format("int8"), 17, "float32", "ConvInteger takes several times"),
    ],
)
def test_refusals(shape, x_shape, format, opset, dtype, reason):
    weight = _normal(0, *shape, dtype=dtype)
    x_shape = (1, shape[0]) if shape[0] > _MOST_INPUTS else x_shape
    x, convolution = _normal(1, *x_shape, dtype=dtype), len(shape) == 3
    node = helper.make_node("Conv" if convolution else "MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight}, opset)
    stage = stage_of(weight, format, 1 if convolution else None)
    with pytest.raises(LoweringRefusedError, match=f"dynamic_int8: [^;]*{reason}"):
        written(model, [stage], "onnx", "dynamic_int8")


def test_the_most_inputs_are_those_whose_sum_fits():
    assert _MOST_INPUTS * 255 * 127 < 2**31 <= (_MOST_INPUTS + 1) * 255 * 127
