"""Sums of chains at every kind of site, against the operator with numpy's dense sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.errors import UsageError
from onnxlr.numbers import Format
from onnxlr.stages import Adjustment, Chain, Convolution, Linear, Stored, Sum
from tests.lowering.written import expect, operators, written
from tests.onelayer import LEVELS, Array, model_of, newest_opset, run

OPSETS = (7, 9, 10, 11, 13, newest_opset())
INPUTS, OUTPUTS, RANK = 8, 6, 3


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(values: Array, format: str = "float32") -> Stored:
    return Linear.of(values).encoded(Format.parse(format), np.float32)


def kernel(values: Array, groups: int, window: Sequence[int], format: str = "float32") -> Stored:
    return Convolution.of(values, groups, tuple(window)).encoded(Format.parse(format), np.float32)


def chain(*stages: Any) -> Chain:
    return Chain(tuple(stages))


def matrix_sum(branches: int = 2, format: str = "float32", batch: int | None = None) -> Sum:
    """Return a coarse weight beside products of two factors."""
    lead = () if batch is None else (batch,)
    parts = [chain(linear(normal(*lead, INPUTS, OUTPUTS, seed=1), format))]
    for number in range(branches - 1):
        first = linear(normal(*lead, INPUTS, RANK, seed=10 + number), format)
        second = linear(normal(*lead, RANK, OUTPUTS, seed=20 + number), format)
        parts.append(chain(first, second))
    return Sum(tuple(parts))


def dense(stage: Sum) -> Array:
    """Return the sum of products of the branches' stages, by numpy."""
    total: Any = 0.0
    for branch in stage.branches:
        product: Any = branch.stages[0].dense()
        for step in branch.stages[1:]:
            product = product @ step.dense()
        total = total + product
    return np.asarray(total)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("branches", [2, 3])
def test_at_a_matmul(opset: int, branches: int) -> None:
    x = normal(2, 5, INPUTS)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")
    constants = {"W": normal(INPUTS, OUTPUTS, seed=2)}
    model = model_of([node], {"x": x}, ["y"], constants, opset=opset)
    stage = matrix_sum(branches)
    done = written(model, [stage])
    assert operators(done) == {"MatMul": 2 * branches - 1, "Add": branches - 1}
    assert done.graph.node[-1].output == ["y"]
    expect(done, {"x": x}, x.astype(np.float64) @ dense(stage), 1e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0), (-2.0, 0.0)])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_at_a_gemm(with_bias: bool, corrected: bool, alpha: float, beta: float, opset: int) -> None:
    if not with_bias and opset < 11:
        pytest.skip("a Gemm has to have a bias there")
    x, bias = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    constants = {"W": normal(OUTPUTS, INPUTS, seed=2)} | ({"c": bias} if with_bias else {})
    node = helper.make_node(
        "Gemm", ["x", *constants], ["y"], name="layer", alpha=alpha, beta=beta, transB=1
    )
    model = model_of([node], {"x": x}, ["y"], constants, opset=opset)
    stage, correction = matrix_sum(3), normal(OUTPUTS, seed=5).astype(np.float64)
    done = written(model, [stage], adjustments=[Adjustment(correction if corrected else None)])
    expected = alpha * x.astype(np.float64) @ dense(stage)
    if with_bias:
        expected = expected + beta * bias
    if corrected:
        expected = expected + correction
    expect(done, {"x": x}, expected, 1e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("data", [(INPUTS, 5), (2, INPUTS, 5)])
def test_at_a_weight_on_the_left(data: tuple[int, ...], opset: int) -> None:
    x = normal(*data)
    node = helper.make_node("MatMul", ["W", "x"], ["y"], name="layer")
    constants = {"W": normal(OUTPUTS, INPUTS, seed=2)}
    model = model_of([node], {"x": x}, ["y"], constants, opset=opset)
    stage = matrix_sum()
    done = written(model, [stage])
    expect(done, {"x": x}, dense(stage).T @ x.astype(np.float64), 1e-6)


def test_at_a_site_that_uses_the_transpose() -> None:
    x, weight = normal(5, INPUTS), normal(INPUTS, OUTPUTS, seed=2)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Gemm", ["h", "W"], ["y"], name="back", transB=1, alpha=0.5),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"W": weight}, opset=13)
    stage = matrix_sum(3)
    whole = dense(stage)
    done = written(model, [stage])
    expect(done, {"x": x}, 0.5 * x.astype(np.float64) @ whole @ whole.T, 1e-6)


def test_at_a_stack_of_matrices() -> None:
    x = normal(3, 5, INPUTS)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")
    model = model_of([node], {"x": x}, ["y"], {"W": normal(3, INPUTS, OUTPUTS, seed=2)})
    stage = matrix_sum(batch=3)
    expect(written(model, [stage]), {"x": x}, x.astype(np.float64) @ dense(stage), 1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_in_the_middle_of_a_chain(first: bool) -> None:
    """A sum is one of the stages; what is before or behind it stays single."""
    x, bias = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="layer", alpha=0.5, beta=3.0)
    model = model_of([node], {"x": x}, ["y"], {"W": normal(INPUTS, OUTPUTS, seed=2), "c": bias})
    one, two = normal(INPUTS, 4, seed=5), normal(INPUTS, 4, seed=6)
    three, four = normal(4, OUTPUTS, seed=7), normal(4, OUTPUTS, seed=8)
    if first:
        stages = [Sum((chain(linear(one)), chain(linear(two)))), linear(three)]
        whole = (one.astype(np.float64) + two) @ three
    else:
        stages = [linear(one), Sum((chain(linear(three)), chain(linear(four))))]
        whole = one.astype(np.float64) @ (three.astype(np.float64) + four)
    done = written(model, stages)
    expect(done, {"x": x}, 0.5 * x.astype(np.float64) @ whole + 3.0 * bias, 1e-6)


def convolved(x: Array, weight: Array, bias: Array | None, attributes: dict[str, Any]) -> Array:
    """Return what ONNX's own operator computes with a dense kernel in float64."""
    constants = {"W": weight.astype(np.float64)}
    if bias is not None:
        constants["c"] = bias.astype(np.float64)
    node = helper.make_node("Conv", ["x", *constants], ["y"], **attributes)
    model = model_of([node], {"x": x.astype(np.float64)}, ["y"], constants)
    return np.asarray(onnx.reference.ReferenceEvaluator(model).run(None, {"x": x.astype(float)})[0])


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 3]},
    "pads": {"pads": [1, 0, 2, 1]},
    "groups": {"group": 2, "strides": [2, 1], "pads": [1, 1, 1, 1]},
    "dilations": {"dilations": [2, 1], "pads": [2, 1, 2, 1]},
}


def kernels(groups: int, form: str) -> tuple[list[Any], Array]:
    """Return stages that hold a sum, and the dense kernel that they are."""
    whole = normal(6, 4 // groups, 3, 3, seed=1)
    inner = 2 * groups
    left = normal(inner, 4 // groups, 3, 3, seed=2)
    right = normal(6, inner // groups, 1, 1, seed=3)

    def joined(a: Array, b: Array) -> Array:
        """Return the kernel of `a` and then a 1×1 kernel `b`, group by group."""
        parts = [
            np.einsum("or,rikl->oikl", two[:, :, 0, 0].astype(np.float64), one)
            for one, two in zip(np.split(a, groups), np.split(b, groups), strict=True)
        ]
        return np.concatenate(parts)

    product = joined(left, right)
    window, point = kernel(left, groups, (0, 1)), kernel(right, groups, ())
    if form == "beside":
        term = chain(kernel(whole, groups, (0, 1)))
        return [Sum((term, chain(window, point)))], whole + product
    if form == "first":
        twice = chain(kernel(2 * left, groups, (0, 1)))
        return [Sum((chain(window), twice)), point], 3 * product
    return [window, Sum((chain(point), chain(kernel(2 * right, groups, ()))))], 3 * product


@pytest.mark.parametrize("opset", [7, 11, newest_opset()])
@pytest.mark.parametrize("form", ["beside", "first", "last"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("with_bias", [True, False])
def test_at_a_convolution(with_bias: bool, case: str, form: str, opset: int) -> None:
    """The bias is added once, and every branch has the window's strides and pads in one stage."""
    attributes = CONVOLUTIONS[case]
    x, bias = normal(2, 4, 9, 8), normal(6, seed=4)
    constants = {"W": normal(6, 4 // attributes.get("group", 1), 3, 3)}
    if with_bias:
        constants["c"] = bias
    node = helper.make_node("Conv", ["x", *constants], ["y"], name="layer", **attributes)
    model = model_of([node], {"x": x}, ["y"], constants, opset=opset)
    stages, whole = kernels(attributes.get("group", 1), form)
    done = written(model, stages)
    expected = convolved(x, whole, bias if with_bias else None, attributes)
    expect(done, {"x": x}, expected, 1e-6)


def test_spatial_factors_in_a_branch() -> None:
    """One factor slides along each axis, in every branch anew."""
    x = normal(2, 4, 9, 8)
    attributes: dict[str, Any] = {"strides": [2, 3], "pads": [1, 0, 2, 1]}
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="layer", **attributes)
    model = model_of([node], {"x": x}, ["y"], {"W": normal(6, 4, 3, 3)})
    rows, columns = normal(2, 4, 1, 3, seed=1), normal(6, 2, 3, 1, seed=2)
    whole = normal(6, 4, 3, 3, seed=3)
    stage = Sum(
        (chain(kernel(rows, 1, (1,)), kernel(columns, 1, (0,))), chain(kernel(whole, 1, (0, 1))))
    )
    product = np.einsum("ork,ril->oikl", columns[..., 0].astype(np.float64), rows[:, :, 0])
    expect(written(model, [stage]), {"x": x}, convolved(x, whole + product, None, attributes), 1e-6)


@pytest.mark.parametrize("format", ["float16", "int8", "int4", "int2"])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_in_formats(operator: str, format: str) -> None:
    x = normal(5, INPUTS)
    node = helper.make_node(operator, ["x", "W"], ["y"], name="layer")
    model = model_of([node], {"x": x}, ["y"], {"W": normal(INPUTS, OUTPUTS, seed=2)}, opset=13)
    stage = matrix_sum(2, format)
    expect(written(model, [stage]), {"x": x}, x.astype(np.float64) @ dense(stage), 1e-6)


def test_ranges_are_not_those_of_a_branch() -> None:
    """Known ranges are of the data and of the sum: no branch may take them for its own."""
    x = normal(5, INPUTS)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")
    model = model_of([node], {"x": x}, ["y"], {"W": normal(INPUTS, OUTPUTS, seed=2)})
    ranges = Adjustment(None, ((-3.0, 3.0), (-9.0, 9.0)))
    with pytest.raises(UsageError, match="ranges of its data are not known"):
        written(
            model,
            [matrix_sum(2, "int8")],
            activations="static_int8",
            adjustments=[ranges],
        )


def test_data_rounded_as_it_comes() -> None:
    x = normal(5, INPUTS)
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")
    model = model_of([node], {"x": x}, ["y"], {"W": normal(INPUTS, OUTPUTS, seed=2)})
    stage = matrix_sum(2, "int8")
    done = written(model, [stage], activations="dynamic_int8")
    for level in LEVELS:
        found = run(done, {"x": x}, level)[0]
        exact = x.astype(np.float64) @ dense(stage)
        # 1/255 of the range in each of two products: far less than a branch is
        assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)
        assert np.linalg.norm(found - exact) > 0
