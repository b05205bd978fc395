"""Ternary kernels as TernaryConv nodes, with every attribute of a convolution, and decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as states

from onnxlr.lowering import LoweringRefusedError
from onnxlr.numbers import Encoded
from onnxlr.stages import Adjustment, Convolution, Scale
from tests.lowering.ternary import (
    by_functions,
    by_kernels,
    expect_all,
    factors,
    kernel,
    lowered,
    normal,
    own_nodes,
    row_rounded,
)
from tests.lowering.written import operators
from tests.onelayer import LEVELS, distance, ir_version_of, newest_opset, run

OPSETS = sorted({9, 11, 13, 17, 21, newest_opset()})
TARGETS = ("onnx", "ort", "onnxlr")


def _model(operator, weight, x, bias=None, opset=17, dims=None, **attributes: Any):
    """Return a model of one convolution whose result's shape is not stated."""
    constants = {"w": weight.astype(np.float32)} | ({} if bias is None else {"b": bias})
    given_attributes = {key: value for key, value in attributes.items() if value is not None}
    node = helper.make_node(operator, ["x", *constants], ["y"], name="conv", **given_attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, dims or x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * x.ndim)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version_of(opset))


def _scaled(d, x):
    return (x * d.reshape(-1, *[1] * (x.ndim - 2))).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn, axes: int) -> dict[str, Any]:
    """Draw the attributes of a window, and the kernel's extent."""

    def per_axis(values: st.SearchStrategy[int]) -> list[int]:
        return [draw(values) for _ in range(axes)]

    found: dict[str, Any] = {"extent": tuple(per_axis(st.integers(1, 4)))}
    padding = draw(st.sampled_from(["none", "pads", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if draw(st.booleans()):
        found["strides"] = per_axis(st.integers(1, 3))
    if draw(st.booleans()) and not padding.startswith("SAME"):  # ONNX Runtime has not got both
        found["dilations"] = per_axis(st.integers(1, 3))
    if padding in ("pads", "NOTSET"):
        found["pads"] = [*per_axis(st.integers(0, 2)), *per_axis(st.integers(0, 2))]
    if padding not in ("none", "pads"):
        found["auto_pad"] = padding
    return found


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_attribute(data):
    axes = data.draw(st.sampled_from([1, 2, 2]))
    window = data.draw(windows(axes))
    extent = window.pop("extent")
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = data.draw(st.integers(2, 5)), data.draw(st.integers(2, 5))
    seed, opset = data.draw(st.integers(0, 2**16)), data.draw(st.sampled_from(OPSETS))
    target = data.draw(st.sampled_from(TARGETS))
    stage, dense = kernel(
        seed, (outputs * groups, inputs, *extent), groups, data.draw(st.integers(1, 3))
    )
    x = normal(seed, 2, inputs * groups, *(data.draw(st.integers(6, 12)) for _ in range(axes)))
    bias = normal(seed, outputs * groups) if data.draw(st.booleans()) else None
    stages: list[Any] = [stage]
    scaled = x
    if data.draw(st.booleans()):
        d = factors(seed, inputs * groups)
        stages, scaled = [Scale(d, axes, groups), stage], _scaled(d, x)
    window["group"] = groups if groups > 1 else None
    exact = _model("Conv", dense, x, bias, opset, **window)
    try:
        expected = [run(exact, {"x": scaled}, level)[0] for level in LEVELS]
    except (states.Fail, states.InvalidArgument, states.NotImplemented):
        assume(False)
    assume(distance(*expected) < 1e-5)
    model = _model("Conv", normal(1, *dense.shape), x, bias, opset, **window)
    changed = lowered(model, stages, target)
    if target == "onnxlr":
        assert operators(changed) == {"TernaryConv": 1}
    expect_all(changed, {"x": x}, expected[0].astype(np.float64), 2e-5)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_factors_of_a_kernel(data):
    """Two stages of which each has some axes of the window; ranks above the kernel's sizes."""
    axes = data.draw(st.sampled_from([1, 2]))
    window = data.draw(windows(axes))
    extent = window.pop("extent")
    seed, opset = data.draw(st.integers(0, 2**16)), data.draw(st.sampled_from(OPSETS))
    target = data.draw(st.sampled_from(TARGETS))
    inputs, outputs, rank = (data.draw(st.integers(1, most)) for most in (5, 5, 40))
    mine = data.draw(st.sets(st.integers(0, axes - 1)))
    own = [size if axis in mine else 1 for axis, size in enumerate(extent)]
    rest = [1 if axis in mine else size for axis, size in enumerate(extent)]
    behind = tuple(axis for axis in range(axes) if axis not in mine)
    first, left = kernel(seed, (rank, inputs, *own), window=tuple(sorted(mine)))
    second, right = kernel(seed + 1, (outputs, rank, *rest), window=behind)
    d = factors(seed, inputs)
    spatial = "ab"[:axes]
    dense = np.einsum(
        f"or{spatial},ri{spatial}->oi{spatial}",
        np.broadcast_to(right, (outputs, rank, *extent)),
        np.broadcast_to(left, (rank, inputs, *extent)),
    )
    x = normal(seed, 2, inputs, *(data.draw(st.integers(6, 12)) for _ in range(axes)))
    bias = normal(seed, outputs)
    exact = _model("Conv", dense, x, bias, opset, **window)
    scaled = _scaled(d, x)
    try:
        expected = [run(exact, {"x": scaled}, level)[0] for level in LEVELS]
    except (states.Fail, states.InvalidArgument, states.NotImplemented):
        assume(False)
    assume(distance(*expected) < 1e-5)
    model = _model("Conv", normal(1, *dense.shape), x, bias, opset, **window)
    changed = lowered(model, [Scale(d, axes), first, second], target)
    if target == "onnxlr":
        assert operators(changed) == {"TernaryConv": 2}
        assert len(changed.graph.value_info) == 1
    expect_all(changed, {"x": x}, expected[0].astype(np.float64), 1e-4)


def _patches(x, extent, stride):
    """Return patches `(batch, *out, channels, *kernel)`."""
    axes = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=axes)
    view = view[(slice(None), slice(None), *[slice(None, None, stride)] * len(axes))]
    return np.moveaxis(view, 1, 1 + len(axes))


@pytest.mark.parametrize("extent", [(3,), (3, 2), (1, 1)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_rounded_as_the_document_says(extent, groups, scaled, stride):
    stage, dense = kernel(1, (4 * groups, 6, *extent), groups, 2)
    x, bias = normal(1, 2, 6 * groups, *[9] * len(extent)), normal(2, 4 * groups)
    stages, data = [stage], x
    if scaled:
        d = factors(3, 6 * groups)
        stages, data = [Scale(d, len(extent), groups), stage], _scaled(d, x)
    parts = []
    for part, weights in zip(
        np.split(data, groups, axis=1), np.split(dense, groups, axis=0), strict=True
    ):
        patches = _patches(part, extent, stride)
        rows = row_rounded(patches.reshape(*patches.shape[: -1 - len(extent)], -1))
        parts.append(np.moveaxis(rows @ weights.reshape(4, -1).T, -1, 1))
    expected = np.concatenate(parts, axis=1) + bias.reshape(-1, *[1] * len(extent))
    model = _model("Conv", dense, x, bias, group=groups, strides=[stride] * len(extent))
    changed = lowered(model, stages, "onnxlr", "dynamic_int8")
    assert operators(changed) == {"TernaryConv": 1}
    expect_all(changed, {"x": x}, expected, 1e-5)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize(
    ("shape", "groups", "taken"),
    [
        ((5, 100, 1, 1), 1, True),  # one position: the orders are the same
        ((5, 100, 1), 1, True),
        ((6, 1, 7, 7), 1, True),  # one channel
        ((5, 3, 3, 3), 1, True),  # one group holds all inputs
        ((5, 20, 3, 3), 1, False),
        ((6, 20, 5), 2, False),
    ],
)
def test_groups_of_inputs(terms, group, shape, groups, taken):
    """The operator orders inputs by position, then channel; groups must be the same either way."""
    stage, dense = kernel(2, shape, groups, terms, group)
    x = normal(1, 2, shape[1] * groups, *[8] * (len(shape) - 2))
    taken = taken or np.prod(shape[1:]) <= group
    model = _model("Conv", normal(0, *shape), x, group=groups)
    changed = lowered(model, [stage], "onnxlr")
    assert len(own_nodes(changed)) == taken
    (expected,) = run(_model("Conv", dense, x, group=groups), {"x": x})
    expect_all(changed, {"x": x}, expected.astype(np.float64), 2e-5)
    if not taken:
        with pytest.raises(LoweringRefusedError, match=r"run along the kernel.*float data$"):
            lowered(model, [stage], "onnxlr", "dynamic_int8")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("terms", [1, 2])
def test_transposed_convolutions_are_decoded(target, groups, group, terms):
    stage, dense = kernel(2, (4 * groups, 6, 3, 3), groups, terms, group)
    d = factors(0, 6 * groups)
    x = normal(1, 2, 6 * groups, 5, 5)
    blocks = dense.reshape(groups, 4, 6, 3, 3).swapaxes(1, 2)
    stored = blocks.reshape(groups * 6, 4, 3, 3).copy()
    attributes = {"group": groups, "strides": [2, 2], "output_padding": [0, 1]}
    (expected,) = run(
        _model("ConvTranspose", stored, x, normal(3, 4 * groups), **attributes),
        {"x": _scaled(d, x)},
    )
    model = _model(
        "ConvTranspose", normal(0, *stored.shape), x, normal(3, 4 * groups), **attributes
    )
    changed = lowered(model, [Scale(d, 2, groups), stage], target)
    assert not own_nodes(changed)
    expect_all(changed, {"x": x}, expected.astype(np.float64), 2e-5)
    with pytest.raises(LoweringRefusedError, match=r"with float data$"):
        lowered(model, [stage], target, "dynamic_int8")


def test_a_transposed_convolution_whose_second_factor_spreads():
    first, left = kernel(0, (7, 6, 1, 1), window=())
    second, right = kernel(1, (4, 7, 3, 3))
    d, x = factors(0, 6), normal(1, 1, 6, 5, 5)
    dense = np.einsum("orab,ri->oiab", right, left[:, :, 0, 0])
    stored = dense.swapaxes(0, 1).copy()
    (expected,) = run(_model("ConvTranspose", stored, x), {"x": _scaled(d, x)})
    model = _model("ConvTranspose", normal(0, *stored.shape), x)
    changed = lowered(model, [Scale(d, 2), first, second])
    found = operators(changed)
    assert found["TernaryConv"] == found["ConvTranspose"] == 1
    assert "Mul" not in {node.op_type for node in changed.graph.node[:1]}
    expect_all(changed, {"x": x}, expected.astype(np.float64), 2e-5)


def test_three_spatial_axes_are_decoded():
    stage, dense = kernel(2, (4, 3, 2, 2, 2), 1, 2)
    x = normal(1, 1, 3, 4, 4, 4)
    changed = lowered(_model("Conv", normal(0, *dense.shape), x), [stage])
    assert not own_nodes(changed)
    (expected,) = run(_model("Conv", dense, x), {"x": x})
    expect_all(changed, {"x": x}, expected.astype(np.float64), 2e-5)
    with pytest.raises(LoweringRefusedError, match="one or two spatial axes, the kernel 3"):
        lowered(_model("Conv", dense, x), [stage], "onnxlr", "dynamic_int8")


@pytest.mark.parametrize(
    ("dims", "strides", "taken"),
    [
        ([1, 3, 9, 8], [2, 2], True),
        (["n", 3, "h", "w"], [1, 1], True),  # as large as the data, whatever that is
        (["n", 3, "h", "w"], [2, 2], False),
        (["n", 3, 9, "w"], [2, 1], True),
    ],
)
@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER"])
def test_pads_that_follow_from_the_size(dims, strides, taken, automatic):
    stage, dense = kernel(2, (4, 3, 3, 4))
    x = normal(1, 1, 3, 9, 8)
    attributes = {"auto_pad": automatic, "strides": strides, "dims": dims}
    changed = lowered(_model("Conv", normal(0, *dense.shape), x, **attributes), [stage])
    assert len(own_nodes(changed)) == taken
    (expected,) = run(_model("Conv", dense, x, **attributes), {"x": x})
    expect_all(changed, {"x": x}, expected.astype(np.float64), 2e-5)


def test_a_bias_that_is_computed_is_added_behind():
    stage, dense = kernel(2, (4, 3, 3, 3))
    x, bias = normal(1, 1, 3, 6, 6), normal(2, 4)
    model = _model("Conv", normal(0, *dense.shape), x, bias)
    node = model.graph.node[0]
    model.graph.node.insert(0, helper.make_node("Abs", ["b"], ["positive"]))
    node = model.graph.node[1]
    node.input[2] = "positive"
    changed = lowered(model, [stage])
    assert operators(changed) == {"Abs": 1, "TernaryConv": 1, "Reshape": 1, "Add": 1}
    (expected,) = run(_model("Conv", dense, x, np.abs(bias)), {"x": x})
    expect_all(changed, {"x": x}, expected.astype(np.float64), 2e-5)


def test_a_bias_correction_is_the_operators_bias():
    stage, dense = kernel(2, (4, 3, 3, 3))
    x, bias = normal(1, 1, 3, 6, 6), normal(2, 4)
    model = _model("Conv", normal(0, *dense.shape), x, bias)
    changed = lowered(model, [stage], adjustments=[Adjustment(np.arange(4.0))])
    assert operators(changed) == {"TernaryConv": 1}
    assert {t.name for t in changed.graph.initializer}.isdisjoint({"w", "b"})
    total = bias + np.arange(4, dtype=np.float32)
    (expected,) = run(_model("Conv", dense, x, total), {"x": x})
    expect_all(changed, {"x": x}, expected.astype(np.float64), 2e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_a_scale_alone_and_at_the_end(target):
    d, x, bias = factors(0, 4), normal(1, 2, 4, 5, 5), normal(2, 4)
    model = _model("Conv", normal(0, 4, 4, 1, 1), x, bias)
    added = bias.reshape(-1, 1, 1)
    alone = lowered(model, [Scale(d, 2)], target)
    expect_all(alone, {"x": x}, _scaled(d, x).astype(np.float64) + added, 1e-6)
    stage, dense = kernel(0, (4, 4, 1, 1))
    (product,) = run(_model("Conv", dense, x), {"x": x})
    changed = lowered(model, [stage, Scale(d, 2)], target)
    expect_all(changed, {"x": x}, _scaled(d, product).astype(np.float64) + added, 1e-5)


def test_static_int8_takes_one_term_only():
    x = normal(1, 1, 3, 6, 6)
    ranges = ((float(x.min()), float(x.max())), (-30.0, 30.0))
    for terms in (1, 2):
        stage, dense = kernel(2, (4, 3, 3, 3), 1, terms)
        model = _model("Conv", normal(0, *dense.shape), x)
        adjustment = Adjustment(None, ranges)
        if terms > 1:
            with pytest.raises(LoweringRefusedError, match="single terms are not known"):
                lowered(model, [stage], "onnx", "static_int8", [adjustment])
            continue
        changed = lowered(model, [stage], "onnx", "static_int8", [adjustment])
        (expected,) = run(_model("Conv", dense, x), {"x": x})
        assert distance(by_functions(changed, {"x": x}), expected.astype(np.float64)) < 0.05


def test_a_kernel_of_other_codes_is_no_ternary_one():
    """A weight of scales without bound is refused by the operator, not written."""
    stage, dense = kernel(0, (4, 3, 1, 1))
    scales = np.full((4, 1, 1), np.inf, np.float32)
    broken = Convolution(Encoded.of_trits(stage.weight.trits, scales, None, True), 1, (0, 1))
    model = _model("Conv", dense, normal(1, 1, 3, 2, 2))
    with pytest.raises(LoweringRefusedError, match="its scales are not finite"):
        lowered(model, [broken], "onnxlr", "dynamic_int8")


def test_kernels_run_a_whole_chain():
    first, left = kernel(0, (9, 3, 3, 1), window=(0,))
    second, right = kernel(1, (5, 9, 1, 3), window=(1,))
    dense = np.einsum("orb,ria->oiab", right[:, :, 0], left[:, :, :, 0])
    x = normal(1, 1, 3, 7, 7)
    changed = lowered(_model("Conv", normal(0, 5, 3, 3, 3), x, pads=[1, 1, 1, 1]), [first, second])
    (expected,) = run(_model("Conv", dense, x, pads=[1, 1, 1, 1]), {"x": x})
    assert distance(by_kernels(changed, {"x": x}), expected.astype(np.float64)) < 1e-5
