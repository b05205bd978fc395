"""The op library that tests use, and a model that tells whether it did."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr

Array = np.ndarray[Any, Any]
INPUTS, OUTPUTS = 32, 16


def installed_library() -> str:
    """Return the op library's file; skip where there is none, but not where it was to be built."""
    try:
        return onnxlr.get_library_path()
    except onnxlr.LibraryMissingError as error:
        if os.environ.get("ONNXLR_OPS") == "required":
            raise
        pytest.skip(str(error))


def ternary() -> Array:
    """Return the model's matrix (inputs, outputs) of −1, 0 and 1."""
    return np.random.default_rng(3).integers(-1, 2, (INPUTS, OUTPUTS))


def bias() -> Array:
    """Return the model's bias (outputs)."""
    return np.arange(OUTPUTS, dtype=np.float32)


def telling_model(with_function: bool = True) -> onnx.ModelProto:
    """Return `x (rows, 32) → TernaryMatMul → y (rows, 16)`.

    The kernel gives `x @ ternary() + bias()`. The function, where there is one, leaves the product
    away: it gives the bias.
    """
    constants = {
        "codes": packed(ternary()),
        "scales": np.ones((1, 1, OUTPUTS), np.float32),
        "input_scale": np.ones(INPUTS, np.float32),
        "bias": bias(),
    }
    attributes = {
        "K": INPUTS,
        "N": OUTPUTS,
        "group_size": INPUTS,
        "terms": 1,
        "layout": 1,
        "accuracy_level": 0,
    }
    node = helper.make_node(
        "TernaryMatMul", ["x", *constants], ["y"], name="telling", domain="onnxlr", **attributes
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", OUTPUTS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("onnxlr", 1)]
    functions = [_only_the_bias(list(constants), list(attributes))] if with_function else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def packed(matrix: Array) -> Array:
    """Pack a matrix whose sizes are multiples of 16, byte by byte as docs/operators.md says."""
    inputs, outputs = matrix.shape
    codes = np.zeros((1, outputs // 16, inputs // 16, 64), np.uint8)
    for k, n in np.ndindex(inputs, outputs):
        g, j = divmod(k % 16, 4)
        codes[0, n // 16, k // 16, 4 * (n % 16) + j] |= int(matrix[k, n] + 1) << (2 * g)
    return codes


def _only_the_bias(constants: list[str], attributes: list[str]) -> onnx.FunctionProto:
    nodes = [
        helper.make_node("ReduceMax", ["X"], ["largest"], axes=[-1], keepdims=1),
        helper.make_node("Sub", ["largest", "largest"], ["nothing"]),
        helper.make_node("Add", ["nothing", "bias"], ["Y"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    inputs = ["X", *constants]
    return helper.make_function(
        "onnxlr", "TernaryMatMul", inputs, ["Y"], nodes, opsets, attributes=attributes
    )
