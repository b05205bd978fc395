"""Where in a model file a ternary node and its constants may stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlr.operators.functions import add_functions
from tests.operators.oplibrary import installed_library
from tests.operators.ternary_nodes import (
    Array,
    TernaryNode,
    close,
    conv_node,
    matmul_node,
    open_session,
)

NODES = {
    "matmul": matmul_node(70, 70, group_size=32, terms=2),
    "matmul level 0": matmul_node(70, 70, level=0),
    "conv": conv_node(6, 6, (3, 3), group=2, pads=(1,) * 4),
    "conv level 0": conv_node(6, 6, (3, 3), level=0, pads=(1,) * 4, terms=2),
}
each_node = pytest.mark.parametrize("node", NODES.values(), ids=NODES)


def x_of(node: TernaryNode, seed: int = 0) -> Array:
    shape = (3, 70) if node.operator == "TernaryMatMul" else (2, 6, 5, 9)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parts(node: TernaryNode) -> tuple[onnx.ModelProto, onnx.NodeProto, list[onnx.TensorProto]]:
    """Return a model, its node and its constants."""
    model = onnx.load_from_string(node.model([None] * node.rank))
    return model, model.graph.node[0], list(model.graph.initializer)


def options_of(**entries: str) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(installed_library())
    for key, value in entries.items():
        options.add_session_config_entry("session." + key, value)
    return options


def check(node: TernaryNode, session: ort.InferenceSession, **feeds: Array) -> None:
    for seed in range(2):
        x = x_of(node, seed)
        close(session.run(None, {"X": x, **feeds})[0], node.expected(x))


@each_node
@pytest.mark.parametrize("offset", [0, 1, 4, 4096])
def test_external_data(node: TernaryNode, offset: int, tmp_path: Path) -> None:
    """Where files are mapped, constants lie wherever the file says, at a multiple of nothing."""
    model, _, constants = parts(node)
    content = bytearray()
    for constant in constants:
        content += bytes(-len(content) % 4096 + offset)
        for key, value in (("location", "data"), ("offset", len(content))):
            constant.external_data.add(key=key, value=str(value))
        content += constant.raw_data
        constant.external_data.add(key="length", value=str(len(constant.raw_data)))
        constant.data_location = TensorProto.EXTERNAL
        constant.ClearField("raw_data")
    (tmp_path / "data").write_bytes(content)
    onnx.save(model, tmp_path / "model.onnx")
    check(node, ort.InferenceSession(tmp_path / "model.onnx", options_of()))


@each_node
def test_initializers_as_inputs_of_version_3(node: TernaryNode) -> None:
    model = onnx.load_from_string(node.model(as_inputs=tuple(node.constants)))
    model.ir_version = 3
    check(node, open_session(model))


@each_node
def test_sparse_constants(node: TernaryNode) -> None:
    model, _, constants = parts(node)
    for constant in constants:
        dense = numpy_helper.to_array(constant)
        if dense.dtype != np.float32:
            continue
        places = np.flatnonzero(dense)
        values = numpy_helper.from_array(dense.ravel()[places], constant.name)
        indices = numpy_helper.from_array(places.astype(np.int64), constant.name + "_places")
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, indices, dense.shape)
        )
        model.graph.initializer.remove(constant)
    check(node, open_session(model))


@each_node
def test_constant_nodes(node: TernaryNode) -> None:
    model, _, constants = parts(node)
    del model.graph.initializer[:]
    for constant in constants:
        made = helper.make_node("Constant", [], [constant.name], value=constant)
        model.graph.node.insert(0, made)
    check(node, open_session(model))


@each_node
@pytest.mark.parametrize("kind", ["Loop", "Scan"])
def test_in_the_body_of_a_loop(node: TernaryNode, kind: str) -> None:
    """Applied twice, with constants of the body's own."""
    model, inner, constants = parts(node)
    floats = TensorProto.FLOAT
    inner.input[0], inner.output[0] = "before", "after"
    shape = list(x_of(node).shape)
    before = helper.make_tensor_value_info("before", floats, shape)
    after = helper.make_tensor_value_info("after", floats, shape)
    if kind == "Loop":
        i = helper.make_tensor_value_info("i", TensorProto.INT64, [])
        on, still = (
            helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("on", "still")
        )
        keep = helper.make_node("Identity", ["on"], ["still"])
        body = helper.make_graph([inner, keep], "b", [i, on, before], [still, after], constants)
        outer = helper.make_node("Loop", ["twice", "", "X"], ["Y"], body=body)
    else:
        i, j = (helper.make_tensor_value_info(n, TensorProto.INT64, []) for n in ("i", "j"))
        same = helper.make_node("Identity", ["i"], ["j"])
        body = helper.make_graph([inner, same], "b", [before, i], [after, j], constants)
        outer = helper.make_node(
            "Scan", ["X", "steps"], ["Y", "seen"], body=body, num_scan_inputs=1
        )
    model.graph.node[0].CopyFrom(outer)
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(np.array(2), "twice"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.int64), "steps"))
    x = x_of(node)
    found = open_session(model).run(["Y"], {"X": x})[0]
    close(found, node.expected(node.expected(x).astype(np.float32)))


@each_node
@pytest.mark.parametrize("inside", [True, False])
def test_in_a_function(node: TernaryNode, inside: bool) -> None:
    """A function's constants are Constant nodes of its own, or come to it as inputs."""
    model, inner, constants = parts(node)
    names = [constant.name for constant in constants]
    body = [onnx.NodeProto()]
    body[0].CopyFrom(inner)
    if inside:
        body[:0] = [helper.make_node("Constant", [], [c.name], value=c) for c in constants]
        del model.graph.initializer[:]
    inputs = ["X"] if inside else ["X", *names]
    function = helper.make_function("mine", "Layer", inputs, ["Y"], body, model.opset_import)
    model.functions.append(function)
    inner.CopyFrom(helper.make_node("Layer", inputs, ["Y"], domain="mine"))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    check(node, open_session(model))


@each_node
def test_a_node_after_itself(node: TernaryNode) -> None:
    """Memory of one node's output is that of another's: nothing is read after it was written."""
    model, first, _ = parts(node)
    del model.graph.node[:]
    for i in range(4):
        copy = model.graph.node.add()
        copy.CopyFrom(first)
        copy.name = f"node {i}"
        copy.input[0], copy.output[0] = ("X" if i == 0 else f"y{i - 1}"), f"y{i}"
    model.graph.output[0].name = "y3"
    session = open_session(model)
    for rows in (3, 1, 2):  # batches of a session differ
        x = x_of(node)[:rows]
        expected = x
        for _ in range(4):
            expected = node.expected(expected.astype(np.float32))
        close(session.run(None, {"X": x})[0], expected)


@each_node
def test_a_model_that_onnx_runtime_has_saved(node: TernaryNode, tmp_path: Path) -> None:
    """It runs with the library, and has lost the functions."""
    model, _, _ = parts(node)
    add_functions(model)
    file = tmp_path / "saved.onnx"
    options = options_of()
    options.optimized_model_filepath = str(file)
    check(node, ort.InferenceSession(model.SerializeToString(), options))
    saved = onnx.load(file)
    assert not saved.functions
    assert [n.op_type for n in saved.graph.node] == [node.operator]
    check(node, ort.InferenceSession(file, options_of()))


@each_node
def test_the_format_of_onnx_runtime(node: TernaryNode, tmp_path: Path) -> None:
    file = tmp_path / "saved.ort"
    options = options_of(save_model_format="ORT")
    options.optimized_model_filepath = str(file)
    ort.InferenceSession(node.model(), options)
    check(node, ort.InferenceSession(file, options_of(load_model_format="ORT")))


@each_node
@pytest.mark.parametrize(
    "attributes",
    [
        {"enable_cpu_mem_arena": False},
        {"enable_mem_pattern": False},
        {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL},
        {"execution_mode": ort.ExecutionMode.ORT_PARALLEL, "inter_op_num_threads": 2},
        {"intra_op_num_threads": 7},
        {"use_deterministic_compute": True},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
def test_options_of_sessions(node: TernaryNode, attributes: dict[str, Any]) -> None:
    options = options_of()
    for name, value in attributes.items():
        setattr(options, name, value)
    check(node, ort.InferenceSession(node.model(), options))


NAMES = """
from tests.operators.ternary_nodes import matmul_node, open_session
print(open_session(matmul_node(32, 16).model([None, 32])).get_outputs()[0].shape[0])
"""


def test_names_of_unknown_sizes_are_those_of_one_process() -> None:
    """ONNX Runtime saves them with a model, where a later process must not draw them again."""
    installed_library()
    root = Path(__file__).resolve().parents[2]
    names = [
        subprocess.run(
            [sys.executable, "-c", NAMES], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert len(set(names)) == 2
