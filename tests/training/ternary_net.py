"""A small network whose layers are large enough that ternary ones take fewer bytes, and data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["CLASSES", "cross_entropy", "samples", "ternary_net"]

Array = np.ndarray[Any, Any]

CLASSES = 3


def ternary_net(seed: int = 0) -> onnx.ModelProto:
    """Return `image (n, 2, 6, 6) → logits (n, 3)`.

    A small 3×3 convolution with BatchNormalization, a larger one, one of two groups, a MatMul whose
    weight is behind a Transpose, and a Gemm whose weight is `(outputs, inputs)`.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    values = {
        "stem": normal(24, 2, 3, 3),
        "scale": np.full(24, 1.5, np.float32),
        "shift": np.full(24, 0.1, np.float32),
        "mean": np.zeros(24, np.float32),
        "variance": np.ones(24, np.float32),
        "wide": normal(32, 24, 3, 3),
        "wide.bias": np.zeros(32, np.float32),
        "grouped": normal(64, 16, 3, 3),
        "dense": normal(96, 64),
        "head": normal(64, 96),
        "head.bias": np.zeros(64, np.float32),
        "last": normal(64, CLASSES),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "stem"], ["a"], "stem", pads=[1] * 4),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"], "norm"),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "wide", "wide.bias"], ["d"], "wide", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["d"], ["e"]),
        node("Conv", ["e", "grouped"], ["f"], "grouped", pads=[1] * 4, group=2),
        node("Relu", ["f"], ["g"]),
        node("GlobalAveragePool", ["g"], ["h"]),
        node("Flatten", ["h"], ["i"]),
        node("Transpose", ["dense"], ["dense.turned"], "turn", perm=[1, 0]),
        node("MatMul", ["i", "dense.turned"], ["j"], "dense"),
        node("Relu", ["j"], ["k"]),
        node("Gemm", ["k", "head", "head.bias"], ["l"], "head", transB=1),
        node("Relu", ["l"], ["m"]),
        node("MatMul", ["m", "last"], ["logits"], "last"),
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "ternary_net",
        [helper.make_tensor_value_info("image", float32, ["n", 2, 6, 6])],
        [helper.make_tensor_value_info("logits", float32, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def samples(count: int, seed: int = 1) -> dict[str, Array]:
    """Return noise with one of three patterns in it, and which one as `label`."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((CLASSES, 2, 6, 6))
    label = rng.integers(0, CLASSES, count)
    noise = rng.standard_normal((count, 2, 6, 6))
    return {"image": (patterns[label] + 0.5 * noise).astype(np.float32), "label": label}


def cross_entropy(outputs: Any, batch: Any) -> Any:
    """Return the loss of the labels."""
    import torch

    return torch.nn.functional.cross_entropy(outputs["logits"], batch["label"])
