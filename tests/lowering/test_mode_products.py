"""Products along modes at every kind of site, against the operator with numpy's dense weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxlr.lowering import LoweringRefusedError
from onnxlr.stages import Adjustment, Chain, Fold, Linear, ModeProduct, Scale, Sum
from tests.lowering import ternary
from tests.lowering.modes import (
    ALL_OPSETS,
    OPSETS,
    expect_dims,
    expect_output,
    kinds,
    kronecker,
    larger,
    linear,
    normal,
    one_model,
    permutation,
    row_chains,
    symbolic,
    unranked,
)
from tests.lowering.written import constant_bytes, operators, optimised, written
from tests.onelayer import LEVELS, Array, distance, model_of, newest_opset, run

# -- rows and columns ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.data(),
    dtype=st.sampled_from(["float32", "float32", "float64"]),
    lead=st.lists(st.integers(1, 3), max_size=3),
    columns=st.one_of(st.none(), st.integers(1, 3)),
    known=st.lists(st.booleans(), min_size=4, max_size=4),
    opset=OPSETS,
)
def test_matmul(data, dtype, lead, columns, known, opset):
    steps = data.draw(row_chains(dtype=dtype))
    inputs, outputs = steps.dense.shape
    left = columns is not None or data.draw(st.booleans())
    lead = lead if columns is not None or not left else []
    shape = (*lead, inputs) if columns is None else (*lead, inputs, columns)
    axis = len(shape) - (1 if columns is None else 2)
    dims = symbolic(shape, axis, known)
    weight = normal(0, inputs, outputs, dtype=dtype)
    node = helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"])
    model = one_model(node, ("x", dims), {"w": weight.T.copy() if left else weight}, opset)
    changed = written(model, steps.stages)
    first = normal(1, *shape, dtype=dtype)
    for x in (first, normal(2, *larger(dims, first), dtype=dtype)):
        expect_dims(changed, {"x": x})
        expected = steps.dense.T @ x if left else x @ steps.dense
        expect_output(changed, {"x": x}, expected.astype(np.float64))


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=row_chains(),
    rows=st.integers(1, 4),
    left=st.booleans(),
    trans_a=st.booleans(),
    trans_b=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, 0.25, 0.0]),
    bias=st.sampled_from(["none", "scalar", "features", "rows", "full", "computed"]),
    known=st.booleans(),
    opset=OPSETS,
)
def test_gemm(steps, rows, left, trans_a, trans_b, alpha, beta, bias, known, opset):
    inputs, outputs = steps.dense.shape
    bias = "full" if bias == "none" and opset < 11 else bias
    shapes = {"scalar": (), "features": (outputs,), "rows": (rows, 1)}
    c = normal(0, *shapes.get(bias, (rows, outputs)))
    if left and bias not in ("scalar",):
        c = c.reshape(outputs, 1) if bias == "features" else c.reshape(c.shape[::-1])
    x, weight = normal(1, rows, inputs), normal(2, inputs, outputs)
    expected = alpha * x.astype(np.float64) @ steps.dense
    expected = (expected.T if left else expected) + (0 if bias == "none" else beta * c)
    stored_x, stored_w = (x.T, weight.T) if left else (x, weight)
    is_turned = trans_b if left else trans_a
    stored_x = stored_x.T if is_turned else stored_x
    stored_w = stored_w.T if (trans_a if left else trans_b) else stored_w
    constants = {"w": stored_w.copy()} | ({} if bias in ("none", "computed") else {"c": c})
    names = (["w", "x"] if left else ["x", "w"]) + ([] if bias == "none" else ["c"])
    attributes = {"transA": int(trans_a), "transB": int(trans_b), "alpha": alpha, "beta": beta}
    node = helper.make_node("Gemm", names, ["y"], **attributes)
    dims = [size if known or size == inputs else "D" for size in stored_x.shape]
    model = one_model(node, ("x", dims), constants, opset)
    feeds = {"x": stored_x.copy()}
    if bias == "computed":
        model.graph.input.append(
            helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, c.shape)
        )
        feeds["c"] = c
    changed = written(model, steps.stages)
    expect_dims(changed, feeds)
    expect_output(changed, feeds, expected)


@pytest.mark.parametrize("behind", [1, 3, 20])
@pytest.mark.parametrize("before", [1, 2])
def test_one_factor_for_all_sites(before, behind):
    """It is stored once, whichever way round a site takes it."""
    if before == behind == 1:
        pytest.skip("a bare matrix")
    matrix = normal(0, 4, 3)
    inputs, outputs = 4 * before * behind, 3 * before * behind
    x, weight, c = normal(1, inputs, inputs), normal(2, inputs, outputs), normal(3, inputs)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w", "c"], ["a"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["w", "x"], ["b"], transA=1),
        helper.make_node("MatMul", ["w", "h2"], ["d"]),
    ]
    h2 = normal(4, 2, outputs, 3)
    model = model_of(nodes, {"x": x, "h2": h2}, ["a", "b", "d"], {"w": weight, "c": c}, 13)
    mode = ModeProduct(linear(matrix), before, behind)
    turn = Fold((before * behind, 3), (1, 0))
    changed = written(model, [mode, turn])
    floats = [t for t in changed.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert [sorted(t.dims) for t in floats if len(t.dims) > 1] == [[3, 4]]
    dense = kronecker(before, matrix, behind) @ permutation(turn.dims, turn.order)
    exact = x.astype(np.float64)
    expected = [0.5 * exact @ dense @ dense.T + 2.0 * c, dense.T @ exact, dense @ h2]
    for level in LEVELS:
        for found, wanted in zip(run(changed, {"x": x, "h2": h2}, level), expected, strict=True):
            assert distance(found, wanted) < 1e-5


def test_between_factors_and_in_sums():
    x, bias, d = normal(0, 5, 12), normal(1, 8), np.linspace(1, 2, 12).astype(np.float32)
    one, two, three = normal(2, 3, 2), normal(3, 12, 5), normal(4, 5, 8)
    mode = ModeProduct(linear(one), 2, 2)
    total = Sum((Chain((Scale(d), mode)), Chain((linear(two), linear(three)))))
    dense = np.diag(d) @ kronecker(2, one, 2) + two.astype(np.float64) @ three
    for opset in ALL_OPSETS:
        node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], alpha=0.5, beta=3.0)
        constants = {"w": normal(5, 12, 8), "c": bias}
        changed = written(one_model(node, ("x", ("N", 12)), constants, opset), [total])
        expect_output(changed, {"x": x}, 0.5 * x.astype(np.float64) @ dense + 3.0 * bias)


def test_before_a_stack_of_matrices():
    """Data has the stack's axes behind it only."""
    x, matrix, stack = normal(0, 5, 12), normal(1, 3, 2), normal(2, 4, 8, 6)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = one_model(node, ("x", ("N", 12)), {"w": normal(3, 4, 12, 6)}, 17, 3)
    changed = written(model, [ModeProduct(linear(matrix), 2, 2), linear(stack)])
    expect_dims(changed, {"x": x})
    expect_output(changed, {"x": x}, x @ kronecker(2, matrix, 2) @ stack)


def test_no_rows():
    """Sizes before the features are copied, not found by division."""
    matrix = normal(0, 3, 2)
    for before, behind in ((2, 1), (1, 2), (2, 8)):
        inputs, outputs = (n * before * behind for n in matrix.shape)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        model = one_model(node, ("x", ("N", 4, inputs)), {"w": normal(1, inputs, outputs)}, 17)
        changed = written(model, [ModeProduct(linear(matrix), before, behind)])
        for level in LEVELS:
            empty = run(changed, {"x": np.zeros((0, 4, inputs), np.float32)}, level)[0]
            assert empty.shape == (0, 4, outputs)


def test_a_correction_is_added_behind_it():
    x, matrix, extra = normal(0, 5, 12), normal(1, 3, 2), normal(2, 8).astype(np.float64)
    for node, constants in (
        (helper.make_node("MatMul", ["x", "w"], ["y"]), {}),
        (helper.make_node("Gemm", ["x", "w", "c"], ["y"], beta=2.0), {"c": normal(3, 8)}),
    ):
        model = one_model(node, ("x", x.shape), {"w": normal(4, 12, 8), **constants}, 17)
        stages = [ModeProduct(linear(matrix), 2, 2)]
        changed = written(model, stages, adjustments=[Adjustment(extra)])
        expected = x @ kronecker(2, matrix, 2) + extra + 2.0 * constants.get("c", 0.0)
        expect_output(changed, {"x": x}, expected)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gemm_on_data_of_unknown_rank(transposed):
    x, matrix = normal(0, 5, 12), normal(1, 3, 2)
    node = helper.make_node("Gemm", ["h", "w"], ["y"], transA=int(transposed))
    model = unranked(node, {"w": normal(2, 12, 8)}, 2)
    changed = written(model, [Fold((3, 4), (1, 0)), ModeProduct(linear(matrix), 2, 2)])
    dense = permutation((3, 4), (1, 0)) @ kronecker(2, matrix, 2)
    data = x.T if transposed else x
    feeds = {"x": data.reshape(-1), "s": np.array(data.shape)}
    expect_output(changed, feeds, x @ dense)
    node = helper.make_node("MatMul", ["h", "w"], ["y"])
    model = unranked(node, {"w": normal(2, 12, 8)}, 2)
    with pytest.raises(LoweringRefusedError, match="needs the rank of their data"):
        written(model, [ModeProduct(linear(matrix), 2, 2)])


# -- formats ---------------------------------------------------------------------------------------


def kept(before: int, behind: int, format: str, rows: int = 5) -> tuple[Any, Array, Array]:
    """Return a step whose factor is kept in a format, its matrix, and data."""
    stage = linear(normal(0, 40, 6), format)
    return (
        ModeProduct(stage, before, behind),
        kronecker(before, stage.dense(), behind),
        normal(1, rows, 40 * before * behind),
    )


@pytest.mark.parametrize("opset", [9, 13, newest_opset()])
@pytest.mark.parametrize("format", ["float16", "int8", "int4", "int2"])
@pytest.mark.parametrize(("before", "behind"), [(2, 1), (1, 3), (2, 20)])
def test_float_data(before, behind, format, opset):
    mode, dense, x = kept(before, behind, format)
    for node, right in (
        (helper.make_node("MatMul", ["x", "w"], ["y"]), True),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), False),
    ):
        weight = normal(2, *dense.shape)
        weight, data = (weight, x) if right else (weight.T.copy(), x.T.copy())
        changed = written(one_model(node, ("x", data.shape), {"w": weight}, opset), [mode])
        expect_dims(changed, {"x": data})
        expect_output(changed, {"x": data}, x @ dense if right else (x @ dense).T)
        assert constant_bytes(changed) < 0.6 * 4 * mode.stage.weight.codes.size


@pytest.mark.parametrize("behind", [1, 3, 20])
@pytest.mark.parametrize("right", [True, False])
def test_integers_of_few_bits_stay_packed_in_onnx_runtime(right, behind):
    mode, dense, x = kept(2, behind, "int4")
    node = helper.make_node("MatMul", ["x", "w"] if right else ["w", "x"], ["y"])
    weight = normal(2, *dense.shape)
    weight, data = (weight, x) if right else (weight.T.copy(), x.T.copy())
    changed = written(one_model(node, ("x", data.shape), {"w": weight}, 17), [mode], "ort")
    assert operators(changed)["MatMulNBits"] == 1
    expect_output(changed, {"x": data}, x @ dense if right else (x @ dense).T)


@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8"])
@pytest.mark.parametrize(("before", "behind"), [(2, 1), (1, 3), (2, 20)])
def test_integer_data(before, behind, activations):
    """One product of all rows, within what 8 bits can tell."""
    mode, dense, x = kept(before, behind, "int8")
    bias = normal(3, dense.shape[1]) + 100
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"])
    constants = {"w": normal(2, *dense.shape), "c": bias}
    expected = x @ dense
    bounds = tuple((float(v.min()), float(v.max())) for v in (x, expected + bias))
    changed = written(
        one_model(node, ("x", x.shape), constants, 17),
        [mode],
        activations=activations,
        adjustments=[Adjustment(None, bounds)],
    )
    assert operators(changed)["MatMulInteger"] == 1
    expect_dims(changed, {"x": x})
    for level in LEVELS:
        found = run(changed, {"x": x}, level)[0] - bias.astype(np.float64)
        assert 0 < distance(found, expected) < 0.03


@pytest.mark.parametrize("target", ["onnx", "ort", "onnxlr"])
@pytest.mark.parametrize("behind", [1, 3, 20])
def test_ternary_factors(behind, target):
    stage, numbers = ternary.matrix(0, 40, 6, 2)
    x, dense = normal(1, 5, 80 * behind), kronecker(2, numbers, behind)
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], alpha=0.5)
    bias = normal(2, dense.shape[1])
    model = one_model(node, ("x", x.shape), {"w": normal(3, *dense.shape), "c": bias}, 17)
    changed = ternary.lowered(model, [ModeProduct(stage, 2, behind)], target)
    assert len(ternary.own_nodes(changed)) == (target == "onnxlr")
    ternary.expect_all(changed, {"x": x}, 0.5 * x @ dense + bias, 1e-5)


def test_float16():
    matrix, x = normal(0, 6, 4, dtype="float16"), normal(1, 5, 24, dtype="float16")
    for before, behind in ((4, 1), (1, 4), (2, 2)):
        dense = kronecker(before, matrix, behind)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        model = one_model(node, ("x", x.shape), {"w": normal(2, 24, 16, dtype="float16")}, 17)
        changed = written(model, [ModeProduct(linear(matrix), before, behind)])
        types = {t.data_type for t in changed.graph.initializer}
        assert types == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
        expect_output(changed, {"x": x}, x.astype(np.float64) @ dense, 5e-3)


# -- what the nodes are ----------------------------------------------------------------------------


def rows_of(*stages: Any, dims: Any = ("N", 96), outputs: int) -> list[str]:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = one_model(node, ("x", dims), {"w": normal(0, 96, outputs)}, 17)
    return kinds(written(model, stages))


def factor(inputs: int, outputs: int) -> Linear:
    return linear(normal(0, inputs, outputs))


def test_nodes_of_rows():
    reshapes = ["Reshape", "MatMul", "Reshape"]
    assert rows_of(ModeProduct(factor(12, 5), 8), outputs=40) == reshapes
    turned = ["Reshape", "Transpose", "MatMul", "Transpose", "Reshape"]
    assert rows_of(ModeProduct(factor(12, 5), 1, 8), outputs=40) == turned
    assert rows_of(ModeProduct(factor(3, 2), 2, 16), outputs=64) == reshapes


def test_an_order_between_two_products():
    """`(F ⊗ I)`, the axes exchanged, `(G ⊗ I)`: the features come apart once."""
    modes = ModeProduct(factor(12, 5), 1, 8), ModeProduct(factor(8, 3), 1, 5)
    found = rows_of(modes[0], Fold((5, 8), (1, 0)), modes[1], outputs=15)
    # the first product's result lies as the fold wants it, and the second's is the output
    assert found == [
        *("Reshape", "Transpose", "MatMul", "Transpose", "MatMul", "Transpose", "Reshape")
    ]
    blocks = ModeProduct(factor(12, 5), 8), Fold((8, 5), (1, 0)), ModeProduct(factor(8, 3), 5)
    # a Reshape in between keeps ONNX Runtime from a product of small matrices
    once = ["Reshape", "MatMul", "Transpose", "Reshape", "MatMul", "Reshape"]
    assert rows_of(*blocks, outputs=15) == once
    one_row = ["Reshape", "MatMul", "MatMul", "Transpose", "Reshape"]
    assert rows_of(*blocks, dims=(96,), outputs=15) == one_row


def test_nothing_is_fused_with_a_product():
    """ONNX Runtime's product of transposed data takes no empty batch, and 1.18 no float64."""
    matrix, other = normal(0, 12, 5, dtype="float64"), normal(1, 8, 3, dtype="float64")
    order = permutation((8, 5), (1, 0))
    turn, back = Fold((8, 5), (1, 0)), Fold((5, 8), (1, 0))
    first, second = kronecker(8, matrix, 1), kronecker(5, other, 1)
    chains = {
        "blocks": [ModeProduct(linear(matrix), 8), turn, ModeProduct(linear(other), 5)],
        "behind": [ModeProduct(linear(matrix), 1, 8), back, ModeProduct(linear(other), 1, 5)],
        "kronecker": [ModeProduct(linear(matrix), 1, 8), ModeProduct(linear(other), 5)],
    }
    dense = {
        "blocks": first @ order @ second,
        "behind": kronecker(1, matrix, 8) @ order.T @ kronecker(1, other, 5),
        "kronecker": np.kron(matrix, other),
    }
    for name, stages in chains.items():
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        weight = normal(2, 96, 15, dtype="float64")
        changed = written(one_model(node, ("x", ("N", "M", 96)), {"w": weight}, 17), stages)
        assert "FusedMatMul" not in operators(optimised(changed))
        x = normal(3, 2, 4, 96, dtype="float64")
        expect_dims(changed, {"x": x})
        expect_output(changed, {"x": x}, x @ dense[name], 1e-12)
        assert run(changed, {"x": x[:0]})[0].shape == (0, 4, 15)
