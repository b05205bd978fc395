"""Tables of rows in few bits: the rows that are asked for are gathered as codes, then decoded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxlr.lowering import LoweringRefusedError
from onnxlr.numbers import Format
from tests.lowering.written import (
    constant_bytes,
    expect,
    operators,
    optimised,
    table_of,
    written,
)
from tests.onelayer import ir_version_of, model_of, newest_opset


def _model(table, indices, opset=17, dims=()):
    """Return a Gather of rows, which come out flat; `dims` as far as the model is to know them."""
    known = dims is not None
    inputs = [helper.make_tensor_value_info("x" if known else "flat", _kind(indices.dtype), dims)]
    nodes = [
        helper.make_node("Gather", ["t", "x"], ["rows"], axis=0),
        helper.make_node("Reshape", ["rows", "all"], ["y"]),
    ]
    if not known:  # what an input shapes has a rank that nobody knows
        inputs[0] = helper.make_tensor_value_info("flat", _kind(indices.dtype), ["n"])
        inputs.append(helper.make_tensor_value_info("shape", TensorProto.INT64, ["rank"]))
        nodes.insert(0, helper.make_node("Reshape", ["flat", "shape"], ["x"]))
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("y", _kind(table.dtype), [None])],
        [numpy_helper.from_array(table, "t"), numpy_helper.from_array(np.array([-1]), "all")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version_of(opset)
    )


def _kind(dtype):
    return helper.np_dtype_to_tensor_dtype(dtype)


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 150),
    shape=st.lists(st.integers(0, 4), max_size=3),
    format=st.builds(
        Format,
        st.sampled_from(["int2", "int4", "int8", "float16"]),
        st.sampled_from([None, 32, 64, 128]),
    ),
    known=st.sampled_from(["all", "rank", "nothing"]),
    opset=st.sampled_from(sorted({7, 9, 11, 13, 17, 21, newest_opset()})),
    index=st.sampled_from(["int32", "int64"]),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
    seed=st.integers(0, 2**16),
)
def test_rows(rows, width, shape, format, known, opset, index, dtype, seed):
    assume(known != "nothing" or 0 not in shape)  # in a Reshape's shape, 0 means another thing
    kind = "float32" if format.is_float and dtype == "float16" else format.kind
    kept = Format(kind, None if format.is_float else format.group)
    generator = np.random.default_rng([seed, rows, width])
    table = generator.standard_normal((rows, width)).astype(dtype)
    least = -rows if opset >= 11 else 0
    indices = generator.integers(least, rows, shape).astype(index)
    dims = {"all": shape, "rank": [f"d{n}" for n in range(len(shape))], "nothing": None}[known]
    stage = table_of(table, kept)
    parts = kept.is_packed or (kept.group or width) < width
    if dims is None and parts:
        with pytest.raises(LoweringRefusedError, match="rank of the indices is not known"):
            written(_model(table, indices, opset, dims), [stage])
        return
    changed = written(_model(table, indices, opset, dims), [stage])
    limit = 1e-3 if dtype == "float16" else 1e-7
    feeds = {"x": indices}
    if dims is None:
        feeds = {"flat": indices.reshape(-1), "shape": np.array(indices.shape, np.int64)}
    expect(changed, feeds, stage.weight.decode()[indices].reshape(-1), limit)


@pytest.mark.parametrize("kind", ["int2", "int4"])
@pytest.mark.parametrize(("width", "group"), [(64, 32), (70, 32), (7, None)])
def test_the_table_is_never_unpacked_whole(kind, width, group):
    table = np.random.default_rng(0).standard_normal((50, width)).astype("float32")
    indices = np.array([[3, 3], [0, 49]])
    stage = table_of(table, Format(kind, group))
    changed = written(_model(table, indices, 17, indices.shape), [stage])
    run = optimised(changed)
    bits, groups = int(kind[3:]), -(-width // group) if group else 1
    sizes = {tuple(t.dims): t.data_type for t in run.graph.initializer if 50 in t.dims}
    assert sizes == {
        (50, 1, -(-width * bits // 8)): TensorProto.UINT8,
        (50, 1, -(-groups * bits // 8)): TensorProto.UINT8,
        (50, groups, 1)[: 3 if groups > 1 else 2]: TensorProto.FLOAT,
    }
    assert operators(run)["Gather"] == 3
    padding = 50 * 2  # each row's codes, and each row's zero points, begin a byte
    each = 8 // bits
    steps = 4 * (each + 1) + (4 * group if groups > 1 else 0)
    assert stage.nbytes <= constant_bytes(changed) <= stage.nbytes + padding + steps


def test_int8_rows_with_one_scale_need_four_nodes():
    table = np.random.default_rng(0).standard_normal((9, 5)).astype("float32")
    indices = np.arange(4)
    changed = written(_model(table, indices, 17, (4,)), [table_of(table, Format("int8"))])
    assert operators(changed) == {"Gather": 2, "Cast": 1, "Mul": 1, "Reshape": 1}


def test_the_result_can_be_used_and_is_the_models_output():
    table = np.random.default_rng(0).standard_normal((9, 40)).astype("float32")
    indices = np.arange(6).reshape(2, 3)
    nodes = [
        helper.make_node("Gather", ["t", "x"], ["rows"]),
        helper.make_node("Neg", ["rows"], ["y"]),
    ]
    model = model_of(nodes, {"x": indices}, [], {"t": table})
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 40]))
    stage = table_of(table, Format("int4", 32))
    expect(written(model, [stage]), {"x": indices}, -stage.weight.decode()[indices], 1e-7)
