"""A small convolutional model with everything that SVD training tells apart, and data for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

__all__ = ["CLASSES", "SIZE", "images", "ort_run", "small_cnn", "softmax_loss"]

Array = np.ndarray[Any, Any]

SIZE, CLASSES = 8, 4


def small_cnn(seed: int = 0) -> onnx.ModelProto:
    """Return `image (n, 3, 8, 8) → logits (n, 4)`.

    A 3×3 convolution of stride 2 with BatchNormalization, one of two groups, a depthwise one, a
    1×1 one, and a Gemm whose weight is `(outputs, inputs)`.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    values = {
        "stem": normal(12, 3, 3, 3),
        "scale": np.ones(12, np.float32),
        "shift": np.zeros(12, np.float32),
        "mean": np.zeros(12, np.float32),
        "variance": np.ones(12, np.float32),
        "grouped": normal(16, 6, 3, 3),
        "grouped.bias": np.zeros(16, np.float32),
        "depthwise": normal(16, 1, 3, 3),
        "pointwise": normal(20, 16, 1, 1),
        "head": normal(CLASSES, 20),
        "head.bias": np.zeros(CLASSES, np.float32),
    }

    def conv(name: str, inputs: list[str], output: str, **more: Any) -> onnx.NodeProto:
        return helper.make_node("Conv", inputs, [output], name, **more)

    nodes = [
        conv("stem", ["image", "stem"], "a", pads=[1] * 4, strides=[2, 2]),
        helper.make_node(
            "BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"], "norm"
        ),
        helper.make_node("Relu", ["b"], ["c"]),
        conv("grouped", ["c", "grouped", "grouped.bias"], "d", pads=[1] * 4, group=2),
        helper.make_node("Relu", ["d"], ["e"]),
        conv("depthwise", ["e", "depthwise"], "f", pads=[1] * 4, group=16),
        conv("pointwise", ["f", "pointwise"], "g"),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("GlobalAveragePool", ["h"], ["i"]),
        helper.make_node("Flatten", ["i"], ["j"]),
        helper.make_node("Gemm", ["j", "head", "head.bias"], ["logits"], "head", transB=1),
    ]
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", float32, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", float32, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int, seed: int = 1) -> dict[str, Array]:
    """Return noise with one of four patterns in it, and which one as `label`."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((CLASSES, 3, SIZE, SIZE))
    label = rng.integers(0, CLASSES, count)
    noise = rng.standard_normal((count, 3, SIZE, SIZE))
    return {"image": (patterns[label] + 0.5 * noise).astype(np.float32), "label": label}


def softmax_loss(outputs: Any, batch: Any) -> Any:
    """Return the cross entropy of the labels."""
    import torch

    return torch.nn.functional.cross_entropy(outputs["logits"], batch["label"])


def ort_run(model: Path | onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": feeds["image"]})[0]
    return np.asarray(found)
