"""Folds at every kind of site, against numpy's permutation matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxlr.lowering import LoweringRefusedError
from onnxlr.stages import Adjustment, Chain, Fold, Scale, Sum
from tests.lowering.modes import (
    convolution,
    expect_dims,
    expect_output,
    kinds,
    linear,
    normal,
    one_model,
    permutation,
)
from tests.lowering.written import written
from tests.onelayer import model_of, newest_opset, run

OPSETS = st.sampled_from(sorted({7, 9, 10, 11, 13, 17, 21, newest_opset()}))


@st.composite
def folds(draw: st.DrawFn, axes: int | None = None) -> tuple[Fold, Any]:
    """Return a step, and its permutation matrix."""
    dims = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    order = tuple(draw(st.permutations(range(len(dims)))))
    return Fold(dims, order, axes), permutation(dims, order)


@settings(deadline=None, max_examples=60)
@given(
    case=folds(),
    lead=st.lists(st.integers(1, 3), max_size=3),
    columns=st.one_of(st.none(), st.integers(1, 3)),
    known=st.booleans(),
    opset=OPSETS,
)
def test_alone(case, lead, columns, known, opset):
    """Data of any rank, with the features on its last axis but one as well."""
    fold, matrix = case
    count = len(matrix)
    left = columns is not None
    shape = (*lead, count, columns) if left else (*lead, count)
    dims = (
        shape
        if known
        else [f"D{axis}" if size != count else size for axis, size in enumerate(shape)]
    )
    x = normal(0, *shape)
    node = helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"])
    model = one_model(node, ("x", dims), {"w": normal(1, count, count)}, opset, len(shape))
    changed = written(model, [fold])
    expect_dims(changed, {"x": x})
    exact = x.astype(np.float64)
    expect_output(changed, {"x": x}, matrix.T @ exact if left else exact @ matrix, 0)


@settings(deadline=None, max_examples=60)
@given(
    case=st.integers(1, 3).flatmap(folds),
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    batch=st.integers(1, 3),
    known=st.lists(st.booleans(), min_size=4, max_size=4),
    opset=OPSETS,
)
def test_channels(case, sizes, batch, known, opset):
    """However many sizes of the data are known only as the model runs."""
    fold, matrix = case
    axes, count = fold.axes, len(matrix)
    x = normal(0, batch, count, *sizes[:axes])
    dims = [
        size if k else name for size, k, name in zip((batch, *sizes), known, "NDHW", strict=True)
    ]
    dims = [dims[0], count, *dims[1:][:axes]]
    kernel = normal(1, count, count, *[1] * axes)
    bias = normal(2, count)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    model = one_model(node, ("x", dims), {"w": kernel, "b": bias}, opset, len(dims))
    changed = written(model, [fold])
    expect_dims(changed, {"x": x})
    expected = np.einsum("nc...,co->no...", x, matrix) + bias.reshape(-1, *[1] * axes)
    expect_output(changed, {"x": x}, expected, 1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("with_bias", [True, False])
def test_at_the_end_of_a_gemm(with_bias, alpha):
    """Alpha, beta and the bias come behind it."""
    x, matrix, bias = normal(0, 5, 4), normal(1, 4, 6), normal(2, 6)
    constants = {"w": normal(3, 4, 6)} | ({"c": bias} if with_bias else {})
    node = helper.make_node("Gemm", ["x", *constants], ["y"], alpha=alpha, beta=2.0)
    model = model_of([node], {"x": x}, ["y"], constants)
    changed = written(model, [linear(matrix), Fold((2, 3), (1, 0))])
    expected = alpha * x.astype(np.float64) @ matrix @ permutation((2, 3), (1, 0))
    expect_output(changed, {"x": x}, expected + (2.0 * bias if with_bias else 0))
    behind = ["Mul"] * (alpha != 1) + ["Mul", "Add"] * with_bias
    assert kinds(changed) == ["MatMul", "Reshape", "Transpose", "Reshape", *behind]


def test_a_site_that_uses_the_transpose_undoes_it():
    x, matrix, fold = normal(0, 5, 6), normal(1, 6, 4), Fold((3, 2), (1, 0))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"], transB=1, alpha=0.5),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"w": normal(2, 6, 4)}, 13)
    changed = written(model, [fold, linear(matrix)])
    dense = permutation((3, 2), (1, 0)) @ matrix
    expect_dims(changed, {"x": x}, ["h"])
    expect_output(changed, {"x": x}, 0.5 * x.astype(np.float64) @ dense @ dense.T)


def test_neighbours_share_their_reshapes():
    """Two orders of the same axes are one Transpose, and an order undone is none at all."""
    x = normal(0, 5, 24)
    model = one_model(
        helper.make_node("MatMul", ["x", "w"], ["y"]), ("x", x.shape), {"w": normal(1, 24, 24)}, 17
    )
    turn = Fold((2, 3, 4), (2, 0, 1))
    once = ["Reshape", "Transpose", "Reshape"]
    assert kinds(written(model, [turn])) == once
    twice = written(model, [Fold((6, 4), (1, 0)), Fold((4, 6), (1, 0))])
    assert kinds(twice) == ["Reshape", "Reshape"]
    expect_output(twice, {"x": x}, x.astype(np.float64), 0)
    three = [Fold((2, 3, 4), (2, 1, 0)), Fold((4, 3, 2), (0, 2, 1))]
    changed = written(model, three)
    assert kinds(changed) == once
    moved = x.reshape(5, 2, 3, 4).transpose(0, 3, 1, 2).reshape(5, 24)
    expect_output(changed, {"x": x}, moved.astype(np.float64), 0)


@pytest.mark.parametrize(("dims", "order"), [((24,), (0,)), ((1, 24), (1, 0)), ((4, 6), (0, 1))])
def test_an_order_that_moves_nothing(dims, order):
    x, matrix, bias = normal(0, 5, 7), normal(1, 7, 24), normal(2, 24)
    fold = Fold(dims, order)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    alone = written(one_model(node, ("x", (5, 24)), {"w": normal(3, 24, 24)}, 17), [fold])
    assert kinds(alone) == ["Identity"]
    expect_output(alone, {"x": normal(4, 5, 24)}, normal(4, 5, 24).astype(np.float64), 0)
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"])
    constants = {"w": normal(3, 7, 24), "c": bias}
    changed = written(one_model(node, ("x", x.shape), constants, 17), [linear(matrix), fold])
    assert kinds(changed) == ["MatMul", "Add"]
    expect_output(changed, {"x": x}, x.astype(np.float64) @ matrix + bias)


def test_between_factors_and_sums():
    """Scales and sums see the whole data."""
    x, d = normal(0, 5, 6), np.linspace(1, 2, 6).astype(np.float32)
    one, two = normal(1, 6, 6), normal(2, 6, 6)
    turn, matrix = Fold((2, 3), (1, 0)), permutation((2, 3), (1, 0))
    total = Sum((Chain((linear(one),)), Chain((turn, linear(two), turn))))
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], alpha=0.5)
    bias = normal(3, 6)
    model = one_model(node, ("x", ("N", 6)), {"w": normal(4, 6, 6), "c": bias}, 9, 2)
    changed = written(model, [Scale(d), turn, Scale(d), total])
    dense = np.diag(d) @ matrix @ np.diag(d) @ (one + matrix @ two @ matrix)
    expect_dims(changed, {"x": x})
    expect_output(changed, {"x": x}, 0.5 * x.astype(np.float64) @ dense + bias)


def test_channels_behind_a_window():
    """What is known of the data behind a convolution that has moved its window."""
    x, kernel = normal(0, 2, 4, 9, 8), normal(1, 6, 4, 3, 2)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 1], pads=[1, 0, 0, 1])
    model = one_model(node, ("x", ("N", 4, "H", "W")), {"w": kernel}, 13, 4)
    turn = Fold((3, 2), (1, 0), 2)
    changed = written(model, [convolution(kernel, (0, 1)), turn])
    expect_dims(changed, {"x": x})
    sources = np.arange(6).reshape(3, 2).T.reshape(-1)
    plain = one_model(node, ("x", x.shape), {"w": kernel[sources]}, 13, 4)
    expect_output(changed, {"x": x}, run(plain, {"x": x})[0].astype(np.float64))


def test_a_correction_comes_behind_it():
    x, matrix, extra = normal(0, 5, 4), normal(1, 4, 6), normal(2, 6).astype(np.float64)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": normal(3, 4, 6)})
    fold = Fold((2, 3), (1, 0))
    changed = written(model, [linear(matrix), fold], adjustments=[Adjustment(extra)])
    dense = matrix.astype(np.float64) @ permutation((2, 3), (1, 0))
    expect_output(changed, {"x": x}, x @ dense + extra)


def test_the_rank_of_the_data_is_needed():
    graph = helper.make_graph(
        [
            helper.make_node("Own", ["x"], ["h"], domain="own"),
            helper.make_node("MatMul", ["h", "w"], ["y"]),
            helper.make_node("Own", ["y"], ["z"], domain="own"),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, 6])],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [3, 6])],
        [numpy_helper.from_array(normal(0, 6, 6), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises(LoweringRefusedError, match="needs the rank of their data"):
        written(model, [Fold((2, 3), (1, 0))])
