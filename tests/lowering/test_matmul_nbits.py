"""ONNX Runtime's product with weights of few bits: float data exactly, int8 data nearly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.lowering import LoweringRefusedError
from onnxlr.numbers import Format
from tests.lowering.written import (
    RUNTIME,
    constant_bytes,
    expect,
    operators,
    optimised,
    stage_of,
    written,
)
from tests.onelayer import distance, model_of, newest_opset, run

KINDS = [
    kind
    for kind, since in (("int4", (1, 18)), ("int8", (1, 22)), ("int2", (1, 24)))
    if since <= RUNTIME
]
"""Those that the installed ONNX Runtime multiplies by."""


def _normal(seed, *shape, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _matmul(weight, x, opset=17):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model_of([node], {"x": x}, ["y"], {"w": weight}, opset)


@settings(deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(KINDS),
    group=st.sampled_from([32, 64, 128]),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 20),
    lead=st.lists(st.integers(1, 4), max_size=3),
    no_rows=st.booleans(),
    left=st.booleans(),
    opset=st.sampled_from(sorted({7, 9, 13, 17, 21, newest_opset()})),
    dtype=st.sampled_from(["float32", "float16"]),
    activations=st.sampled_from(["float", "dynamic_int8"]),
    seed=st.integers(0, 2**16),
)
def test_products(
    kind, group, inputs, outputs, lead, no_rows, left, opset, dtype, activations, seed
):
    assume(kind == "int4" or activations != "float")
    if no_rows and len(lead) == 1 and not left:
        lead = [0]
    weight, x = (
        _normal(seed, inputs, outputs, dtype=dtype),
        _normal(seed, *lead, inputs, dtype=dtype),
    )
    stage = stage_of(weight, Format(kind, group))
    dense = stage.weight.decode()
    expected, size = x.astype(np.float64) @ dense, np.abs(x).astype(np.float64) @ np.abs(dense)
    names = ["x", "w"]
    if left:
        names, weight = ["w", "x"], weight.T.copy()
        if lead:
            x, expected, size = (np.swapaxes(a, -1, -2).copy() for a in (x, expected, size))
    node = helper.make_node("MatMul", names, ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight}, opset)
    changed = written(model, [stage], "ort", activations)
    exact = 1e-6 if dtype == "float32" else 2e-3
    expect(changed, {"x": x}, expected, exact if activations == "float" else 1e-2, size)
    turned = {"Transpose": 2} if left and lead else {}
    assert operators(changed) == {"MatMulNBits": 1, **turned}


@pytest.mark.skipif(RUNTIME < (1, 22), reason="older ones multiply some of them in float")
@pytest.mark.parametrize("kind", KINDS)
def test_int8_data_is_really_rounded(kind):
    weight, x = _normal(0, 256, 32), _normal(1, 16, 256)
    stage = stage_of(weight, Format(kind, 32))
    expected = x @ stage.weight.decode()
    changed = written(_matmul(weight, x), [stage], "ort", "dynamic_int8")
    assert 1e-3 < distance(run(changed, {"x": x})[0], expected) < 2e-2


@pytest.mark.parametrize("bias", [None, "row", "full"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0)])
def test_gemm(left, bias, alpha, beta):
    weight = _normal(0, 70, 5)
    stage = stage_of(weight, Format("int4", 32))
    x = _normal(1, 70, 3) if left else _normal(1, 3, 70)
    dense = stage.weight.decode()
    expected = alpha * (dense.T @ x if left else x @ dense)
    constants = {"w": weight.T.copy() if left else weight}
    names = ["w", "x"] if left else ["x", "w"]
    if bias:
        shape = expected.shape if bias == "full" else expected.shape[1:]
        constants["c"] = _normal(2, *shape)
        names.append("c")
        expected = expected + beta * constants["c"]
    node = helper.make_node("Gemm", names, ["y"], alpha=alpha, beta=beta)
    changed = written(model_of([node], {"x": x}, ["y"], constants), [stage], "ort")
    assert operators(changed)["MatMulNBits"] == 1
    expect(changed, {"x": x}, expected, 1e-6)


@pytest.mark.parametrize(("kind", "bits"), [("int2", 2), ("int4", 4), ("int8", 8)])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 16), (100, 7), (5, 1)])
def test_bytes(kind, bits, group, inputs, outputs):
    weight, x = _normal(0, inputs, outputs), _normal(1, 2, inputs)
    changed = written(
        _matmul(weight, x), [stage_of(weight, Format(kind, group))], "ort", "dynamic_int8"
    )
    groups = -(-inputs // group)
    size = groups * outputs * (group * bits // 8 + 4)
    if kind != "int8":
        size += outputs * -(-groups * bits // 8)
    assert constant_bytes(changed) == size


@pytest.mark.parametrize(("kind", "bits"), [("int2", 2), ("int4", 4), ("int8", 8)])
def test_the_layout_is_the_operators(kind, bits):
    """Codes of one output and group lie together, the first in the lowest bits; the rest are 0."""
    weight, x = _normal(0, 70, 3), _normal(1, 2, 70)
    stage = stage_of(weight, Format(kind, 32))
    changed = written(_matmul(weight, x), [stage], "ort", "dynamic_int8")
    (node,) = changed.graph.node
    tensors = {t.name: numpy_helper.to_array(t) for t in changed.graph.initializer}
    blocks, scales, *zeros = (tensors[name] for name in node.input[1:])
    assert blocks.shape == (3, 3, 32 * bits // 8)
    assert scales.shape == (3, 3)
    dense = np.pad(stage.weight.decode(), [(0, 26), (0, 0)])
    for output, entry in ((0, 0), (1, 33), (2, 69), (0, 70), (1, 95), (2, 71)):
        position = entry % 32
        byte = int(blocks[output, entry // 32, position * bits // 8])
        code = (byte >> (position * bits % 8)) & (2**bits - 1)
        zero = 128
        if zeros:
            first = entry // 32 * bits
            zero = (int(zeros[0][output, first // 8]) >> (first % 8)) & (2**bits - 1)
        value = (code - zero) * float(scales[output, entry // 32])
        assert value == dense[entry, output]


@pytest.mark.parametrize(
    ("shape", "x_shape", "format", "reason"),
    [
        ((40, 8), (2, 40), Format("int4"), "it has one scale for a whole column"),
        ((2, 40, 8), (2, 3, 40), Format("int4", 32), "it is a stack of matrices"),
        ((40, 8), (2, 40), Format("float16"), "its numbers are kept as float16, not as integers"),
    ],
)
def test_refusals(shape, x_shape, format, reason):
    weight, x = _normal(0, *shape), _normal(1, *x_shape)
    with pytest.raises(LoweringRefusedError, match=f"of dynamic_int8 data: {reason}"):
        written(_matmul(weight, x), [stage_of(weight, format)], "ort", "dynamic_int8")


@pytest.mark.parametrize("dtype", ["float64"])
def test_other_types_are_decoded_instead(dtype):
    weight, x = _normal(0, 40, 8, dtype=dtype), _normal(1, 2, 40, dtype=dtype)
    stage = stage_of(weight, Format("int4", 32))
    changed = written(_matmul(weight, x), [stage], "ort")
    assert "MatMulNBits" not in operators(changed)
    expect(changed, {"x": x}, x @ stage.weight.decode(), 1e-7)


def test_a_site_that_takes_the_matrix_transposed_decodes_it():
    weight, x = _normal(0, 64, 64), _normal(1, 64, 64)
    stage = stage_of(weight, Format("int4", 32))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "w"], ["y"], transB=1),
    ]
    changed = written(model_of(nodes, {"x": x}, ["y"], {"w": weight}), [stage], "ort")
    assert operators(changed)["MatMulNBits"] == 1
    dense = stage.weight.decode()
    expect(changed, {"x": x}, x @ dense @ dense.T, 1e-6)


@pytest.mark.parametrize("kind", ["int2", "int8"])
def test_float_data_and_slow_kinds_are_decoded_when_the_model_is_loaded(kind):
    weight, x = _normal(0, 64, 8), _normal(1, 3, 64)
    stage = stage_of(weight, Format(kind, 32))
    changed = written(_matmul(weight, x), [stage], "ort")
    assert operators(optimised(changed)) == {"MatMul": 1}
    expect(changed, {"x": x}, x @ stage.weight.decode(), 1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_inside_a_function(nested, tmp_path):
    """A function says itself whose operators it has, also those of its subgraphs."""
    weight, x = _normal(0, 64, 48), _normal(1, 5, 64)
    body = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight, "w")),
        helper.make_node("MatMul", ["a", "w"], ["r"], name="layer"),
    ]
    inputs, feeds = ["a"], {"x": x}
    if nested:
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        taken, other = (
            helper.make_graph(nodes, "branch", [], [result])
            for nodes in (body, [helper.make_node("Identity", ["a"], ["r"])])
        )
        body = [helper.make_node("If", ["on"], ["r"], then_branch=taken, else_branch=other)]
        inputs, feeds = ["a", "on"], {"x": x, "on": np.array(True)}
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("own", "F", inputs, ["r"], body, [opset])
    call = helper.make_node("F", list(feeds), ["y"], domain="own")
    graph = helper.make_graph(
        [call],
        "g",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 48])],
    )
    model = helper.make_model(
        graph,
        opset_imports=[opset, helper.make_opsetid("own", 1)],
        functions=[function],
        ir_version=8,
    )
    stage = stage_of(weight, Format("int4", 32))
    changed = written(model, [stage], "ort")
    domains = {entry.domain: entry.version for entry in changed.functions[0].opset_import}
    assert domains == {"": 17, "com.microsoft": 1}
    expect(changed, feeds, x @ stage.weight.decode(), 1e-6)


@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
def test_a_float16_model_is_proved(activations, tmp_path):
    weight, bias = _normal(0, 64, 48, dtype="float16"), _normal(1, 48, dtype="float16")
    x = _normal(2, 8, 64, dtype="float16")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "c"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"w": weight, "c": bias})
    result = onnxlr.rewrite(
        model,
        tmp_path / "o.onnx",
        method="quantize",
        format="int4",
        target="ort",
        activations=activations,
        calibration=[{"x": _normal(seed, 8, 64, dtype="float16") + 1} for seed in range(10)],
        isolate=False,
    )
    changed = onnx.load(tmp_path / "o.onnx")
    assert operators(changed) == {"MatMulNBits": 1, "Add": 1}
    assert [c.proof for c in result.report.checks if c.passed].count("emission") == 2
    found = run(changed, {"x": x})[0]
    assert found.dtype == np.float16
    assert distance(found, x.astype(np.float64) @ weight + bias) < 0.15
