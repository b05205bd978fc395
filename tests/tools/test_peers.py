"""Tests of `tools/peers.py`: ONNX Runtime's tools do quantise, whatever holds the weight."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools.peers import dynamic_int8, matmul_4_bits

INPUTS, OUTPUTS = 128, 96


@pytest.fixture(params=["initializer", "Constant"])
def model(request, tmp_path):
    weight = np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    tensor = numpy_helper.from_array(weight, "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    if request.param == "Constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INPUTS])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", OUTPUTS])
    kept = [tensor] if request.param == "initializer" else []
    graph = helper.make_graph(nodes, "product", [x], [y], kept)
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path, weight


def _relative_error(path, weight) -> float:
    x = np.random.default_rng(1).normal(size=(64, INPUTS)).astype(np.float32)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    exact = x.astype(np.float64) @ weight
    return float(np.linalg.norm(session.run(None, {"x": x})[0] - exact) / np.linalg.norm(exact))


def _operators(path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_dynamic_int8_multiplies_integers(model, tmp_path):
    path, weight = model
    output = tmp_path / "int8.onnx"
    try:
        dynamic_int8(path, output)
    except AttributeError as error:
        if error.obj is onnx:
            pytest.skip(f"this version of ONNX Runtime needs onnx.{error.name}, which is gone")
        raise
    assert _operators(output)["MatMulInteger"] == 1
    assert _operators(output)["MatMul"] == 0
    # 127 steps to the largest of about 100 normal values on both sides: not exact, and not far off.
    assert 1e-3 < _relative_error(output, weight) < 0.03


def test_dynamic_int8_leaves_other_operators_alone(model, tmp_path):
    path, weight = model
    output = tmp_path / "int8.onnx"
    dynamic_int8(path, output, operators=["Gather"])
    assert _operators(output)["MatMul"] == 1
    assert _relative_error(output, weight) < 1e-6


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [32, 128])
def test_4_bits_are_7_steps_to_the_largest_of_a_block(model, tmp_path, block, symmetric):
    path, weight = model
    output = tmp_path / "int4.onnx"
    try:
        matmul_4_bits(path, output, block=block, symmetric=symmetric)
    except ModuleNotFoundError as error:
        pytest.skip(f"this version of ONNX Runtime needs the package {error.name}")
    (node,) = (n for n in onnx.load(output).graph.node if n.op_type == "MatMulNBits")
    kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (kept["bits"], kept["block_size"], kept["accuracy_level"]) == (4, block, 4)
    assert len([name for name in node.input if name]) == (3 if symmetric else 4)
    # A normal weight in steps of its block's largest / 7.5, about 2 to 2.7 deviations.
    assert 0.05 < _relative_error(output, weight) < 0.15
