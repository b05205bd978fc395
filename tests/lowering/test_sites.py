"""Every way in which a node can use its weight: the rewritten model computes the truncated weight.

Expected outputs come from numpy's decomposition and numpy's products, never from onnxlr.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.onelayer import LEVELS, distance, model_of, rewritten, run, svd, truncated

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**16)
opsets = st.sampled_from([7, 9, 11, 13, 17, 21])


def _normal(seed: int, *shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _expect(model, inputs, expected, rank, limit=1e-4):
    changed, reference = rewritten(model, svd(rank))
    assert [n.op_type for n in changed.graph.node] != [n.op_type for n in model.graph.node]
    for level in LEVELS:
        assert distance(run(changed, inputs, level)[0], expected) < limit
        assert distance(run(reference, inputs, level)[0], expected) < limit


@settings(deadline=None, max_examples=60)
@given(
    inputs=sizes,
    outputs=sizes,
    rank=sizes,
    seed=seeds,
    opset=opsets,
    lead=st.lists(st.integers(1, 3), max_size=3),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_matmul_with_the_weight_on_the_right(inputs, outputs, rank, seed, opset, lead, dtype):
    weight = _normal(seed, inputs, outputs, dtype=dtype)
    x = _normal(seed + 1, *lead, inputs, dtype=dtype)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    _expect(model, {"x": x}, x @ truncated(weight, rank), rank)


@settings(deadline=None, max_examples=60)
@given(
    inputs=sizes,
    outputs=sizes,
    rank=sizes,
    seed=seeds,
    opset=opsets,
    tail=st.one_of(st.none(), st.lists(st.integers(1, 3), max_size=2)),
    columns=sizes,
)
def test_matmul_with_the_weight_on_the_left(inputs, outputs, rank, seed, opset, tail, columns):
    weight = _normal(seed, outputs, inputs)
    shape = (inputs,) if tail is None else (*tail, inputs, columns)
    x = _normal(seed + 1, *shape)
    model = model_of(
        [helper.make_node("MatMul", ["w", "x"], ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    _expect(model, {"x": x}, truncated(weight, rank) @ x, rank)


@settings(deadline=None, max_examples=60)
@given(
    inputs=sizes,
    outputs=sizes,
    rows=sizes,
    rank=sizes,
    seed=seeds,
    left=st.booleans(),
    batch=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    lead=st.sampled_from(["none", "same", "more", "ones"]),
)
def test_matmul_with_a_stack_of_matrices(inputs, outputs, rows, rank, seed, left, batch, lead):
    weight = _normal(seed, *batch, *((outputs, inputs) if left else (inputs, outputs)))
    before = {"none": (), "same": batch, "more": (2, *batch), "ones": [1] * len(batch)}[lead]
    x = _normal(seed + 1, *before, *((inputs, rows) if left else (rows, inputs)))
    operands = ["w", "x"] if left else ["x", "w"]
    model = model_of([helper.make_node("MatMul", operands, ["y"])], {"x": x}, ["y"], {"w": weight})
    dense = truncated(weight, rank)
    _expect(model, {"x": x}, dense @ x if left else x @ dense, rank)


@settings(deadline=None, max_examples=100)
@given(
    inputs=sizes,
    outputs=sizes,
    rows=sizes,
    rank=sizes,
    seed=seeds,
    opset=opsets,
    left=st.booleans(),
    trans_a=st.booleans(),
    trans_b=st.booleans(),
    alpha=st.sampled_from([None, 1.0, 0.5, -2.0]),
    beta=st.sampled_from([None, 1.0, 0.25, 0.0]),
    bias=st.sampled_from(["none", "scalar", "row", "column", "full", "computed"]),
)
def test_gemm(inputs, outputs, rows, rank, seed, opset, left, trans_a, trans_b, alpha, beta, bias):
    a_shape, b_shape = (
        ((outputs, inputs), (inputs, rows)) if left else ((rows, inputs), (inputs, outputs))
    )
    a, b = _normal(seed, *a_shape), _normal(seed + 1, *b_shape)
    m, n = a_shape[0], b_shape[1]
    c_shape = {"none": (), "scalar": (), "row": (n,), "column": (m, 1)}.get(bias, (m, n))
    if bias == "none" and opset < 11:
        bias = "row"
        c_shape = (n,)
    c = _normal(seed + 2, *c_shape)
    stored_a, stored_b = (a.T if trans_a else a), (b.T if trans_b else b)
    constants = {"a": stored_a.copy()} if left else {"b": stored_b.copy()}
    feeds = {"b": stored_b.copy()} if left else {"a": stored_a.copy()}
    if bias == "computed":
        feeds["c"] = c
    elif bias != "none":
        constants["c"] = c
    attributes = {"transA": int(trans_a), "transB": int(trans_b)}
    attributes |= {k: v for k, v in (("alpha", alpha), ("beta", beta)) if v is not None}
    names = ["a", "b"] if bias == "none" else ["a", "b", "c"]
    node = helper.make_node("Gemm", names, ["y"], **attributes)
    model = model_of([node], feeds, ["y"], constants, opset)
    product = truncated(a, rank) @ b if left else a @ truncated(b, rank)
    expected = (1.0 if alpha is None else alpha) * product
    if bias != "none":
        expected = expected + (1.0 if beta is None else beta) * c
    _expect(model, feeds, expected, rank)


@settings(deadline=None, max_examples=80)
@given(
    channels=sizes,
    outputs=sizes,
    rank=sizes,
    seed=seeds,
    opset=opsets,
    bias=st.booleans(),
    spatial=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    padding=st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    stride=st.integers(1, 3),
    dilation=st.sampled_from([None, 1, 2]),
    batch=st.integers(1, 3),
)
def test_conv_of_kernel_one(
    channels, outputs, rank, seed, opset, bias, spatial, padding, stride, dilation, batch
):
    axes = len(spatial)
    kernel = _normal(seed, outputs, channels, *(1,) * axes)
    x = _normal(seed + 1, batch, channels, *spatial)
    attributes: dict = {"strides": [stride] * axes}
    pads = [0] * (2 * axes)
    if padding == "pads":
        pads = [(seed + i) % 3 for i in range(2 * axes)]
        attributes["pads"] = pads
    elif padding != "none":
        attributes["auto_pad"] = padding
    if dilation is not None and not padding.startswith("SAME"):  # ORT runs no such Conv
        attributes["dilations"] = [dilation] * axes
    constants = {"w": kernel}
    if bias:
        constants["b"] = _normal(seed + 2, outputs)
    node = helper.make_node("Conv", ["x", *constants], ["y"], **attributes)
    model = model_of([node], {"x": x}, ["y"], constants, opset)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)])
    picked = padded[(slice(None), slice(None), *(slice(None, None, stride),) * axes)]

    def convolve(dense):
        result = np.einsum("oi,bi...->bo...", dense, picked)
        return result + constants["b"].reshape(1, -1, *(1,) * axes) if bias else result

    matrix = kernel.reshape(outputs, channels)
    # Old versions of ONNX Runtime place SAME windows with strides otherwise than the standard says.
    assume(distance(run(model, {"x": x})[0], convolve(matrix)) < 1e-4)
    _expect(model, {"x": x}, convolve(truncated(matrix, rank)), rank)


@pytest.mark.parametrize("first", ["right", "left", "gemm", "gemm_transposed"])
def test_one_weight_at_many_sites_is_stored_once(first):
    weight = _normal(0, 8, 8)
    x = _normal(1, 8, 8)
    forms = {
        "right": (helper.make_node("MatMul", ["x", "w"], ["y_right"]), lambda d: x @ d),
        "left": (helper.make_node("MatMul", ["w", "x"], ["y_left"]), lambda d: d @ x),
        "gemm": (helper.make_node("Gemm", ["x", "w"], ["y_gemm"]), lambda d: x @ d),
        "gemm_transposed": (
            helper.make_node("Gemm", ["x", "w"], ["y_gemm_transposed"], transB=1),
            lambda d: x @ d.T,
        ),
    }
    order = [first, *(name for name in forms if name != first)]
    model = model_of(
        [forms[name][0] for name in order], {"x": x}, [f"y_{n}" for n in order], {"w": weight}
    )
    changed, reference = rewritten(model, svd(3))
    dense = truncated(weight, 3)
    assert sorted(len(t.dims) for t in changed.graph.initializer) == [2, 2]
    assert sum(np.prod(t.dims) for t in changed.graph.initializer) == 2 * 8 * 3
    for level in LEVELS:
        for name, found in zip(order, run(changed, {"x": x}, level), strict=True):
            assert distance(found, forms[name][1](dense)) < 1e-5, name
        for name, found in zip(order, run(reference, {"x": x}, level), strict=True):
            assert distance(found, forms[name][1](dense)) < 1e-5, name


def test_float16_models_keep_their_type():
    weight, x = _normal(0, 24, 16, dtype="float16"), _normal(1, 5, 24, dtype="float16")
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    changed, _ = rewritten(model, svd(6))
    assert {t.data_type for t in changed.graph.initializer} == {10}
    for level in LEVELS:
        assert distance(run(changed, {"x": x}, level)[0], x @ truncated(weight, 6)) < 5e-3


def test_a_stack_on_data_of_rank_one_is_left_alone():
    weight, x = _normal(0, 3, 8, 8), _normal(1, 8)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    changed, _ = rewritten(model, svd(2))
    assert [n.op_type for n in changed.graph.node] == ["MatMul"]
