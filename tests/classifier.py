"""A small model of three linear layers that can be factorized well, and its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
FEATURES, HIDDEN, CLASSES = 24, 32, 10
RANK = 4
"""Rank of every weight, but for noise of about one percent."""


def weight(inputs: int, outputs: int, seed: int, dtype: str = "float32") -> Array:
    """Return a matrix of rank `RANK` plus noise."""
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((inputs, RANK)) @ rng.standard_normal((RANK, outputs))
    noisy = low + 0.02 * rng.standard_normal((inputs, outputs))
    return np.asarray(noisy / np.sqrt(inputs), dtype)


def weights(dtype: str = "float32") -> dict[str, Array]:
    """Return the classifier's weights by name."""
    return {
        "w1": weight(FEATURES, HIDDEN, 1, dtype),
        "w2": weight(HIDDEN, HIDDEN, 2, dtype),
        "w3": weight(HIDDEN, CLASSES, 3, dtype),
        "bias": np.linspace(-1, 1, CLASSES).astype(dtype),
    }


def classifier(
    dtype: str = "float32", opset: int = 17, ir_version: int = 8, **changed: Array
) -> onnx.ModelProto:
    """Return `x (N, 24) → first → Relu → second → Relu → head → logits (N, 10)`.

    Parameters
    ----------
    changed
        Weights to take instead of the usual ones.
    """
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("Gemm", ["d", "w3", "bias"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", kind, ["N", FEATURES])],
        [helper.make_tensor_value_info("logits", kind, ["N", CLASSES])],
        [numpy_helper.from_array(v, k) for k, v in (weights(dtype) | changed).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def one_node(
    op_type: str,
    inputs: list[tuple[str, int, list[Any] | None]],
    outputs: list[tuple[str, int, list[Any] | None]],
    constants: dict[str, Array] | None = None,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one node named `node`; constants are its last inputs."""
    constants = constants or {}
    node = helper.make_node(
        op_type,
        [name for name, *_ in inputs] + list(constants),
        [name for name, *_ in outputs],
        name="node",
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def samples(count: int, seed: int = 0, dtype: str = "float32") -> Array:
    """Return inputs of the classifier, shape `(count, 24)`."""
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(dtype)


def reference(x: Array, values: dict[str, Array] | None = None) -> Array:
    """Return the classifier's logits as numpy computes them, in float64."""
    w = {k: v.astype(np.float64) for k, v in (values or weights()).items()}
    hidden = np.maximum(np.maximum(x @ w["w1"], 0) @ w["w2"], 0)
    return np.asarray(hidden @ w["w3"] + w["bias"])


FLOAT, INT64, STRING, BOOL = (
    int(TensorProto.FLOAT),
    int(TensorProto.INT64),
    int(TensorProto.STRING),
    int(TensorProto.BOOL),
)
