"""Khatri-Rao products in models: every side of a product, and what the file holds."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import onnxlr
from onnxlr.methods.cp import CpOptions
from onnxlr.plan import Choice
from tests.onelayer import LEVELS, distance, model_of, rewritten, run


def _normal(seed, *shape, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _approximated(weight, rank, modes=None):
    """Return the weight that the method stands for, out of its factors by hand."""
    chain = onnxlr.decompose(weight, "cp", rank=rank, modes=modes)
    halves = []
    for stage in chain.stages:
        whole = np.ones((1, chain.ranks[0]))
        for factor in stage.factors:
            values = factor.codes.astype(np.float64)
            whole = np.einsum("ir,jr->ijr", whole, values).reshape(-1, whole.shape[1])
        halves.append(whole)
    return halves[0] @ halves[1].T


def _expect(model, inputs, expected, choice, limit=1e-4):
    changed, reference = rewritten(model, choice)
    for level in LEVELS:
        assert distance(run(changed, inputs, level)[0], expected) < limit
        assert distance(run(reference, inputs, level)[0], expected) < limit
    return changed


@settings(deadline=None, max_examples=25)
@given(
    inputs=st.sampled_from([3, 4, 6, 8]),
    outputs=st.sampled_from([1, 4, 9, 10]),
    rank=st.integers(1, 6),
    side=st.sampled_from(["right", "left", "gemm", "gemm transposed", "data transposed"]),
    opset=st.sampled_from([7, 9, 11, 13, 17, 21]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_every_side_of_a_product(inputs, outputs, rank, side, opset, dtype, seed):
    is_gemm = side not in ("right", "left")
    assume(not (is_gemm and dtype == "float64"))  # not every version has that kernel
    weight = _normal(seed, inputs, outputs, dtype=dtype)
    approximated = _approximated(weight, rank)
    x = _normal(seed + 1, 5, inputs, dtype=dtype)
    bias = _normal(seed + 2, outputs, dtype=dtype)
    stored, data, constants, attributes = weight, x, {}, {}
    operator, operands = "MatMul", ["x", "w"]
    expected = x @ approximated
    if side == "left":
        stored, data, expected = weight.T, x.T, expected.T
        operands = ["w", "x"]
    elif is_gemm:
        operator, operands, constants = "Gemm", ["x", "w", "b"], {"b": bias}
        attributes = {"alpha": 0.5, "beta": 2.0}
        expected = 0.5 * expected + 2 * bias.astype(np.float64)
        if side == "gemm transposed":
            stored, attributes = weight.T, {**attributes, "transB": 1}
        if side == "data transposed":
            data, attributes = x.T, {**attributes, "transA": 1}
    held = {"w": np.ascontiguousarray(stored), **constants}
    data = np.ascontiguousarray(data)
    node = helper.make_node(operator, operands, ["y"], **attributes)
    model = model_of([node], {"x": data}, ["y"], held, opset)
    _expect(model, {"x": data}, expected, Choice("cp", CpOptions(rank=rank)))


def test_the_file_holds_the_factors_and_the_runtime_folds_them(tmp_path):
    weight = _normal(3, 24, 36)
    x = _normal(4, 5, 24)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    choice = Choice("cp", CpOptions(rank=7, modes="4x6,6x6"))
    changed = _expect(model, {"x": x}, x @ _approximated(weight, 7, "4x6,6x6"), choice)
    held = [numpy_helper.to_array(tensor) for tensor in changed.graph.initializer]
    numbers = [array for array in held if array.dtype == np.float32]
    assert sorted(array.size for array in numbers) == sorted(7 * n for n in (4, 6, 6, 6))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ort.InferenceSession(changed.SerializeToString(), options, ["CPUExecutionProvider"])
    folded = onnx.load(tmp_path / "folded.onnx")
    assert [n.op_type for n in folded.graph.node] == ["MatMul", "MatMul"]


def test_two_sites_share_the_factors():
    weight = _normal(5, 12, 12)
    x = _normal(6, 12, 12)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["w", "a"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"w": weight})
    approximated = _approximated(weight, 5)
    expected = approximated @ (x @ approximated)
    changed = _expect(model, {"x": x}, expected, Choice("cp", CpOptions(rank=5)))
    numbers = [
        array
        for array in map(numpy_helper.to_array, changed.graph.initializer)
        if array.dtype == np.float32
    ]
    assert sum(array.size for array in numbers) == 5 * (4 + 3 + 4 + 3)


@pytest.mark.parametrize("kept", ["float16", "float64"])
def test_factors_of_another_float_type_are_cast(kept):
    weight = _normal(7, 16, 9)
    x = _normal(8, 4, 16)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    choice = Choice("cp", CpOptions(rank=6), format=kept)
    changed, _ = rewritten(model, choice)
    types = {t.data_type for t in changed.graph.initializer}
    assert getattr(onnx.TensorProto, "FLOAT16" if kept == "float16" else "DOUBLE") in types
    expected = x @ _approximated(weight, 6)
    limit = 5e-3 if kept == "float16" else 1e-5
    for level in LEVELS:
        assert distance(run(changed, {"x": x}, level)[0], expected) < limit


def test_data_in_int8_is_refused():
    weight = _normal(9, 16, 9)
    x = _normal(10, 4, 16)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    choice = Choice("cp", CpOptions(rank=6), activations="dynamic_int8")
    with pytest.raises(onnxlr.UsageError, match=r"cannot write .* numbers with dynamic_int8 data"):
        rewritten(model, choice)


@pytest.mark.parametrize("form", ["joint", "separable"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(form, groups):
    kernel = _normal(11, 6, 4, 3, 5)
    x = _normal(12, 2, 4 * groups, 9, 11)
    bias = _normal(13, 6)
    attributes = {
        "group": groups,
        "strides": [2, 1],
        "pads": [1, 2, 0, 2],
        "dilations": [1, 2],
        "kernel_shape": [3, 5],
    }
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    model = model_of([node], {"x": x}, ["y"], {"w": kernel, "b": bias})
    dense = onnxlr.decompose(kernel, "cp", rank=9, form=form, groups=groups).reconstruct()
    exact = model_of([node], {"x": x}, ["y"], {"w": dense.astype(np.float32), "b": bias})
    expected = run(exact, {"x": x}, LEVELS[0])[0]
    _expect(model, {"x": x}, expected, Choice("cp", CpOptions(rank=9, form=form)))
