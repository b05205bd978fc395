"""int8 weights and data rounded in known ranges, against the standard's definition in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxlr.lowering import LoweringRefusedError
from onnxlr.numbers import Format
from onnxlr.stages import Adjustment
from tests.lowering.written import (
    expect,
    integers_are_exact,
    is_clear,
    operators,
    optimised,
    simulated,
    stage_of,
    written,
)
from tests.onelayer import LEVELS, model_of, newest_opset, run

exact = pytest.mark.skipif(
    not integers_are_exact(), reason="ONNX Runtime adds pairs of products in 16 bits here"
)


def _normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def _grid(low, high):
    """Return scale and zero point of the 256 steps of a range that has 0."""
    scale = np.float32((max(high, 0.0) - min(low, 0.0)) / 255)
    return scale, int(np.clip(np.rint(-min(low, 0.0) / scale), 0, 255))


def _range(x):
    return float(x.min()), float(x.max())


def _int8(weight, axes):
    """Round to 255 levels, one scale for each output, straight from the definition."""
    peaks = np.abs(weight.astype(np.float64)).max(axis=axes, keepdims=True)
    scale = np.maximum(np.float32(peaks / 127), np.finfo(np.float32).tiny)
    return np.clip(np.rint(weight / scale.astype(np.float64)), -127, 127) * scale


def _convolved(x, kernel, groups, **window):
    """Return ONNX Runtime's convolution in float32, which has few ways to go wrong."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups, **window)
    feeds = {"x": x.astype(np.float32)}
    model = model_of([node], feeds, ["y"], {"w": kernel.astype(np.float32)})
    return run(model, feeds, LEVELS[0])[0].astype(np.float64)


def _along_channels(bias, rank):
    return bias.reshape(1, -1, *[1] * (rank - 2))


def _expect_steps(model, x, expected, scale, zero_point):
    """Check that results are steps of their range, each the nearest or as good as that."""
    highest, lowest = (255 - zero_point) * scale, -zero_point * scale
    for level in LEVELS:
        found = run(model, {"x": x}, level)[0].astype(np.float64)
        assert found.shape == expected.shape
        steps = found / scale
        assert np.abs(steps - np.rint(steps)).max(initial=0) < 1e-3
        assert np.abs(found - np.clip(expected, lowest, highest)).max(initial=0) < 0.51 * scale


@exact
@settings(deadline=None, max_examples=80)
@given(
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 20),
    lead=st.lists(st.integers(1, 4), max_size=3),
    batch=st.lists(st.integers(1, 3), max_size=2),
    left=st.booleans(),
    opset=st.sampled_from(sorted({10, 11, 13, 17, 21, newest_opset()})),
    narrow=st.sampled_from([1.0, 0.5]),
    sign=st.sampled_from(["both", "positive", "negative"]),
    seed=st.integers(0, 2**16),
)
def test_products(inputs, outputs, lead, batch, left, opset, narrow, sign, seed):
    if batch:
        lead = [*batch, 3]
    weight, x = _normal(seed, *batch, inputs, outputs), _normal(seed + 1, *lead, inputs)
    x = {"both": x, "positive": np.abs(x), "negative": -np.abs(x)}[sign]
    low, high = (narrow * edge for edge in _range(x))
    scale, zero_point = _grid(low, high)
    assume(is_clear(x, scale))
    expected = simulated(x, scale, zero_point) @ _int8(weight, -2)
    stage = stage_of(weight, Format("int8"))
    names = ["x", "w"]
    if left:
        names, weight = ["w", "x"], np.swapaxes(weight, -1, -2).copy()
        if lead:
            x, expected = (np.swapaxes(a, -1, -2).copy() for a in (x, expected))
    node = helper.make_node("MatMul", names, ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight}, opset)
    ranges = Adjustment(ranges=((low, high), (-1.0, 1.0)))
    changed = written(model, [stage], "onnx", "static_int8", [ranges])
    expect(changed, {"x": x}, expected, 1e-5)
    turned = {"Transpose": 2} if left and lead else {}
    assert operators(changed) == {
        "QuantizeLinear": 1,
        "MatMulInteger": 1,
        "Cast": 1,
        "Mul": 1,
        **turned,
    }
    assert operators(optimised(changed))["MatMulInteger"] == 1


@exact
@pytest.mark.parametrize("left", [False, True])
def test_gemm(left):
    weight, x = _normal(0, 70, 5), _normal(3, 70, 3) if left else _normal(3, 3, 70)
    scale, zero_point = _grid(*_range(x))
    rounded, dense = simulated(x, scale, zero_point), _int8(weight, -2)
    bias = _normal(2, 3 if left else 5)
    expected = 0.5 * (dense.T @ rounded if left else rounded @ dense) - 2.0 * bias
    constants = {"w": weight.T.copy() if left else weight, "c": bias}
    names = ["w", "x", "c"] if left else ["x", "w", "c"]
    node = helper.make_node("Gemm", names, ["y"], alpha=0.5, beta=-2.0)
    model = model_of([node], {"x": x}, ["y"], constants)
    ranges = Adjustment(ranges=(_range(x), _range(expected)))
    stage = stage_of(weight, Format("int8"))
    changed = written(model, [stage], "ort", "static_int8", [ranges])
    expect(changed, {"x": x}, expected, 1e-5)


@exact
@settings(deadline=None, max_examples=60)
@given(
    inputs=st.integers(2, 9),
    outputs=st.integers(2, 9),
    groups=st.integers(1, 3),
    extent=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    stride=st.integers(1, 2),
    pad=st.integers(0, 1),
    bias=st.booleans(),
    opset=st.sampled_from(sorted({10, 11, 12, 13, 17, 21, newest_opset()})),
    narrow=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 2**16),
)
def test_convolutions(inputs, outputs, groups, extent, stride, pad, bias, opset, narrow, seed):
    axes = len(extent)
    kernel = _normal(seed, outputs * groups, inputs, *extent)
    x = _normal(seed + 1, 2, inputs * groups, *(size + 3 for size in extent))
    window = {"strides": [stride] * axes, "pads": [pad] * 2 * axes}
    scale, zero_point = _grid(*_range(x))
    assume(is_clear(x, scale))
    constants = {"w": kernel}
    dense = _int8(kernel, tuple(range(1, kernel.ndim)))
    expected = _convolved(simulated(x, scale, zero_point), dense, groups, **window)
    if bias:
        constants["b"] = _normal(seed + 2, outputs * groups)
        expected = expected + _along_channels(constants["b"], x.ndim)
    low, high = (narrow * edge for edge in _range(expected))
    node = helper.make_node("Conv", ["x", *constants], ["y"], group=groups, **window)
    model = model_of([node], {"x": x}, ["y"], constants, opset)
    ranges = Adjustment(ranges=(_range(x), (low, high)))
    stage = stage_of(kernel, Format("int8"), groups)
    changed = written(model, [stage], "onnx", "static_int8", [ranges])
    _expect_steps(changed, x, expected, *_grid(low, high))
    found = operators(optimised(changed))
    assert found["QLinearConv"] == 1
    assert set(found) <= {"QLinearConv", "QuantizeLinear", "DequantizeLinear", "Transpose"}


@exact
@pytest.mark.parametrize("opset", [10, 12, 17])
def test_a_bias_beside_weights_of_next_to_nothing(opset):
    """As batch normalisation leaves them: the bias does not fit into 32 bits of the sums' units."""
    kernel, x = _normal(0, 4, 3, 3, 3), _normal(1, 1, 3, 8, 8)
    kernel[1] *= 1e-12
    kernel[2] = 0
    kernel[3] *= 1e-38
    bias = np.array([0.1, 0.7, -0.9, 0.5], np.float32)
    expected = _convolved(x, kernel, 1) + _along_channels(bias, 4)
    model = model_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        {"x": x},
        ["y"],
        {"w": kernel, "b": bias},
        opset,
    )
    ranges = Adjustment(ranges=(_range(x), _range(expected)))
    stage = stage_of(kernel, Format("int8"), 1)
    changed = written(model, [stage], "onnx", "static_int8", [ranges])
    step, _ = _grid(*_range(expected))
    for level in LEVELS:
        found = run(changed, {"x": x}, level)[0]
        assert np.abs(found - expected)[:, 1:].max() < 0.51 * step
    assert "QLinearConv" in operators(optimised(changed))


@exact
def test_a_bias_that_is_computed():
    kernel, x, bias = _normal(0, 4, 3, 3), _normal(1, 1, 3, 8), _normal(2, 4)
    nodes = [
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Conv", ["x", "w", "c"], ["y"]),
    ]
    model = model_of(nodes, {"x": x, "b": bias}, ["y"], {"w": kernel})
    expected = _convolved(x, kernel, 1) - _along_channels(bias, 3)
    low, high = _range(expected)
    stage = stage_of(kernel, Format("int8"), 1)
    ranges = Adjustment(ranges=(_range(x), (low, high)))
    changed = written(model, [stage], "onnx", "static_int8", [ranges])
    for level in LEVELS:
        found = run(changed, {"x": x, "b": bias}, level)[0]
        assert np.abs(found - expected).max() < 0.05 * (high - low)


@exact
@pytest.mark.parametrize("opset", [11, 17])
def test_what_lies_between_stages_stays_in_integers(opset):
    first, second = _normal(0, 4, 6, 1, 1), _normal(1, 8, 4, 1, 1)
    x = _normal(2, 1, 6, 5, 5)
    kernel = np.einsum("or,ri->oi", second[..., 0, 0], first[..., 0, 0])[..., None, None]
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": kernel.copy()}, opset
    )
    between = _convolved(x, first, 1)
    expected = _convolved(between, second, 1)
    stages = [stage_of(first, Format("int8"), 1), stage_of(second, Format("int8"), 1)]
    ranges = Adjustment(ranges=(_range(x), _range(between), _range(expected)))
    changed = written(model, stages, "onnx", "static_int8", [ranges])
    found = operators(optimised(changed))
    assert (found["QLinearConv"], found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 1, 1)
    for level in LEVELS:
        assert np.abs(run(changed, {"x": x}, level)[0] - expected).max() < 0.03 * np.ptp(expected)


def test_data_that_was_always_zero():
    weight, x = _normal(0, 8, 4), np.zeros((2, 8), np.float32)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}
    )
    ranges = Adjustment(ranges=((0.0, 0.0), (0.0, 0.0)))
    stage = stage_of(weight, Format("int8"))
    changed = written(model, [stage], "onnx", "static_int8", [ranges])
    expect(changed, {"x": x}, np.zeros((2, 4)), 0)


@pytest.mark.parametrize(
    ("operator", "format", "opset", "ranges", "reason"),
    [
        ("MatMul", Format("int8"), 17, None, "ranges of its data are not known"),
        ("MatMul", Format("int8"), 17, (0.0, float("nan")), "ranges of its data are not known"),
        ("MatMul", Format("int8"), 9, (0.0, 1.0), "needs opset 10, the model has 9"),
        ("MatMul", Format("int8", 32), 17, (0.0, 1.0), "one for each 32 inputs"),
        ("MatMul", Format("int4", 32), 17, (0.0, 1.0), "kept as int4, not int8"),
        ("Conv", Format("int8"), 9, (0.0, 1.0), "needs opset 10, the model has 9"),
        ("Conv", Format("int8", 32), 17, (0.0, 1.0), "one for each 32 inputs"),
        ("ConvTranspose", Format("int8"), 17, (0.0, 1.0), "no transposed convolution of integers"),
    ],
)
def test_refusals(operator, format, opset, ranges, reason):
    weight, x = _normal(0, 40, 40), _normal(1, 2, 40)
    if operator != "MatMul":
        weight, x = weight[..., None], x[..., None]
    model = model_of(
        [helper.make_node(operator, ["x", "w"], ["y"])], {"x": x}, ["y"], {"w": weight}, opset
    )
    stage = stage_of(weight, format, None if operator == "MatMul" else 1)
    adjustments = [Adjustment(ranges=(ranges, (0.0, 1.0)))] if ranges else []
    with pytest.raises(LoweringRefusedError, match=f"static_int8: [^;]*{reason}"):
        written(model, [stage], "onnx", "static_int8", adjustments)


def test_a_computed_bias_that_no_operator_takes():
    kernel, x, bias = _normal(0, 4, 3, 3), _normal(1, 1, 3, 8), _normal(2, 4)
    nodes = [
        helper.make_node("Neg", ["b"], ["c"]),
        helper.make_node("Conv", ["x", "w", "c"], ["y"]),
    ]
    model = model_of(nodes, {"x": x, "b": bias}, ["y"], {"w": kernel}, 12)
    stage = stage_of(kernel, Format("int8"), 1)
    ranges = Adjustment(ranges=((-3.0, 3.0), (-3.0, 3.0)))
    with pytest.raises(LoweringRefusedError, match="computed needs opset 13, the model has 12"):
        written(model, [stage], "onnx", "static_int8", [ranges])


def test_the_bias_of_the_file_is_left_as_it_is():
    kernel, x, bias = _normal(0, 4, 3, 3), _normal(1, 1, 3, 8), _normal(2, 4)
    model = model_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        {"x": x},
        ["y"],
        {"w": kernel, "b": bias},
    )
    ranges = Adjustment(ranges=((-3.0, 3.0), (-3.0, 3.0)))
    stage = stage_of(kernel, Format("int8"), 1)
    changed = written(model, [stage], "onnx", "static_int8", [ranges])
    kinds = {t.data_type for t in changed.graph.initializer if t.name == "b"}
    assert kinds == {TensorProto.FLOAT}
