"""Bias corrections at their sites: into a bias, into the Add behind, or in an Add of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.lowering import find_target, lower_layer
from onnxlr.model import open_model, splice
from onnxlr.numbers import Format
from onnxlr.stages import Adjustment, Chain
from tests.fixtures import save_external
from tests.lowering.written import operators, stage_of, written
from tests.onelayer import LEVELS, Array, distance, model_of, newest_opset, run

FLOAT32 = Format.parse("float32")
INPUTS, OUTPUTS = 8, 6


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHT, OTHER = normal(INPUTS, OUTPUTS, seed=1), normal(INPUTS, OUTPUTS, seed=2)
CORRECTION = normal(OUTPUTS, seed=3).astype(np.float64)


def corrected(model: onnx.ModelProto, *corrections: Array, other: Array = OTHER) -> Any:
    """Return the model with another dense weight and corrections at its sites."""
    stages = [stage_of(other, FLOAT32)]
    return written(model, stages, adjustments=[Adjustment(c) for c in corrections])


def check(model: onnx.ModelProto, inputs: Mapping[str, Array], expected: Sequence[Array]) -> None:
    for level in LEVELS:
        found = run(model, inputs, level)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def names(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer}


# --- behind a MatMul -----------------------------------------------------------------------------


def matmul_add(
    constant: Array,
    swapped: bool = False,
    ir_version: int | None = None,
    as_node: bool = False,
    opset: int = 17,
) -> tuple[onnx.ModelProto, Array]:
    x = normal(5, INPUTS)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["c", "h"] if swapped else ["h", "c"], ["y"], name="add"),
    ]
    constants = {"W": WEIGHT}
    if as_node:
        held = numpy_helper.from_array(constant, "c")
        nodes.insert(0, helper.make_node("Constant", [], ["c"], name="held", value=held))
    else:
        constants["c"] = constant
    model = model_of(nodes, {"x": x}, ["y"], constants, opset=opset, ir_version=ir_version)
    return model, x


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("shape", [(OUTPUTS,), (1, OUTPUTS), (5, OUTPUTS), (2, 1, OUTPUTS)])
def test_into_the_constant_that_is_added_anyway(
    shape: tuple[int, ...], as_node: bool, swapped: bool
) -> None:
    constant = normal(*shape, seed=4)
    model, x = matmul_add(constant, swapped, as_node=as_node)
    done = corrected(model, CORRECTION)
    assert operators(done) == {"MatMul": 1, "Add": 1}
    check(done, {"x": x}, [x.astype(np.float64) @ OTHER + CORRECTION + constant])
    assert "c" not in names(done)
    assert "W" not in names(done)
    assert [n.name for n in done.graph.node if n.op_type == "Add"] == ["add"]


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (1, 1)])
def test_a_constant_that_is_broadcast_gets_no_larger(shape: tuple[int, ...]) -> None:
    constant = normal(*shape, seed=4)
    model, x = matmul_add(constant)
    done = corrected(model, CORRECTION)
    check(done, {"x": x}, [x.astype(np.float64) @ OTHER + CORRECTION + constant])
    assert "c" in names(done)
    assert operators(done) == {"MatMul": 1, "Add": 2}


@pytest.mark.parametrize("opset", [7, 8, 13, newest_opset()])
def test_any_opset(opset: int) -> None:
    constant = normal(OUTPUTS, seed=4)
    model, x = matmul_add(constant, opset=opset)
    done = corrected(model, CORRECTION)
    assert operators(done) == {"MatMul": 1, "Add": 1}
    check(done, {"x": x}, [x.astype(np.float64) @ OTHER + CORRECTION + constant])


def test_constants_of_ir_version_3() -> None:
    """Initializers are inputs there, so that none is known to be constant in the next node."""
    constant = normal(OUTPUTS, seed=4)
    model, x = matmul_add(constant, ir_version=3, opset=8)
    done = corrected(model, CORRECTION)
    check(done, {"x": x}, [x.astype(np.float64) @ OTHER + CORRECTION + constant])
    inputs = {value.name for value in done.graph.input}
    assert names(done) <= inputs
    assert "W" not in inputs


def test_a_constant_that_can_be_overridden_stays() -> None:
    constant, given = normal(OUTPUTS, seed=4), normal(OUTPUTS, seed=5)
    model, x = matmul_add(constant)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [OUTPUTS]))
    done = corrected(model, CORRECTION)
    expected = x.astype(np.float64) @ OTHER + CORRECTION
    check(done, {"x": x, "c": given}, [expected + given])
    check(done, {"x": x}, [expected + constant])


def test_a_dynamic_addend() -> None:
    x, added = normal(5, INPUTS), normal(5, OUTPUTS, seed=4)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "r"], ["y"]),
    ]
    model = model_of(nodes, {"x": x, "r": added}, ["y"], {"W": WEIGHT})
    done = corrected(model, CORRECTION)
    assert operators(done) == {"MatMul": 1, "Add": 2}
    check(done, {"x": x, "r": added}, [x.astype(np.float64) @ OTHER + CORRECTION + added])


def test_a_shared_constant_stays_for_the_others() -> None:
    x, constant = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"]),
        helper.make_node("Mul", ["y", "c"], ["z"]),
    ]
    model = model_of(nodes, {"x": x}, ["y", "z"], {"W": WEIGHT, "c": constant})
    done = corrected(model, CORRECTION)
    assert operators(done) == {"MatMul": 1, "Add": 1, "Mul": 1}
    assert "c" in names(done)
    y = x.astype(np.float64) @ OTHER + CORRECTION + constant
    check(done, {"x": x}, [y, y * constant])


def test_a_constant_that_is_handed_out_stays() -> None:
    constant = normal(OUTPUTS, seed=4)
    model, x = matmul_add(constant)
    model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [OUTPUTS]))
    done = corrected(model, CORRECTION)
    assert operators(done) == {"MatMul": 1, "Add": 1}
    expected = x.astype(np.float64) @ OTHER + CORRECTION + constant
    check(done, {"x": x}, [expected, constant])


@pytest.mark.parametrize("shared", [False, True])
def test_a_constant_in_a_file_of_its_own(shared: bool, tmp_path: Path) -> None:
    weight, constant, x = normal(64, 48, seed=1), normal(48, seed=4), normal(5, 64) + 2
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    nodes += [helper.make_node("Neg", ["c"], ["z"])] * shared
    model = model_of(nodes, {"x": x}, ["y", "z"][: 1 + shared], {"W": weight, "c": constant})
    save_external(model, tmp_path / "m.onnx")
    result = onnxlr.rewrite(
        tmp_path / "m.onnx",
        tmp_path / "o.onnx",
        method="quantize",
        format="int8",
        calibration=[{"x": normal(5, 64, seed=seed) + 2} for seed in range(10)],
        isolate=False,
    )
    assert result.plan.layers["layer"].bias_correction
    done = onnx.load(tmp_path / "o.onnx")
    assert [node.op_type for node in done.graph.node].count("Add") == 1
    assert ("c" in names(done)) == shared
    found = run(done, {"x": x})
    assert distance(found[0], x.astype(np.float64) @ weight + constant) < 0.02
    if shared:
        np.testing.assert_array_equal(found[1], -constant)


def test_the_product_is_handed_out_as_well() -> None:
    """The graph's output has to be corrected, too."""
    x, constant = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, ["h", "y"], {"W": WEIGHT, "c": constant})
    done = corrected(model, CORRECTION)
    h = x.astype(np.float64) @ OTHER + CORRECTION
    check(done, {"x": x}, [h, h + constant])
    assert "c" in names(done)


@pytest.mark.parametrize("second", [["h", "h"], ["h", "c"]])
def test_the_product_is_used_twice(second: list[str]) -> None:
    x, constant = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"]),
        helper.make_node("Add", second, ["z"]),
    ]
    model = model_of(nodes, {"x": x}, ["y", "z"], {"W": WEIGHT, "c": constant})
    done = corrected(model, CORRECTION)
    h = x.astype(np.float64) @ OTHER + CORRECTION
    check(done, {"x": x}, [h + constant, h + (h if second[1] == "h" else constant)])


def test_the_product_added_to_itself() -> None:
    x = normal(5, INPUTS)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "h"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"W": WEIGHT})
    done = corrected(model, CORRECTION)
    check(done, {"x": x}, [2 * (x.astype(np.float64) @ OTHER + CORRECTION)])


def branch(output: str, nodes: Sequence[onnx.NodeProto], rows: int = 5) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [rows, OUTPUTS])
    return helper.make_graph(list(nodes), output, [], [value])


@pytest.mark.parametrize("on", [True, False])
def test_the_product_is_captured_by_a_subgraph(on: bool) -> None:
    x, constant = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node(
            "If",
            ["on"],
            ["y"],
            then_branch=branch("t", [helper.make_node("Add", ["h", "c"], ["t"])]),
            else_branch=branch("e", [helper.make_node("Neg", ["h"], ["e"])]),
        ),
    ]
    inputs = {"x": x, "on": np.array(on)}
    model = model_of(nodes, inputs, ["y"], {"W": WEIGHT, "c": constant})
    done = corrected(model, CORRECTION)
    h = x.astype(np.float64) @ OTHER + CORRECTION
    check(done, inputs, [h + constant if on else -h])
    assert "c" in names(done)


def test_inside_the_body_of_an_if() -> None:
    x, constant = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    inner = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["t"]),
    ]
    other = [helper.make_node("Add", ["r", "c"], ["e"])]
    nodes = [
        helper.make_node(
            "If", ["on"], ["y"], then_branch=branch("t", inner), else_branch=branch("e", other)
        )
    ]
    added = normal(5, OUTPUTS, seed=5)
    inputs = {"x": x, "r": added, "on": np.array(True)}
    model = model_of(nodes, inputs, ["y"], {"W": WEIGHT, "c": constant})
    done = corrected(model, CORRECTION)
    check(done, inputs, [x.astype(np.float64) @ OTHER + CORRECTION + constant])
    check(done, {**inputs, "on": np.array(False)}, [added.astype(np.float64) + constant])


def test_inside_a_function() -> None:
    """A function has no initializers: the correction is a Constant node."""
    held = numpy_helper.from_array(WEIGHT, "W")
    function = helper.make_function(
        "local",
        "Block",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["W"], value=held),
            helper.make_node("MatMul", ["a", "W"], ["b"], name="layer"),
        ],
        [helper.make_opsetid("", 17)],
    )
    x = normal(5, INPUTS)
    graph = helper.make_graph(
        [helper.make_node("Block", ["x"], ["y"], domain="local")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, OUTPUTS])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
    done = corrected(model, CORRECTION)
    assert not done.graph.initializer
    check(done, {"x": x}, [x.astype(np.float64) @ OTHER + CORRECTION])


def test_a_weight_on_the_left() -> None:
    """Features lie on the second last axis there."""
    x, constant = normal(3, INPUTS, 5), normal(OUTPUTS, 1, seed=4)
    nodes = [
        helper.make_node("MatMul", ["W", "x"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    stored = np.ascontiguousarray(WEIGHT.T)
    for value, count in ((constant, 1), (normal(5, seed=4), 2)):
        model = model_of(nodes, {"x": x}, ["y"], {"W": stored, "c": value})
        done = corrected(model, CORRECTION)
        assert operators(done) == {"MatMul": 1, "Add": count}
        expected = OTHER.T.astype(np.float64) @ x + CORRECTION[:, None] + value
        check(done, {"x": x}, [expected])


def test_a_weight_on_the_left_of_a_vector() -> None:
    x = normal(INPUTS)
    nodes = [helper.make_node("MatMul", ["W", "x"], ["y"], name="layer")]
    model = model_of(nodes, {"x": x}, ["y"], {"W": np.ascontiguousarray(WEIGHT.T)})
    done = corrected(model, CORRECTION)
    check(done, {"x": x}, [OTHER.T.astype(np.float64) @ x + CORRECTION])


# --- in a Gemm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 9, 11, newest_opset()])
@pytest.mark.parametrize("beta", [1.0, 2.0, -0.5, 0.0])
@pytest.mark.parametrize("shape", [(OUTPUTS,), (1, OUTPUTS), (5, OUTPUTS), (1,), (5, 1), None])
def test_in_a_gemm(shape: tuple[int, ...] | None, beta: float, opset: int) -> None:
    if shape is None and opset < 11:
        pytest.skip("a Gemm has to have a bias there")
    x = normal(5, INPUTS)
    constants = {"W": np.ascontiguousarray(WEIGHT.T)}
    if shape is not None:
        constants["c"] = normal(*shape, seed=4)
    names_in = ["x", *constants]
    node = helper.make_node("Gemm", names_in, ["y"], name="layer", alpha=0.5, beta=beta, transB=1)
    model = model_of([node], {"x": x}, ["y"], constants, opset=opset)
    done = corrected(model, CORRECTION)
    expected = 0.5 * x.astype(np.float64) @ OTHER + CORRECTION
    if shape is not None:
        expected = expected + beta * constants["c"]
    check(done, {"x": x}, [expected])
    # beta 0 would silence a correction in the bias
    assert operators(done) == ({"Gemm": 1} if beta else {"Gemm": 1, "Add": 1})
    if beta:
        assert "c" not in names(done)


def test_a_gemm_whose_bias_is_computed() -> None:
    x, bias = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    node = helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="layer", beta=3.0)
    model = model_of([node], {"x": x, "c": bias}, ["y"], {"W": WEIGHT})
    done = corrected(model, CORRECTION)
    assert operators(done) == {"Gemm": 1, "Add": 1}
    expected = x.astype(np.float64) @ OTHER + CORRECTION + 3.0 * bias
    check(done, {"x": x, "c": bias}, [expected])


def test_a_gemm_with_its_weight_first() -> None:
    x, bias = normal(INPUTS, 5), normal(OUTPUTS, 5, seed=4)
    node = helper.make_node("Gemm", ["W", "x", "c"], ["y"], name="layer", transA=1)
    model = model_of([node], {"x": x}, ["y"], {"W": WEIGHT, "c": bias})
    done = corrected(model, CORRECTION)
    expected = OTHER.T.astype(np.float64) @ x + CORRECTION[:, None] + bias
    check(done, {"x": x}, [expected])


def test_a_shared_bias_stays_for_the_other_gemm() -> None:
    x, bias = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    nodes = [
        helper.make_node("Gemm", ["x", "W", "c"], ["y"], name="layer"),
        helper.make_node("Add", ["y", "c"], ["z"]),
    ]
    model = model_of(nodes, {"x": x}, ["y", "z"], {"W": WEIGHT, "c": bias})
    done = corrected(model, CORRECTION)
    assert "c" in names(done)
    y = x.astype(np.float64) @ OTHER + CORRECTION + bias
    check(done, {"x": x}, [y, y + bias])


# --- in a convolution ----------------------------------------------------------------------------


def dense_convolution(
    x: Array, kernel: Array, bias: Array, operator: str, **attributes: Any
) -> Array:
    """Return what ONNX's own operator computes with a bias."""
    node = helper.make_node(operator, ["x", "W", "c"], ["y"], **attributes)
    constants = {"W": kernel, "c": bias.astype(np.float32)}
    return run(model_of([node], {"x": x}, ["y"], constants), {"x": x})[0].astype(np.float64)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(
    ("shape", "data", "attributes"),
    [
        ((6, 2, 3, 3), (2, 4, 7, 7), {"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 1]}),
        ((6, 4, 3), (2, 4, 9), {"dilations": [2], "pads": [2, 0]}),
        ((6, 4, 1, 1, 1), (1, 4, 3, 3, 3), {}),
    ],
)
def test_in_a_convolution(
    shape: tuple[int, ...],
    data: tuple[int, ...],
    attributes: dict[str, Any],
    dynamic: bool,
    with_bias: bool,
) -> None:
    x, bias = normal(*data), normal(6, seed=4)
    other, groups = normal(*shape, seed=2), attributes.get("group", 1)
    names_in = ["x", "W", "c"] if with_bias else ["x", "W"]
    node = helper.make_node("Conv", names_in, ["y"], name="layer", **attributes)
    inputs, constants = {"x": x}, {"W": normal(*shape, seed=1)}
    (inputs if dynamic else constants)["c"] = bias
    if not with_bias:
        inputs.pop("c", None)
        constants.pop("c", None)
    model = model_of([node], inputs, ["y"], constants)
    stages = [stage_of(other, FLOAT32, groups)]
    done = written(model, stages, adjustments=[Adjustment(CORRECTION)])
    whole = CORRECTION + (bias if with_bias else 0)
    check(done, inputs, [dense_convolution(x, other, whole, "Conv", **attributes)])
    behind = dynamic and with_bias
    assert operators(done) == ({"Conv": 1, "Add": 1} if behind else {"Conv": 1})
    assert len(names(done)) == 2


def test_a_convolution_of_ir_version_3() -> None:
    x, bias = normal(2, 4, 7, 7), normal(6, seed=4)
    other = normal(6, 4, 3, 3, seed=2)
    node = helper.make_node("Conv", ["x", "W", "c"], ["y"], name="layer")
    constants = {"W": normal(6, 4, 3, 3, seed=1), "c": bias}
    model = model_of([node], {"x": x}, ["y"], constants, opset=8, ir_version=3)
    done = written(model, [stage_of(other, FLOAT32, 1)], adjustments=[Adjustment(CORRECTION)])
    check(done, {"x": x}, [dense_convolution(x, other, CORRECTION + bias, "Conv")])


# --- several sites -------------------------------------------------------------------------------


def test_every_site_has_its_own() -> None:
    """Two Gemms share weight and bias, and a MatMul with an Add that shares its constant."""
    x, z, bias = normal(5, INPUTS), normal(3, INPUTS, seed=5), normal(OUTPUTS, seed=4)
    nodes = [
        helper.make_node("Gemm", ["x", "W", "c"], ["one"], name="layer"),
        helper.make_node("Gemm", ["z", "W", "c"], ["two"]),
        helper.make_node("MatMul", ["z", "W"], ["h"]),
        helper.make_node("Add", ["h", "c"], ["three"]),
    ]
    model = model_of(nodes, {"x": x, "z": z}, ["one", "two", "three"], {"W": WEIGHT, "c": bias})
    corrections = [normal(OUTPUTS, seed=s).astype(np.float64) for s in (6, 7, 8)]
    done = corrected(model, *corrections)
    assert operators(done) == {"Gemm": 2, "MatMul": 1, "Add": 1}
    assert "c" not in names(done)
    expected = [
        data.astype(np.float64) @ OTHER + correction + bias
        for data, correction in zip((x, z, z), corrections, strict=True)
    ]
    check(done, {"x": x, "z": z}, expected)


def test_a_site_without_correction_keeps_its_bias() -> None:
    x, bias = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    nodes = [
        helper.make_node("Gemm", ["x", "W", "c"], ["one"], name="layer"),
        helper.make_node("Gemm", ["x", "W", "c"], ["two"]),
    ]
    model = model_of(nodes, {"x": x}, ["one", "two"], {"W": WEIGHT, "c": bias})
    adjustments = [Adjustment(CORRECTION), Adjustment()]
    done = written(model, [stage_of(OTHER, FLOAT32)], adjustments=adjustments)
    assert "c" in names(done)
    expected = x.astype(np.float64) @ OTHER + bias
    check(done, {"x": x}, [expected + CORRECTION, expected])


def test_two_layers_that_share_the_constant_behind_them() -> None:
    """Each takes a constant of its own along, and the shared one goes with the last."""
    x, bias = normal(5, INPUTS), normal(OUTPUTS, seed=4)
    weights = {"W": WEIGHT, "V": normal(INPUTS, OUTPUTS, seed=9), "c": bias}
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="first"),
        helper.make_node("Add", ["h", "c"], ["y"]),
        helper.make_node("MatMul", ["x", "V"], ["g"], name="second"),
        helper.make_node("Add", ["c", "g"], ["z"]),
    ]
    model = open_model(model_of(nodes, {"x": x}, ["y", "z"], weights))
    (first, second) = find_layers(model)
    chain = Chain((stage_of(OTHER, FLOAT32),))
    target = find_target("onnx")
    change = None
    for layer, sign in ((first, 1.0), (second, -1.0)):
        one = lower_layer(
            layer, chain, model, model.names, target, "float", [Adjustment(sign * CORRECTION)]
        )
        if change is None:
            change = one
        else:
            change.merge(one)
    assert change is not None
    splice(model, change)
    onnx.checker.check_model(model.proto, full_check=True)
    assert "c" not in names(model.proto)
    product = x.astype(np.float64) @ OTHER + bias
    check(model.proto, {"x": x}, [product + CORRECTION, product - CORRECTION])


FORMATS: dict[str, Callable[[], Format]] = {
    "float16": lambda: Format.parse("float16"),
    "int8": lambda: Format.parse("int8"),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_decoded_weights(operator: str, format: str) -> None:
    """A correction is added in the model's type, whatever the weight is kept as."""
    x = normal(5, INPUTS)
    node = helper.make_node(operator, ["x", "W"], ["y"], name="layer")
    model = model_of([node], {"x": x}, ["y"], {"W": WEIGHT})
    stage = stage_of(OTHER, FORMATS[format]())
    done = written(model, [stage], adjustments=[Adjustment(CORRECTION)])
    check(done, {"x": x}, [x.astype(np.float64) @ stage.dense() + CORRECTION])
