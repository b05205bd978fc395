"""The whole weight in another format: matrices, kernels and tables, at every opset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import onnxlr
from onnxlr.errors import PlanError, UsageError
from onnxlr.layers import find_layers
from onnxlr.methods import Quantize, QuantizeOptions, Setting, Svd, SvdOptions
from onnxlr.model import open_model
from onnxlr.numbers import Format
from tests.kernels import blocks, joined, quantized, to_int8
from tests.onelayer import LEVELS, distance, ir_version_of, newest_opset, rewritten, run, svd

OPSETS = (7, 9, 13, 21, "newest")
seeds = st.integers(0, 2**16)
FLOATS = {"float32": 1, "float64": 11, "float16": 10}


def normal(seed, *shape, dtype="float32"):
    """Return random numbers whose rows and columns differ in size."""
    generator = np.random.default_rng([seed, *shape])
    values = generator.standard_normal(shape)
    for axis in range(len(shape)):
        sizes = np.exp(generator.standard_normal(shape[axis]))
        values = values * sizes.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return values.astype(dtype)


def one_node(node, feeds, constants, opset, ir_version=None):
    """Return a model of one node; in IR version 3 its constants are inputs, too."""
    inputs = dict(feeds)
    if ir_version == 3:
        inputs |= constants
    kind = next(v.dtype for v in constants.values())
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in inputs.items()
        ],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(kind), None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version or ir_version_of(opset),
    )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph.output[0].CopyFrom(inferred.graph.output[0])
    model.graph.CopyFrom(graph)
    return model


def bytes_of(model):
    return {t.name.split(".")[-1]: len(t.raw_data) for t in model.graph.initializer}


def version_of(opset):
    return newest_opset() if opset == "newest" else opset


def expect(model, feeds, expected, format, limit):
    """Rewrite with every weight in a format; return the new model."""
    changed, reference = rewritten(model, quantized(format))
    assert [n.op_type for n in changed.graph.node] != [n.op_type for n in model.graph.node]
    for level in LEVELS:
        found = run(changed, feeds, level)[0]
        assert found.dtype == run(model, feeds, level)[0].dtype
        assert found.shape == expected.shape
        assert distance(found, expected) < limit
        assert distance(run(reference, feeds, level)[0], expected) < limit
    return changed


def rounded(values, axes, format):
    if format == "int8":
        return to_int8(values.astype(np.float64), axes, values.dtype.name)
    return values.astype(format).astype(np.float64)


# -- matrices --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    seed=seeds,
    opset=st.sampled_from(OPSETS),
    oldest_ir=st.booleans(),
    format=st.sampled_from(["float16", "int8"]),
    layout=st.sampled_from(["right", "left", "stack", "gemm", "gemm transposed"]),
)
def test_matrices_have_a_scale_for_each_output(
    rows, inputs, outputs, seed, opset, oldest_ir, format, layout
):
    weight, x = normal(seed, inputs, outputs), normal(seed + 1, rows, inputs)
    if layout == "stack":
        weight, x = normal(seed, 2, inputs, outputs), normal(seed + 1, 2, rows, inputs)
    dense = rounded(weight, (-2,), format)
    expected, operands, stored, data = x @ dense, ["x", "w"], weight, x
    attributes = {}
    if layout == "left":
        expected, operands, stored, data = (x @ dense).T, ["w", "x"], weight.T, x.T
    elif layout == "gemm transposed":
        stored, attributes = weight.T, {"transB": 1}
    if layout.startswith("gemm"):
        operands = [*operands, "c"]
        expected = expected + 1.0
    node = helper.make_node("Gemm" if "c" in operands else "MatMul", operands, ["y"], **attributes)
    constants = {"w": stored.copy()}
    if "c" in operands:
        constants["c"] = np.ones(1, np.float32)
    version = version_of(opset)
    model = one_node(node, {"x": data.copy()}, constants, version, 3 if oldest_ir else None)
    changed = expect(model, {"x": data}, expected, format, 1e-5)
    assert changed.ir_version == model.ir_version
    if oldest_ir:
        named = {value.name for value in changed.graph.input} - {"x"}
        assert named == {tensor.name for tensor in changed.graph.initializer}
    sizes = bytes_of(changed)
    sizes.pop("c", None)
    stacked = 2 if layout == "stack" else 1
    if format == "int8":
        assert sizes == {"codes": weight.size, "scales": 4 * outputs * stacked}
    else:
        assert sizes == {"codes": 2 * weight.size}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_have_scales_of_their_own_type(dtype):
    weight, x = normal(0, 9, 7, dtype=dtype), normal(1, 4, 9, dtype=dtype)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = one_node(node, {"x": x}, {"w": weight}, 17)
    expected = x.astype(np.float64) @ rounded(weight, (-2,), "int8")
    changed = expect(model, {"x": x}, expected, "int8", 5e-3 if dtype == "float16" else 1e-12)
    types = {t.name.split(".")[-1]: t.data_type for t in changed.graph.initializer}
    assert types == {"codes": onnx.TensorProto.INT8, "scales": FLOATS[dtype]}


# -- kernels ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    operator=st.sampled_from(["ConvTranspose", "Conv"]),
    groups=st.integers(1, 3),
    inputs=st.integers(2, 4),
    outputs=st.integers(2, 4),
    extent=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    seed=seeds,
    opset=st.sampled_from(OPSETS),
    format=st.sampled_from(["float16", "int8"]),
    bias=st.booleans(),
)
def test_kernels_have_a_scale_for_each_output_of_each_group(
    operator, groups, inputs, outputs, extent, seed, opset, format, bias
):
    transposed = operator == "ConvTranspose"
    shape = (inputs * groups, outputs) if transposed else (outputs * groups, inputs)
    kernel = normal(seed, *shape, *extent)
    # of one group, inputs first: a scale covers the inputs and all taps
    axes = (0, *range(2, kernel.ndim))
    parts = [
        to_int8(part, axes) if format == "int8" else part.astype(format).astype(np.float64)
        for part in blocks(kernel, groups, transposed)
    ]
    dense = joined(parts, transposed)
    constants = {"w": kernel}
    if bias:
        constants["b"] = normal(seed + 1, outputs * groups)
    x = normal(seed + 2, 2, inputs * groups, *(size + 1 for size in extent))
    node = helper.make_node(
        operator, ["x", *constants], ["y"], group=groups, strides=[2] * len(extent)
    )
    version = version_of(opset)
    model = one_node(node, {"x": x}, constants, version)
    exact = one_node(node, {"x": x}, constants | {"w": dense.astype(np.float32)}, version)
    expected = run(exact, {"x": x}, LEVELS[0])[0].astype(np.float64)
    changed = expect(model, {"x": x}, expected, format, 1e-5)
    if format == "float16":
        assert bytes_of(changed).pop("codes") == 2 * kernel.size
        return
    assert bytes_of(changed).pop("codes") == kernel.size
    # in groups, what a transposed convolution stores first are inputs: its scales are moved there
    assert bytes_of(changed).pop("scales") == 4 * outputs * groups


# -- tables ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 12),
    width=st.integers(1, 9),
    shape=st.lists(st.integers(1, 3), max_size=3),
    seed=seeds,
    opset=st.sampled_from(OPSETS),
    oldest_ir=st.booleans(),
    dtype=st.sampled_from(["float32", "float16"]),
    format=st.sampled_from(["int8", "float16"]),
    index=st.sampled_from(["int64", "int32"]),
    axis=st.sampled_from([None, 0, -2]),
)
def test_tables_have_a_scale_for_each_row(
    rows, width, shape, seed, opset, oldest_ir, dtype, format, index, axis
):
    assume(format != dtype)
    version = version_of(opset)
    table = normal(seed, rows, width, dtype=dtype)
    lowest = -rows if version >= 11 else 0  # negative indices came with opset 11
    ids = np.random.default_rng(seed).integers(lowest, rows, shape).astype(index)
    node = helper.make_node("Gather", ["w", "x"], ["y"], **({} if axis is None else {"axis": axis}))
    model = one_node(node, {"x": ids}, {"w": table}, version, 3 if oldest_ir else None)
    expected = rounded(table, (1,), format)[ids]
    changed = expect(model, {"x": ids}, expected, format, 1e-6 if dtype == "float32" else 2e-3)
    sizes = {"codes": table.size * (1 if format == "int8" else 2)}
    if format == "int8":
        sizes["scales"] = rows * np.dtype(dtype).itemsize
    assert bytes_of(changed) == sizes


def test_scales_of_a_table_are_by_definition():
    """The largest magnitude of a row is 127 steps; a row of zeros has codes 0 and a tiny scale."""
    table = normal(0, 5, 8)
    table[3] = 0
    table[4] = 1e-42  # below the smallest normal number: a scale would be denormal
    chain = onnxlr.decompose(np.eye(3, dtype=np.float32), "quantize", format="int8")
    assert chain.stages[0].weight.scales.shape == (1, 3)
    (stage,) = (
        Quantize().factorize(table, QuantizeOptions(), table_setting("float32", "int8")).stages
    )
    codes, scales = stage.weight.codes, stage.weight.scales
    assert codes.dtype == np.int8
    assert scales.shape == (5, 1)
    assert np.array_equal(scales[:3, 0], np.abs(table[:3]).max(axis=1) / np.float32(127))
    assert (np.abs(codes[:3]).max(axis=1) == 127).all()
    assert (codes[3:] == 0).all()
    assert (scales[3:, 0] == np.finfo(np.float32).tiny).all()
    assert (np.abs(codes[:3] * scales[:3] - table[:3]) <= 0.5001 * scales[:3]).all()


def table_setting(stored, format):
    return Setting(Format(format), np.dtype(stored), is_table=True, stored=stored)


def test_two_gathers_share_their_table():
    table, ids = normal(0, 30, 16), np.array([[1, 29], [0, 7]])
    nodes = [helper.make_node("Gather", ["w", "x"], [name], name=name) for name in "ab"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ids.shape)],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 2, 16]) for n in "ab"],
        [numpy_helper.from_array(table, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    changed, _ = rewritten(model, quantized("int8"))
    assert bytes_of(changed) == {"codes": 30 * 16, "scales": 30 * 4}
    for found in run(changed, {"x": ids}):
        assert distance(found, to_int8(table.astype(np.float64), (1,))[ids]) < 1e-6


def test_a_rewritten_file_is_smaller_by_what_codes_save(tmp_path):
    table = normal(0, 200, 64)
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="words")
    model = one_node(node, {"x": np.zeros((1, 4), np.int64)}, {"w": table}, 17)
    source, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    result = onnxlr.rewrite(
        source, output, method="quantize", format="int8", tolerance="cosine>=0.99", isolate=False
    )
    (record,) = result.layers
    assert record.choice.method == "quantize"
    saved = source.stat().st_size - output.stat().st_size
    codes = 4 * table.size - (table.size + 4 * 200)
    assert codes - 1500 < saved < codes  # the plan and four nodes are what comes on top
    exact = to_int8(table.astype(np.float64), (1,))
    error = np.linalg.norm(exact - table) / np.linalg.norm(table)
    assert abs(record.error - error) < 1e-6


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("kind", ["matrix", "kernel", "table"])
def test_the_same_format_is_refused(kind, dtype):
    shape = (4, 4, 3) if kind == "kernel" else (4, 4)
    weight = normal(0, *shape, dtype=dtype)
    setting = Setting(
        Format(dtype),
        np.dtype(dtype),
        groups=1 if kind == "kernel" else None,
        is_table=kind == "table",
        stored=dtype,
    )
    with pytest.raises(UsageError, match=f"keeps a {dtype} weight as {dtype}: nothing changes"):
        Quantize().factorize(weight, QuantizeOptions(), setting)


def test_a_table_has_no_svd():
    with pytest.raises(UsageError, match="a table of rows has no product to factorize"):
        Svd().factorize(normal(0, 6, 4), SvdOptions(rank=1), table_setting("float32", "float32"))
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="words")
    model = one_node(node, {"x": np.zeros((1, 4), np.int64)}, {"w": normal(0, 9, 8)}, 17)
    with pytest.raises(UsageError, match="method quantize changes its format"):
        rewritten(model, svd(2))


def test_a_table_gathered_along_its_columns_is_left_alone():
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="columns", axis=1)
    model = one_node(node, {"x": np.zeros((2,), np.int64)}, {"w": normal(0, 9, 8)}, 17)
    (layer,) = find_layers(open_model(model))
    assert layer.skip == "it gathers along axis 1, not rows of a table"
    with pytest.raises(PlanError, match="cannot be rewritten: it gathers along axis 1"):
        onnxlr.rewrite(model, "never", plan=plan_of("columns"), isolate=False)


def plan_of(layer):
    return onnxlr.Plan({layer: quantized("int8")}, None, "onnx", 0, "test")


def test_a_model_of_one_format_is_kept_with_the_reason(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    model = one_node(node, {"x": normal(1, 4, 64)}, {"w": normal(0, 64, 64)}, 17)
    result = onnxlr.rewrite(model, tmp_path / "out.onnx", method="quantize", isolate=False)
    (record,) = result.layers
    assert record.choice.keeps
    assert "nothing changes (give --format)" in str(record.choice.reason)


def test_int8_data_is_refused_for_tables():
    node = helper.make_node("Gather", ["w", "x"], ["y"], name="words")
    model = one_node(node, {"x": np.zeros((1, 4), np.int64)}, {"w": normal(0, 9, 8)}, 17)
    choice = replace(quantized("int8"), activations="dynamic_int8")
    with pytest.raises(UsageError, match="it is a table of rows"):
        rewritten(model, choice)
