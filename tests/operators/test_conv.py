"""TernaryConv in ONNX Runtime, on every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.operators.ternary_nodes import Array, TernaryNode, close, conv_node, open_session

CASES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"channels": 3, "outputs": 20, "kernel": (3, 3), "pads": (1, 1, 1, 1)}, (2, 3, 9, 8)),
    ({"channels": 8, "outputs": 5, "kernel": (1, 1)}, (3, 8, 7, 6)),
    ({"channels": 8, "outputs": 6, "kernel": (1, 1), "group": 2, "terms": 2}, (2, 8, 5, 5)),
    ({"channels": 8, "outputs": 5, "kernel": (1, 1), "strides": (2, 2)}, (1, 8, 7, 6)),
    ({"channels": 4, "outputs": 5, "kernel": (1, 1), "pads": (1, 0, 0, 2)}, (1, 4, 3, 3)),
    ({"channels": 6, "outputs": 9, "kernel": (3, 2), "group": 3, "terms": 3}, (2, 6, 8, 7)),
    ({"channels": 7, "outputs": 7, "kernel": (3, 3), "group": 7, "pads": (1,) * 4}, (1, 7, 6, 6)),
    ({"channels": 40, "outputs": 33, "kernel": (3, 3), "group_size": 128}, (1, 40, 6, 5)),
    (
        {"channels": 5, "outputs": 18, "kernel": (2, 3), "strides": (2, 3), "dilations": (3, 2),
         "pads": (4, 0, 2, 5)},
        (2, 5, 11, 9),
    ),
    ({"channels": 4, "outputs": 3, "kernel": (5, 5), "pads": (7, 7, 7, 7)}, (1, 4, 2, 1)),
    ({"channels": 6, "outputs": 10, "kernel": (4,), "pads": (2, 1), "strides": (2,)}, (3, 6, 15)),
    ({"channels": 6, "outputs": 10, "kernel": (1,)}, (40, 6, 3)),
    ({"channels": 6, "outputs": 4, "kernel": (3,), "dilations": (4,), "group": 2}, (2, 6, 20)),
]  # fmt: skip


def data(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def dense_conv(node: TernaryNode, x: Array) -> Array:
    """Return what ONNX Runtime's own Conv makes of the decoded kernel."""
    a, c = node.attributes, node.constants
    terms, outputs, channels, *kernel = node.ternary.shape
    matrices = node.ternary.reshape(terms, outputs, channels, -1).transpose(0, 3, 2, 1)
    matrices = matrices.reshape(terms, -1, outputs).astype(np.float64)
    scales = np.repeat(c["scales"], a["group_size"], axis=1)[:, : matrices.shape[1]]
    weight = (scales * matrices).sum(0).reshape(-1, channels, outputs).transpose(2, 1, 0)
    weight = weight.reshape(outputs, channels, *kernel)
    conv = helper.make_node("Conv", ["S", "W", "B"], ["Y"], kernel_shape=kernel, **node.window)
    scaled = x * c["input_scale"].reshape(-1, *[1] * len(kernel))
    graph = helper.make_graph(
        [conv],
        "graph",
        [helper.make_tensor_value_info("S", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(weight.astype(np.float32), "W"),
            numpy_helper.from_array(c["bias"], "B"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"S": scaled})[0])


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("case", "shape"), CASES)
def test_convolutions(
    isa: str, case: dict[str, Any], shape: tuple[int, ...], scaled: bool, level: int
) -> None:
    node = conv_node(**case, level=level, scaled=scaled)
    close(node.run(data(shape)), node.expected(data(shape)))


@pytest.mark.parametrize(("case", "shape"), CASES)
def test_floats_agree_with_a_dense_convolution(
    case: dict[str, Any], shape: tuple[int, ...]
) -> None:
    node = conv_node(**case, level=0)
    close(node.run(data(shape)), dense_conv(node, data(shape)).astype(np.float64))


@settings(max_examples=40, deadline=None)
@given(draw=st.data())
def test_any_window(draw: st.DataObject) -> None:
    axes = draw.draw(st.integers(1, 2))
    group = draw.draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = axes) -> tuple[int, ...]:
        return tuple(draw.draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    kernel, dilations, pads = each(1, 4), each(1, 3), each(0, 3, 2 * axes)
    least = [
        max(1, d * (k - 1) + 1 - pads[i] - pads[i + axes])
        for i, (k, d) in enumerate(zip(kernel, dilations, strict=True))
    ]
    space = tuple(low + extra for low, extra in zip(least, each(0, 8), strict=True))
    node = conv_node(
        group * draw.draw(st.integers(1, 9)),
        group * draw.draw(st.integers(1, 20)),
        kernel,
        strides=each(1, 4),
        pads=pads,
        dilations=dilations,
        group=group,
        level=draw.draw(st.sampled_from([0, 4])),
        terms=draw.draw(st.integers(1, 2)),
    )
    x = data((draw.draw(st.integers(0, 3)), node.attributes["channels"], *space))
    if len(x):
        close(node.run(x), node.expected(x))
    else:
        assert node.run(x).shape[0] == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_convolutions_that_are_divided(kernel: tuple[int, int], threads: int) -> None:
    pads = (kernel[0] // 2,) * 4
    node = conv_node(64, 96, kernel, pads=pads, group=2)
    x = data((2, 64, 30, 31))
    close(node.run(x, threads), node.expected(x))


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_few_windows_with_many_columns(kernel: tuple[int, int], level: int) -> None:
    """They are divided by columns, the last part of which is no whole panel."""
    node = conv_node(256, 510, kernel, pads=(kernel[0] // 2,) * 4, level=level, group=2)
    x = data((1, 256, 7, 7))
    one = node.run(x)
    close(one, node.expected(x))
    np.testing.assert_array_equal(node.run(x, threads=3), one)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [3, 40])
def test_what_is_not_finite_stays_in_its_windows(isa: str, channels: int, bad: float) -> None:
    """Of few inputs and of many."""
    node = conv_node(channels * 2, 8, (3, 3), pads=(1,) * 4, strides=(1, 2), group=2)
    x = data((2, channels * 2, 6, 9))
    clean = node.run(x)
    x[1, channels + 1, 2, 4] = bad
    found = node.run(x)
    broken = np.zeros(found.shape, bool)
    broken[1, 4:, 1:4, 2] = True  # column 4 is in windows 2 (columns 3 to 5) only
    assert np.isnan(found[broken]).all()
    np.testing.assert_array_equal(found[~broken], clean[~broken])


def test_padding_and_what_is_not_finite() -> None:
    node = conv_node(3, 4, (3,), pads=(1, 1))
    x = data((1, 3, 8))
    clean = node.run(x)
    x[0, 1, 4] = np.nan
    found = node.run(x)
    assert np.isnan(found[..., 3:6]).all()
    np.testing.assert_array_equal(np.delete(found, [3, 4, 5], 2), np.delete(clean, [3, 4, 5], 2))


def test_shapes_are_inferred_with_their_names() -> None:
    node = conv_node(3, 4, (3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    session = open_session(node.model(["batch", 3, 9, None]))
    shape = session.get_outputs()[0].shape
    assert shape[:3] == ["batch", 4, 5]
    assert not isinstance(shape[3], int)
    assert session.run(None, {"X": data((2, 3, 9, 7))})[0].shape == (2, 4, 5, 4)
