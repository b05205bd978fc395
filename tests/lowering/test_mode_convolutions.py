"""Products along modes of channels: convolutions of a part of the channels at a time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as states

from onnxlr.errors import UsageError
from onnxlr.lowering import LoweringRefusedError
from onnxlr.stages import Adjustment, Chain, Fold, ModeProduct, Sum
from tests.lowering import ternary
from tests.lowering.modes import (
    OPSETS,
    along_channels,
    channel_chains,
    convolution,
    expect_dims,
    expect_output,
    in_order,
    kinds,
    larger,
    normal,
    one_model,
    permutation,
    symbolic,
    unranked,
)
from tests.lowering.test_convolutions import PADS_OUTPUTS
from tests.lowering.written import operators, written
from tests.onelayer import LEVELS, Array, distance, model_of, run


def test_a_convolution_on_data_of_unknown_rank():
    x, kernel = normal(0, 2, 12, 6, 5), normal(1, 2, 3, 3, 1)
    dense = along_channels(2, kernel, 2)
    turned = in_order(permutation((3, 4), (1, 0)).T.reshape(12, 12, 1, 1), dense)
    node = helper.make_node("Conv", ["h", "w"], ["y"], strides=[2, 1])
    model = unranked(node, {"w": turned.astype(np.float32)}, 4)
    mode = ModeProduct(convolution(kernel, (0, 1)), 2, 2)
    changed = written(model, [Fold((3, 4), (1, 0), 2), mode])
    feeds = {"x": x.reshape(-1), "s": np.array(x.shape)}
    expect_output(changed, feeds, run(model, feeds)[0].astype(np.float64))


def test_a_convolution_of_integers_knows_its_range_without_the_bias():
    x, kernel = normal(0, 2, 12, 6, 5), normal(1, 2, 3, 3, 1)
    dense = along_channels(2, kernel, 2)
    bias = normal(2, 8) * 30 + 100
    node = helper.make_node("Conv", ["x", "w", "c"], ["y"], pads=[1, 0, 1, 0])
    model = one_model(node, ("x", x.shape), {"w": dense.astype(np.float32), "c": bias}, 17)
    result = run(model, {"x": x})[0].astype(np.float64)
    bounds = tuple((float(v.min()), float(v.max())) for v in (x, result))
    mode = ModeProduct(convolution(kernel, (0, 1), format="int8"), 2, 2)
    options = {"activations": "static_int8", "adjustments": [Adjustment(None, bounds)]}
    changed = written(model, [mode], **options)
    spread = float(bias.max() - bias.min()) + bounds[1][1] - bounds[1][0]
    for level in LEVELS:
        assert np.abs(run(changed, {"x": x}, level)[0] - result).max() < 0.01 * spread
    model.graph.initializer.remove(next(t for t in model.graph.initializer if t.name == "c"))
    model.graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [8]))
    with pytest.raises(LoweringRefusedError, match="ranges of its data are not known"):
        written(model, [mode], **options)


@pytest.mark.parametrize("target", ["onnx", "onnxlr"])
@pytest.mark.parametrize("behind", [1, 3])
def test_ternary_kernels(behind, target):
    stage, numbers = ternary.kernel(0, (4, 6, 3, 1))
    dense = along_channels(2, numbers, behind).astype(np.float32)
    x, bias = normal(1, 2, 12 * behind, 6, 5), normal(2, 8 * behind)
    node = helper.make_node("Conv", ["x", "w", "c"], ["y"], strides=[1, 2], pads=[1, 0, 1, 0])
    model = one_model(node, ("x", ("N", 12 * behind, "H", "W")), {"w": dense, "c": bias}, 17)
    changed = ternary.lowered(model, [ModeProduct(stage, 2, behind)], target)
    assert len(ternary.own_nodes(changed)) == (target == "onnxlr")
    ternary.expect_all(changed, {"x": x}, run(model, {"x": x})[0].astype(np.float64), 1e-5)


def test_float64_convolutions_are_written_in_their_type():
    kernel = normal(0, 2, 3, 1, dtype="float64")
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    weight = along_channels(1, kernel, 2)
    model = one_model(node, ("x", (2, 6, 5)), {"w": weight}, 17)
    changed = written(model, [ModeProduct(convolution(kernel, (0,)), 1, 2)])
    x = normal(1, 2, 6, 5, dtype="float64")
    found = onnx.reference.ReferenceEvaluator(changed).run(None, {"x": x})[0]
    expected = np.einsum("oi,nis->nos", weight[..., 0], x)
    assert distance(found, expected) < 1e-12


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, Any, Array, list[Any]]:
    """Return a model with a dense kernel, the chain that it is, data, and its dimensions."""
    axes = draw(st.sampled_from([2, 1, 3, 2]))

    def per_axis(values: Any) -> list[int]:
        return [draw(values) for _ in range(axes)]

    operator = draw(st.sampled_from(["Conv", "Conv", "ConvTranspose"]))
    extent = per_axis(st.sampled_from([1, 3, 1, 2]))
    steps = draw(channel_chains(extent))
    padding = draw(st.sampled_from(["none", "pads", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    attributes: dict[str, Any] = {"strides": per_axis(st.sampled_from([1, 1, 2, 3]))}
    if draw(st.booleans()):
        attributes["kernel_shape"] = extent
    if not padding.startswith("SAME"):
        attributes["dilations"] = per_axis(st.integers(1, 2))
    if padding == "pads":
        attributes["pads"] = [*per_axis(st.integers(0, 2)), *per_axis(st.integers(0, 2))]
    elif padding != "none":
        attributes["auto_pad"] = padding
    if operator == "ConvTranspose" and PADS_OUTPUTS and draw(st.booleans()):
        attributes["output_padding"] = [
            draw(st.integers(0, stride - 1)) for stride in attributes["strides"]
        ]
    kernel = steps.dense.astype(np.float32)
    constants = {"w": kernel if operator == "Conv" else kernel.swapaxes(0, 1).copy()}
    if draw(st.booleans()):
        constants["b"] = normal(1, len(kernel))
    sizes = per_axis(st.integers(5, 7) if axes < 3 else st.integers(5, 6))
    x = normal(0, draw(st.integers(1, 2)), kernel.shape[1], *sizes)
    dims = symbolic(x.shape, 1, draw(st.lists(st.booleans(), min_size=5, max_size=5)))
    node = helper.make_node(operator, ["x", *constants], ["y"], **attributes)
    return one_model(node, ("x", dims), constants, draw(OPSETS)), steps.stages, x, dims


def outputs_of(model: onnx.ModelProto, x: Array) -> Array | None:
    """Return the output of the original, None if versions of ONNX do not agree what it is."""
    try:
        first, second = (run(model, {"x": x}, level)[0] for level in LEVELS)
    except (states.Fail, states.InvalidArgument, states.NotImplemented):
        return None
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0]
    for dim, size in zip(inferred.type.tensor_type.shape.dim, first.shape, strict=True):
        if dim.HasField("dim_value") and dim.dim_value != size:
            return None
    return first.astype(np.float64) if distance(first, second.astype(np.float64)) < 1e-5 else None


def test_convolution():
    tally: Counter[str] = Counter()

    @settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
    @given(case=convolutions())
    def check(case: Any) -> None:
        model, stages, x, dims = case
        tally["tried"] += 1
        changed = written(model, stages)
        for data in (x, normal(2, *larger(dims, x))):
            expected = outputs_of(model, data)
            assume(expected is not None)
            expect_dims(changed, {"x": data})
            expect_output(changed, {"x": data}, expected)
        tally["survived"] += 1

    check()
    assert tally["survived"] > 0.5 * tally["tried"], tally


@pytest.mark.parametrize("behind", [1, 3])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_one_kernel_at_two_sites(operator, behind):
    kernel, x = normal(0, 2, 3, 3, 1), normal(1, 2, 6 * behind, 6, 5)
    dense = along_channels(2, kernel, behind)
    if operator == "ConvTranspose":
        dense = dense.swapaxes(0, 1)
    forms = {"a": {"strides": [2, 1], "pads": [1, 0, 1, 0]}, "b": {"dilations": [2, 1]}}
    nodes = [helper.make_node(operator, ["x", "w"], [n], n, **f) for n, f in forms.items()]
    model = model_of(nodes, {"x": x}, ["a", "b"], {"w": dense.astype(np.float32)}, 13)
    changed = written(model, [ModeProduct(convolution(kernel, (0, 1)), 2, behind)])
    floats = [t for t in changed.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert len(floats) == 1
    for found, wanted in zip(run(changed, {"x": x}), run(model, {"x": x}), strict=True):
        assert distance(found, wanted.astype(np.float64)) < 1e-5


def test_a_stated_output_shape():
    """Only a step that moves along all axes can have it."""
    kernel, x = normal(0, 2, 3, 3, 2), normal(1, 2, 12, 4, 4)
    dense = along_channels(2, kernel, 2).swapaxes(0, 1).astype(np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[9, 8])
    model = one_model(node, ("x", ("N", 12, "H", "W")), {"w": dense}, 13)
    changed = written(model, [ModeProduct(convolution(kernel, (0, 1)), 2, 2)])
    expect_output(changed, {"x": x}, run(model, {"x": x})[0].astype(np.float64))
    halves = [
        ModeProduct(convolution(normal(2, 3, 3, 3, 1), (0,)), 2, 2),
        ModeProduct(convolution(normal(3, 2, 3, 1, 2), (1,)), 2, 2),
    ]
    with pytest.raises(UsageError, match="states its output_shape"):
        written(model, halves)


ALONG_ONE = {
    "cut": {"output_shape": [3, 8]},
    "padded": {"output_padding": [1, 0], "dilations": [2, 1]},
}


@pytest.mark.parametrize("name", ALONG_ONE)
def test_an_output_that_is_stated_along_an_axis_of_one(name):
    """A kernel of 1 and a stride of 1 do not mean that nothing becomes of the axis."""
    kernel, x = normal(0, 2, 3, 1, 2), normal(1, 2, 6, 4, 4)
    dense = along_channels(1, kernel, 2).swapaxes(0, 1).astype(np.float32)
    attributes = {"strides": [1, 2], **ALONG_ONE[name]}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    model = one_model(node, ("x", ("N", 6, "H", "W")), {"w": dense}, 13)
    changed = written(model, [ModeProduct(convolution(kernel, (0, 1)), 1, 2)])
    assert operators(changed)["Transpose"] == 2  # what is behind the mode is not put into the axis
    if name == "cut":  # ONNX Runtime pads no output at a stride of 1
        expect_output(changed, {"x": x}, run(model, {"x": x})[0].astype(np.float64))


def test_branches_of_a_sum_move_the_window():
    """One branch moves along both axes in one step, the other in two."""
    x, whole = normal(0, 2, 12, 7, 6), normal(1, 2, 3, 3, 2)
    rows, columns = normal(2, 2, 3, 1, 2), normal(3, 2, 2, 3, 1)
    single = Chain((ModeProduct(convolution(whole, (0, 1)), 2, 2),))
    steps = [(rows, (1,)), (columns, (0,))]
    double = Chain(tuple(ModeProduct(convolution(k, window), 2, 2) for k, window in steps))
    product = in_order(along_channels(2, rows, 2), along_channels(2, columns, 2))
    point, bias = normal(4, 5, 8, 1, 1), normal(5, 5)
    dense = in_order(along_channels(2, whole, 2) + product, point).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 1], pads=[1, 0, 1, 1])
    model = one_model(node, ("x", ("N", 12, "H", "W")), {"w": dense, "b": bias}, 13)
    changed = written(model, [Sum((single, double)), convolution(point, ())])
    expect_dims(changed, {"x": x})
    expect_output(changed, {"x": x}, run(model, {"x": x})[0].astype(np.float64))


def channels_of(*stages: Any, dims: Any = ("N", 24, "H", "W"), extent: Any) -> list[str]:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[e // 2 for e in extent] * 2)
    outputs = stages[-1].shape[1]
    model = one_model(node, ("x", dims), {"w": normal(0, outputs, 24, *extent)}, 17)
    return kinds(written(model, stages))


def kernel(inputs: int, outputs: int, *extent: int) -> Any:
    return convolution(normal(0, outputs, inputs, *extent), (0, 1))


def test_nodes_of_channels():
    """No data is moved, unless the window is in the way."""
    once = ["Reshape", "Conv", "Reshape"]
    assert channels_of(ModeProduct(kernel(12, 5, 1, 1), 1, 2), extent=(1, 1)) == once
    assert channels_of(ModeProduct(kernel(12, 5, 1, 3), 1, 2), extent=(1, 3)) == once
    assert channels_of(ModeProduct(kernel(6, 5, 3, 1), 4), extent=(3, 1)) == once
    both = ModeProduct(kernel(6, 5, 1, 3), 2, 2)
    assert channels_of(both, dims=(2, 24, 7, 6), extent=(1, 3)) == once
    # a Reshape finds one size by itself: the batch, then the height
    twice = ["Reshape", "Reshape", "Conv", "Reshape", "Reshape"]
    assert channels_of(both, extent=(1, 3)) == twice
    moved = ModeProduct(kernel(12, 5, 3, 3), 1, 2)
    there = ["Reshape", "Transpose", "Reshape"]
    found = channels_of(moved, dims=("N", 24, "H", 6), extent=(3, 3))
    assert Counter(found)["Transpose"] == 2
    assert channels_of(moved, dims=(2, 24, 7, 6), extent=(3, 3)) == [*there, "Conv", *there]


def test_products_along_one_mode_stay_apart():
    """Two steps along the same mode are two convolutions between the same Reshapes."""
    first = ModeProduct(convolution(normal(0, 5, 6, 3, 1), (0,)), 4)
    second = ModeProduct(convolution(normal(0, 7, 5, 1, 3), (1,)), 4)
    found = channels_of(first, second, extent=(3, 3))
    assert found == ["Reshape", "Conv", "Conv", "Reshape"]
