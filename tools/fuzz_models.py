"""Small models that the fuzz target starts from, beside those of the tests: ways to a weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["fuzz_models"]

FLOAT = TensorProto.FLOAT


def fuzz_models() -> dict[str, onnx.ModelProto]:
    """Return the models by name."""
    return {
        "moved": _moved(),
        "convolutions": _convolutions(),
        "quantised": _quantised(),
        "loop": _loop(),
        "old": _old(),
        "reshaped": _reshaped(),
    }


def _random(*shape: int) -> np.ndarray:
    generator = np.random.default_rng(shape)
    return generator.standard_normal(shape).astype(np.float32)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    result: Sequence[int | str],
    constants: dict[str, np.ndarray],
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, result)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def _moved() -> onnx.ModelProto:
    """Return products by weights that are transposed, reshaped, cast, squeezed, and shared."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w"], ["b"], "second"),
        helper.make_node("Reshape", ["flat", "shape"], ["r"]),
        helper.make_node("Cast", ["r"], ["c"], to=FLOAT),
        helper.make_node("Identity", ["c"], ["i"]),
        helper.make_node("Gemm", ["b", "i", "bias"], ["d"], "third", transB=1, alpha=0.5),
        helper.make_node("Unsqueeze", ["v", "axes"], ["u"]),
        helper.make_node("Squeeze", ["u", "axes"], ["s"]),
        helper.make_node("MatMul", ["d", "s"], ["y"], "fourth"),
    ]
    constants = {
        "w": _random(8, 12),
        "flat": _random(120).astype(np.float16),
        "shape": np.array([10, 12]),
        "bias": _random(10),
        "v": _random(10, 6),
        "axes": np.array([0]),
    }
    return _model(nodes, {"x": ["n", 12]}, ["n", 6], constants)


def _convolutions() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "k1", "b1"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "k2"], ["b"], "grouped", group=2, strides=[2, 1]),
        helper.make_node("Conv", ["b", "k3"], ["c"], "depthwise", group=8, dilations=[2, 2]),
        helper.make_node(
            "ConvTranspose", ["c", "k4"], ["y"], "back", strides=[2, 2], output_padding=[1, 0]
        ),
    ]
    constants = {
        "k1": _random(8, 4, 3, 3),
        "b1": _random(8),
        "k2": _random(8, 4, 3, 3),
        "k3": _random(8, 1, 2, 2),
        "k4": _random(8, 6, 3, 3),
    }
    return _model(nodes, {"x": ["n", 4, 12, "w"]}, ["n", 6, "a", "b"], constants)


def _quantised() -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["a"], "dequantised"),
        helper.make_node("DynamicQuantizeLinear", ["a"], ["q", "qs", "qz"]),
        helper.make_node("MatMulInteger", ["q", "codes2"], ["i"], "integers"),
        helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "qs"], ["g"]),
        helper.make_node("Gather", ["table", "rows"], ["t"], "embedding"),
        helper.make_node("MatMul", ["g", "t"], ["y"], "two computed"),
    ]
    codes = np.arange(-48, 48, dtype=np.int8)
    constants = {
        "codes": codes.reshape(8, 12),
        "scale": np.full(12, 0.1, np.float32),
        "codes2": codes[:48].reshape(12, 4),
        "table": _random(20, 6),
        "rows": np.array([1, 2, 3, 19]),
    }
    return _model(nodes, {"x": ["n", 8]}, ["n", 6], constants)


def _loop() -> onnx.ModelProto:
    """Return a product within a Loop, by a weight of the main graph, and one by its own."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["p"], "inner"),
            helper.make_node("MatMul", ["p", "own"], ["next"], "own"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, ["n", 8]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, ["n", 8]),
        ],
        [numpy_helper.from_array(_random(8, 8), "own")],
    )
    nodes = [
        helper.make_node("Loop", ["times", "", "x"], ["last"], body=body),
        helper.make_node("LSTM", ["seq", "W", "R"], ["", "h"], "recurrent", hidden_size=4),
        helper.make_node("Unsqueeze", ["last", "zero"], ["seq"]),
        helper.make_node("Squeeze", ["h"], ["y"]),
    ]
    nodes = [nodes[0], nodes[2], nodes[1], nodes[3]]
    constants = {
        "times": np.array(3),
        "w": _random(8, 8),
        "zero": np.array([0]),
        "W": _random(1, 16, 8),
        "R": _random(1, 16, 4),
    }
    return _model(nodes, {"x": ["n", 8]}, ["n", 4], constants)


def _old() -> onnx.ModelProto:
    """Return a model of IR version 3: initializers are inputs, too."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Squeeze", ["v"], ["s"], axes=[0]),
        helper.make_node("Gemm", ["a", "s", "b"], ["y"], "second"),
    ]
    constants = {"w": _random(8, 12), "v": _random(1, 12, 6), "b": _random(6)}
    inputs = {"x": ["n", 8]} | {name: list(value.shape) for name, value in constants.items()}
    return _model(nodes, inputs, ["n", 6], constants, opset=9, ir_version=3)


def _reshaped() -> onnx.ModelProto:
    """Return a model whose shapes are computed: what shape inference follows."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "stack"], ["m"], "stack"),
        helper.make_node("Transpose", ["m"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["left", "t"], ["y"], "left"),
    ]
    constants = {
        "zero": np.array([0]),
        "rest": np.array([2, 6]),
        "stack": _random(1, 6, 8),
        "left": _random(10, 8),
    }
    return _model(nodes, {"x": ["n", 12]}, ["n", 10, 2], constants)
