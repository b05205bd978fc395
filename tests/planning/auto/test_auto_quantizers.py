"""ONNX Runtime's tools do quantise, whatever holds the weight, and keep quiet."""

from __future__ import annotations

import logging
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlr.planning.auto.quantizers import (
    QuantizerError,
    dynamic_int8,
    matmul_nbits,
    static_int8,
)
from onnxlr.runtime import store_arrays
from tests.onelayer import distance, model_of, run

INPUTS, OUTPUTS = 128, 96
ROWS, WIDTH = 50, 64


def quantised(tool, *arguments, **options):
    """Call a tool, and skip where it does not go with what is installed beside it."""
    try:
        tool(*arguments, **options)
    except AttributeError as error:
        if error.obj is onnx:
            pytest.skip(f"this version of ONNX Runtime needs onnx.{error.name}, which is gone")
        raise
    except ModuleNotFoundError as error:
        pytest.skip(f"this version of ONNX Runtime needs the package {error.name}")


def knows_more_than_4_bits() -> bool:
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    return version >= (1, 22)


@pytest.fixture(params=["initializer", "Constant", "input of IR version 3"])
def model(request, tmp_path):
    weight = np.random.default_rng(0).normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    tensor = numpy_helper.from_array(weight, "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INPUTS])]
    version = 8
    if request.param == "Constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    elif request.param != "initializer":
        version = 3
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", OUTPUTS])
    kept = [] if request.param == "Constant" else [tensor]
    graph = helper.make_graph(nodes, "product", inputs, [y], kept)
    opset = [helper.make_opsetid("", 17 if version > 3 else 8)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=version), path)
    return path, weight


def relative_error(path, weight) -> float:
    x = np.random.default_rng(1).normal(size=(64, INPUTS)).astype(np.float32)
    return distance(run(onnx.load(path), {"x": x})[0], x.astype(np.float64) @ weight)


def operators(path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def types(path) -> Counter[int]:
    """Return the types of stored tensors that are no scalars."""
    return Counter(t.data_type for t in onnx.load(path).graph.initializer if t.dims)


def test_dynamic_int8_multiplies_integers(model, tmp_path):
    path, weight = model
    output = tmp_path / "int8.onnx"
    quantised(dynamic_int8, path, output)
    assert operators(output)["MatMulInteger"] == 1
    assert operators(output)["MatMul"] == 0
    assert [value.name for value in onnx.load(output).graph.input] == ["x"]
    # 127 steps to the largest of about 100 normal values on both sides: not exact, and not far off.
    assert 1e-3 < relative_error(output, weight) < 0.03


def test_dynamic_int8_leaves_other_operators_alone(model, tmp_path):
    path, weight = model
    output = tmp_path / "int8.onnx"
    quantised(dynamic_int8, path, output, operators=["Gather"])
    assert operators(output)["MatMul"] == 1
    assert relative_error(output, weight) < 1e-6


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [32, 128])
def test_4_bits_are_7_steps_to_the_largest_of_a_block(model, tmp_path, block, symmetric):
    path, weight = model
    output = tmp_path / "int4.onnx"
    quantised(matmul_nbits, path, output, block=block, symmetric=symmetric)
    (node,) = (n for n in onnx.load(output).graph.node if n.op_type == "MatMulNBits")
    kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (kept["bits"], kept["block_size"], kept["accuracy_level"]) == (4, block, 4)
    assert len([name for name in node.input if name]) == (3 if symmetric else 4)
    # A normal weight in steps of its block's largest / 7.5, about 2 to 2.7 deviations.
    assert 0.05 < relative_error(output, weight) < 0.15


@pytest.mark.skipif(not knows_more_than_4_bits(), reason="this ONNX Runtime knows 4 bits only")
def test_8_bits_are_255_steps_over_the_range_of_a_block(model, tmp_path):
    path, weight = model
    output = tmp_path / "int8.onnx"
    quantised(matmul_nbits, path, output, bits=8, block=128)
    (node,) = (n for n in onnx.load(output).graph.node if n.op_type == "MatMulNBits")
    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    codes, scales, zeros = (kept[name] for name in node.input[1:4])
    assert codes.dtype == np.uint8
    steps = codes.reshape(OUTPUTS, INPUTS).astype(np.float64) - zeros.reshape(OUTPUTS, 1)
    decoded = (steps * scales.reshape(OUTPUTS, 1)).T
    width = weight.max(axis=0) - weight.min(axis=0)
    np.testing.assert_allclose(scales.ravel(), width / 255, rtol=0.02)
    # Half a step, and another half where the zero point was rounded.
    assert np.all(np.abs(decoded - weight) <= 1.01 * scales.reshape(1, OUTPUTS))
    assert 1e-3 < relative_error(output, weight) < 0.03


def test_versions_that_know_4_bits_only_say_so(model, tmp_path, monkeypatch):
    def old(model, block_size, is_symmetric, accuracy_level, nodes_to_exclude):
        raise AssertionError("it was not to be called")

    monkeypatch.setattr("onnxlr.planning.auto.quantizers._quantizer", lambda: old)
    with pytest.raises(QuantizerError, match=r"to 4 bits only, and does not know bits$"):
        matmul_nbits(model[0], tmp_path / "o.onnx", bits=8)


@pytest.fixture
def table(tmp_path):
    """A table of words, a table of numbers that shapes are taken from, and a matrix."""
    random = np.random.default_rng(3)
    words = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    weight = random.normal(size=(WIDTH, 32)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["rows"]),
        helper.make_node("Gather", ["sizes", "first"], ["size"]),
        helper.make_node("Gather", ["scales", "zero"], ["scale"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["rows", "mean"], ["centred"]),
        helper.make_node("Reshape", ["centred", "size"], ["again"]),
        helper.make_node("Mul", ["again", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weight"], ["y"]),
    ]
    constants = {
        "words": words,
        "sizes": np.array([-1, WIDTH, 7]),
        "first": np.array([0, 1]),
        "scales": np.array([2, 3], np.float32),
        "zero": np.array(0),
        "weight": weight,
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "table.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path, 2 * (words - words.mean(axis=1, keepdims=True)).astype(np.float64) @ weight


@pytest.mark.skipif(not knows_more_than_4_bits(), reason="this ONNX Runtime leaves tables alone")
@pytest.mark.parametrize("block", [32, 128])
def test_tables_of_words_have_4_bits_and_shapes_keep_theirs(table, tmp_path, block):
    path, expected = table
    output = tmp_path / "int4.onnx"
    quantised(matmul_nbits, path, output, block=block, tables=True)
    found = operators(output)
    assert (found["GatherBlockQuantized"], found["Gather"], found["MatMulNBits"]) == (1, 2, 1)
    assert types(output)[TensorProto.UINT4] == 2  # the table and its zero points
    got = run(onnx.load(output), {"ids": np.arange(ROWS)})[0]
    assert 0.05 < distance(got, expected) < 0.25


def test_without_tables_there_is_nothing_to_do(model, tmp_path):
    with pytest.raises(QuantizerError, match="no table of floats"):
        quantised(matmul_nbits, model[0], tmp_path / "o.onnx", tables=True)


def convolutions(opset):
    """Return a model of a Conv with an unfolded normalisation, and a Gemm; and its inputs."""
    random = np.random.default_rng(5)
    constants = {
        "kernel": random.normal(size=(16, 3, 3, 3)).astype(np.float32),
        "gamma": random.uniform(0.1, 4, 16).astype(np.float32),
        "beta": random.normal(size=16).astype(np.float32),
        "mean": random.normal(size=16).astype(np.float32),
        "variance": random.uniform(10, 30, 16).astype(np.float32),
        "weight": random.normal(size=(16, 5)).astype(np.float32),
        "bias": random.normal(size=5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "weight", "bias"], ["y"]),
    ]
    inputs = {"x": random.normal(size=(4, 3, 12, 12)).astype(np.float32)}
    return model_of(nodes, inputs, ["y"], constants, opset=opset), inputs


@pytest.mark.parametrize("data", ["uint8", "int8"])
@pytest.mark.parametrize("opset", [11, 17])
def test_static_int8_has_integers_on_both_sides(tmp_path, opset, data):
    model, inputs = convolutions(opset)
    path, output, feed = tmp_path / "m.onnx", tmp_path / "o.onnx", tmp_path / "feed.npz"
    onnx.save(model, path)
    store_arrays(feed, inputs)
    quantised(static_int8, path, output, [str(feed)], data=data)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer}
    ends = {name: array.dtype for name, array in stored.items() if "zero_point" in name}
    assert np.dtype(data) in {kind for name, kind in ends.items() if stored[name].ndim == 0}
    kernels = [a for a in stored.values() if a.shape == (16, 3, 3, 3)]
    assert [kernel.dtype for kernel in kernels] == [np.dtype(np.int8)]
    # A scale for each channel: each reaches to the end of its range.
    assert np.all(np.abs(kernels[0].astype(int)).reshape(16, -1).max(axis=1) == 127)
    assert not operators(output)["BatchNormalization"]
    (exact,), (found,) = run(model, inputs), run(onnx.load(output), inputs)
    assert 1e-4 < distance(found, exact) < 0.05


def test_ranges_come_from_all_inputs(tmp_path):
    model, inputs = convolutions(17)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    feeds = [str(tmp_path / f"{part}.npz") for part in range(2)]
    store_arrays(tmp_path / "0.npz", {"x": inputs["x"] * np.float32(1e-3)})
    store_arrays(tmp_path / "1.npz", inputs)
    (exact,) = run(model, inputs)
    errors = []
    for files in (feeds[:1], feeds):
        quantised(static_int8, path, tmp_path / "o.onnx", files)
        errors.append(distance(run(onnx.load(tmp_path / "o.onnx"), inputs)[0], exact))
    assert errors[0] > 0.1 > 0.05 > errors[1]


def test_static_int8_without_inputs_says_so(tmp_path):
    with pytest.raises(QuantizerError, match="needs inputs to calibrate on"):
        static_int8(tmp_path / "none.onnx", tmp_path / "o.onnx")


def test_preprocessing_that_fails_is_left_out(tmp_path, monkeypatch):
    model, inputs = convolutions(17)
    onnx.save(model, tmp_path / "m.onnx")
    store_arrays(tmp_path / "feed.npz", inputs)
    shapes = pytest.importorskip("onnxruntime.quantization.shape_inference")

    def fail(*_, **__):
        raise ValueError("symbols")

    monkeypatch.setattr(shapes, "quant_pre_process", fail)
    output = tmp_path / "o.onnx"
    quantised(static_int8, tmp_path / "m.onnx", output, [str(tmp_path / "feed.npz")])
    assert operators(output)["BatchNormalization"] == 1
    assert operators(output)["QuantizeLinear"] > 0


@pytest.mark.parametrize("tool", [dynamic_int8, matmul_nbits])
def test_nothing_is_heard_and_logging_is_as_before(model, tmp_path, tool, capsys):
    root = logging.getLogger()
    before = root.handlers[:], root.level, root.manager.disable
    for name in [name for name in sys.modules if "bits_quantizer" in name]:
        del sys.modules[name]  # which sets the root logger up when it is imported
    quantised(tool, model[0], tmp_path / "o.onnx")
    assert (root.handlers[:], root.level, root.manager.disable) == before
    assert capsys.readouterr() == ("", "")
