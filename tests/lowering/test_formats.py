"""The same chain written with float and cast weights, and as integers, at every opset."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.layers import Layout, Operand, Site, Weight
from onnxlr.lowering import TARGETS, Context, LoweringRefusedError
from onnxlr.lowering.place import Place
from onnxlr.numbers import Format
from onnxlr.stages import Convolution, Linear, Lookup, Stage
from tests.onelayer import (
    LEVELS,
    distance,
    ir_version_of,
    model_of,
    newest_opset,
    rewritten,
    run,
    svd,
)

OPSETS = sorted({7, 9, 13, 17, 21, newest_opset()})
RANK = 6


def _matmul(opset, ir_version, dtype="float32"):
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((24, 16)).astype(dtype)
    x = generator.standard_normal((5, 24)).astype(dtype)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    return model_of(nodes, {"x": x}, ["y"], {"w": weight}, opset, ir_version), x, weight


def _int8_columns(matrix):
    """Round to 255 levels, one scale per column, straight from the definition."""
    scale = np.float32(np.abs(matrix).max(axis=0) / 127)
    return np.clip(np.round(matrix / scale.astype(np.float64)), -127, 127) * scale


def _int8_chain(weight, rank):
    """Return the product of the two rounded factors; signs and order as numpy finds them."""
    u, s, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    return _int8_columns(u[:, :rank] * s[:rank]) @ _int8_columns(vt[:rank])


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("oldest_ir", [False, True])
@pytest.mark.parametrize(
    ("format", "activations", "operators"),
    [
        (None, "float", ["MatMul", "MatMul"]),
        ("float16", "float", ["Cast", "MatMul"] * 2),
        ("int8", "float", ["Cast", "Mul", "MatMul"] * 2),
        (
            "int8",
            "dynamic_int8",
            ["DynamicQuantizeLinear", "Mul", "MatMulInteger", "Cast", "Mul"] * 2,
        ),
    ],
)
def test_one_chain_at_every_opset(opset, oldest_ir, format, activations, operators):
    ir_version = 3 if oldest_ir else ir_version_of(opset)
    model, x, weight = _matmul(opset, ir_version)
    choice = svd(RANK, format, activations)
    if activations == "dynamic_int8" and opset < 11:
        with pytest.raises(LoweringRefusedError, match=f"opset 11, the model has {opset}"):
            rewritten(model, choice)
        return
    changed, reference = rewritten(model, choice)
    assert [node.op_type for node in changed.graph.node] == operators
    assert changed.opset_import == model.opset_import
    assert changed.ir_version == ir_version
    if ir_version == 3:
        inputs = {value.name for value in changed.graph.input}
        assert {t.name for t in changed.graph.initializer} == inputs - {"x"}
    if format == "int8":
        expected = x @ _int8_chain(weight, RANK)
    else:
        u, s, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
        expected = x @ (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
    exact = {None: 1e-6, "float16": 1e-3, "int8": 2e-2}[format]
    for level in LEVELS:
        found = run(changed, {"x": x}, level)[0]
        assert distance(found, expected) < exact
        emission = distance(found, run(reference, {"x": x}, level)[0].astype(np.float64))
        assert emission < (1e-6 if activations == "float" else 3e-2)


@pytest.mark.parametrize(("opset", "works"), [(17, False), (19, True)])
def test_float16_scales_need_opset_19(opset, works):
    model, x, _ = _matmul(opset, 9, "float16")
    choice = svd(RANK, "int8", "dynamic_int8")
    if not works:
        with pytest.raises(LoweringRefusedError, match="float16 scales need opset 19"):
            rewritten(model, choice)
        return
    changed, reference = rewritten(model, choice)
    found, expected = (run(m, {"x": x}, LEVELS[0])[0] for m in (changed, reference))
    assert distance(found, expected.astype(np.float64)) < 5e-3


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_int8_factors_of_other_float_types(dtype):
    model, x, _ = _matmul(17, 8, dtype)
    changed, reference = rewritten(model, svd(RANK, "int8"))
    for level in LEVELS:
        found, expected = (run(m, {"x": x}, level)[0] for m in (changed, reference))
        assert found.dtype == dtype
        assert distance(found, expected.astype(np.float64)) < (5e-3 if dtype == "float16" else 1e-6)


def test_int8_factors_of_convolutions_stacks_and_transposed_sites():
    generator = np.random.default_rng(0)
    for operator, shapes, weight_first in (
        ("Conv", ((2, 12, 5, 5), (10, 12, 1, 1)), False),
        ("MatMul", ((2, 5, 12), (3, 2, 12, 10)), False),
        ("MatMul", ((2, 12, 5), (10, 12)), True),
    ):
        x, weight = (generator.standard_normal(shape).astype("float32") for shape in shapes)
        operands = ["w", "x"] if weight_first else ["x", "w"]
        model = model_of(
            [helper.make_node(operator, operands, ["y"])], {"x": x}, ["y"], {"w": weight}
        )
        changed, reference = rewritten(model, svd(4, "int8"))
        assert {t.data_type for t in changed.graph.initializer} == {1, 3}
        for level in LEVELS:
            found, expected = (run(m, {"x": x}, level)[0] for m in (changed, reference))
            assert distance(found, expected.astype(np.float64)) < 1e-6


def test_bytes_on_disk_are_codes_and_scales():
    model, _, _ = _matmul(17, 8)
    changed, _ = rewritten(model, svd(RANK, "int8"))
    sizes = sorted(len(t.raw_data) for t in changed.graph.initializer)
    assert sizes == sorted([24 * RANK, RANK * 16, 4 * RANK, 4 * 16])


@pytest.mark.parametrize(
    ("kind", "context", "layout", "reason"),
    [
        ("float16", {"activations": "dynamic_int8"}, Layout.LAST, "kept as float16, not int8"),
        (
            "int8",
            {"activations": "dynamic_int8", "dtype": np.dtype("float64")},
            Layout.LAST,
            "no float64 result",
        ),
        ("int8", {"activations": "dynamic_int8"}, Layout.CONVOLUTION, "convolution"),
        ("int8", {"activations": "dynamic_int8", "opset": 10}, Layout.LAST, "opset 11"),
        ("int8", {"activations": "static_int8"}, Layout.LAST, "give calibration data"),
        (
            "float32",
            {"activations": "dynamic_int8"},
            Layout.LAST,
            "float32 numbers with dynamic_int8",
        ),
        ("int8", {"activations": "dynamic_int8"}, Layout.ROWS, "a table of rows"),
        ("float32", {}, Layout.ROWS, "float32 already"),
    ],
)
def test_refusals_name_their_reason(kind, context, layout, reason):
    stage: Stage = Linear.of(np.eye(4))
    if layout is Layout.CONVOLUTION:
        stage = Convolution.of(np.ones((4, 4, 1)), 1, (0,))
    elif layout is Layout.ROWS:
        stage = Lookup.of(np.eye(4))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = Weight(0, "w", onnx.TensorProto(name="w", dims=[4, 4], data_type=1))
    site = Site(0, 0, node, layout, Operand(weight, (), (), 17, ()), False, "x", "node")
    whole = {"opset": 17, "dtype": np.dtype("float32"), **context}
    place = Place(site, stage.encoded(Format(kind), np.float32), ends=True)
    with pytest.raises(LoweringRefusedError, match=reason):
        TARGETS["onnx"].choose(Context(**whole), place)
