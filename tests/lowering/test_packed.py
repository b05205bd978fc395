"""Weights of 4 and 2 bits, and of 8 bits in groups, decoded by arithmetic and multiplied as floats.

Expected products are numpy's, of the numbers that the stage's codes stand for.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxlr.lowering import LoweringRefusedError
from onnxlr.lowering.decoding import pack
from onnxlr.numbers import Format
from tests.lowering.written import (
    constant_bytes,
    expect,
    operators,
    optimised,
    stage_of,
    written,
)
from tests.onelayer import model_of, newest_opset, run

OPSETS = st.sampled_from(sorted({7, 8, 9, 10, 11, 13, 17, 21, newest_opset()}))
FORMATS = st.builds(
    Format, st.sampled_from(["int2", "int4", "int8"]), st.sampled_from([None, 32, 64, 128])
)
seeds = st.integers(0, 2**16)


def _normal(seed, *shape, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


@settings(deadline=None, max_examples=60)
@given(
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 9),
    seed=seeds,
    opset=OPSETS,
    format=FORMATS,
    lead=st.lists(st.integers(1, 3), max_size=3),
    no_rows=st.booleans(),
    batch=st.lists(st.integers(1, 2), max_size=2),
    left=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_matrices(inputs, outputs, seed, opset, format, lead, no_rows, batch, left, dtype):
    if batch:  # data of rank 1 is no product of a stack's rows
        lead = [*batch, 2]
    if no_rows and len(lead) == 1:
        lead = [0]
    weight = _normal(seed, *batch, inputs, outputs, dtype=dtype)
    x = _normal(seed + 1, *lead, inputs, dtype=dtype)
    stage = stage_of(weight, format)
    dense = stage.weight.decode()
    expected = x.astype(np.float64) @ dense
    size = np.abs(x).astype(np.float64) @ np.abs(dense)
    operands = ["x", "w"]
    if left:
        operands = ["w", "x"]
        weight = np.ascontiguousarray(np.swapaxes(weight, -1, -2))
        if x.ndim > 1:
            x, expected = (np.ascontiguousarray(np.swapaxes(a, -1, -2)) for a in (x, expected))
    model = model_of(
        [helper.make_node("MatMul", operands, ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    changed = written(model, [stage])
    expect(changed, {"x": x}, expected, 1e-6, size)
    assert set(operators(optimised(changed))) <= {"MatMul", "Gemm"}


@settings(deadline=None, max_examples=60)
@given(
    operator=st.sampled_from(["Conv", "ConvTranspose"]),
    inputs=st.integers(2, 24),
    outputs=st.integers(2, 5),
    groups=st.integers(1, 3),
    extent=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=seeds,
    opset=OPSETS,
    format=FORMATS,
)
def test_kernels(operator, inputs, outputs, groups, extent, seed, opset, format):
    canonical = _normal(seed, outputs * groups, inputs, *extent)
    stage = stage_of(canonical, format, groups)

    def arranged(kernel):
        if operator == "Conv":
            return kernel
        blocks = kernel.reshape(groups, outputs, inputs, *extent).swapaxes(1, 2)
        return blocks.reshape(groups * inputs, outputs, *extent)

    x = _normal(seed + 1, 2, inputs * groups, *(size + 2 for size in extent))
    bias = _normal(seed + 2, outputs * groups)
    node = helper.make_node(operator, ["x", "w", "b"], ["y"], group=groups)
    exact = arranged(stage.weight.decode()).astype(np.float32)
    constants = {"w": arranged(canonical).copy(), "b": bias}
    model = model_of([node], {"x": x}, ["y"], constants, opset)
    dense = model_of([node], {"x": x}, ["y"], {"w": exact.copy(), "b": bias}, opset)
    changed = written(model, [stage])
    expected = run(dense, {"x": x})[0]
    expect(changed, {"x": x}, expected, 2e-5)
    decoding = {"Cast", "Floor", "Mul", "Sub", "Slice", "Reshape", "Transpose"}
    assert not decoding & set(operators(optimised(changed)))


@pytest.mark.parametrize("bias", [None, "row"])
@pytest.mark.parametrize("left", [False, True])
def test_gemm_keeps_alpha_beta_and_bias(left, bias):
    weight, stored = _normal(0, 70, 5), {}
    stage = stage_of(weight, Format("int4", 32))
    x = _normal(1, 70, 3) if left else _normal(1, 3, 70)
    stored["w"] = weight.T.copy() if left else weight
    names = ["w", "x"] if left else ["x", "w"]
    dense = stage.weight.decode()
    expected = 0.5 * (dense.T @ x if left else x @ dense)
    if bias:
        stored["c"] = _normal(2, 3 if left else 5)
        names.append("c")
        expected = expected - 2.0 * stored["c"]
    node = helper.make_node("Gemm", names, ["y"], alpha=0.5, beta=-2.0)
    changed = written(model_of([node], {"x": x}, ["y"], stored), [stage])
    expect(changed, {"x": x}, expected, 1e-6)
    assert operators(optimised(changed)) == {"Gemm": 1}


@pytest.mark.parametrize("kind", ["int2", "int4", "int8"])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("opset", [9, 13, 21])
def test_float16_models_are_folded_too(kind, group, opset):
    weight, x = _normal(0, 70, 6, dtype="float16"), _normal(1, 4, 70, dtype="float16")
    stage = stage_of(weight, Format(kind, group))
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    changed = written(model, [stage])
    expect(changed, {"x": x}, x.astype(np.float64) @ stage.weight.decode(), 2e-3)
    assert set(operators(optimised(changed))) <= {"MatMul", "Cast"}
    weights = [t for t in optimised(changed).graph.initializer if list(t.dims) == [70, 6]]
    assert len(weights) == 1


@pytest.mark.parametrize("kind", ["int2", "int4", "int8"])
def test_bfloat16_models(kind):
    weight = _normal(0, 70, 6).astype(ml_dtypes.bfloat16)
    x = _normal(1, 4, 70).astype(ml_dtypes.bfloat16)
    stage = stage_of(weight, Format(kind, 32))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    changed = written(model_of([node], {"x": x}, ["y"], {"w": weight}), [stage])
    found = ReferenceEvaluator(changed).run(None, {"x": x})[0].astype(np.float64)
    expected = x.astype(np.float64) @ stage.weight.decode()
    assert np.linalg.norm(found - expected) < 2e-2 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["int2", "int4"])
@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 33), (100, 7), (1, 1), (31, 5)])
def test_bytes_are_those_of_codes_scales_and_zero_points(kind, group, inputs, outputs):
    weight, x = _normal(0, inputs, outputs), _normal(1, 2, inputs)
    stage = stage_of(weight, Format(kind, group))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    changed = written(model_of([node], {"x": x}, ["y"], {"w": weight}), [stage])
    bits = int(kind[3:])
    groups = -(-inputs // group) if group else 1
    codes = -(-inputs * outputs * bits // 8)
    zero_points = -(-groups * outputs * bits // 8)
    repeated = 4 * group if groups > 1 else 0  # the ones that repeat scales and zero points
    each = 8 // bits
    steps = 4 * (each + 1)  # what takes a byte apart
    assert constant_bytes(changed) == codes + zero_points + 4 * groups * outputs + repeated + steps
    assert stage.nbytes == codes + zero_points + 4 * groups * outputs


def test_the_first_codes_are_in_the_lowest_bits():
    np.testing.assert_array_equal(pack(np.array([[1, 2, 15]], np.uint8), 4), [[0xF1, 0x02]])
    np.testing.assert_array_equal(pack(np.array([[3, 0, 1, 2, 1]], np.uint8), 2), [[0x17, 0x08]])


def test_two_sites_share_what_is_stored_and_unpacked():
    weight, x = _normal(0, 64, 64), _normal(1, 64, 64)
    stage = stage_of(weight, Format("int4", 32))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["right"]),
        helper.make_node("Gemm", ["x", "w"], ["transposed"], transB=1),
    ]
    changed = written(model_of(nodes, {"x": x}, ["right", "transposed"], {"w": weight}), [stage])
    tensors = [numpy_helper.to_array(t) for t in changed.graph.initializer]
    assert sum(t.nbytes for t in tensors if t.dtype == np.uint8) == 64 * 64 // 2 + 64 * 2 // 2
    assert operators(changed)["Transpose"] == 1
    assert operators(optimised(changed)) == {"MatMul": 1, "Gemm": 1}
    session = onnx.ModelProto()
    session.CopyFrom(changed)
    del session.graph.output[1]
    expect(session, {"x": x}, x @ stage.weight.decode(), 1e-6)
    session.graph.output[0].CopyFrom(changed.graph.output[1])
    expect(session, {"x": x}, x @ stage.weight.decode().T, 1e-6)


@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8"])
def test_other_data_is_refused(activations):
    weight, x = _normal(0, 8, 8), _normal(1, 2, 8)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    with pytest.raises(LoweringRefusedError, match=f"of 32 numbers with {activations} data"):
        written(model, [stage_of(weight, Format("int4", 32))], "onnx", activations)
