"""A model of one product, for tests of the tools that measure models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tools.measured_tasks import Task

__all__ = ["FEEDS", "LAYER", "product_task", "small_task"]

FEEDS = [{"x": np.ones((2, 4), np.float32)}, {"x": np.zeros((1, 4), np.float32)}]

LAYER = "encoder.product"
"""Name of the only layer."""


def small_task(folder: Path) -> Task:
    """Return a task of the identity of four numbers, whose score is always a half."""
    path = _store(folder, np.eye(4, dtype=np.float32))
    return Task("small", path, "half", lambda _: 0.5, FEEDS, FEEDS[:1], FEEDS, mask="x")


def product_task(folder: Path, inputs: int = 96, outputs: int = 128) -> Task:
    """Return a task of a weight that pays to rewrite, with inputs of a mean of their own."""
    random = np.random.default_rng(7)
    weight = random.standard_normal((inputs, outputs)).astype(np.float32)
    spread = random.uniform(0.1, 3, inputs)

    def feeds(count: int) -> list[dict[str, np.ndarray]]:
        rows = [random.standard_normal((32, inputs)) * spread + 0.3 for _ in range(count)]
        return [{"x": one.astype(np.float32)} for one in rows]

    path, held_out = _store(folder, weight), feeds(10)
    return Task(
        "product",
        path,
        "half",
        lambda _: 0.5,
        feeds(30),
        held_out[:1],
        held_out[:1],
        None,
        held_out,
    )


def _store(folder: Path, matrix: np.ndarray) -> Path:
    inputs, outputs = matrix.shape
    weight = numpy_helper.from_array(matrix, f"{LAYER}.weight")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])
    nodes = [helper.make_node("MatMul", ["x", weight.name], ["y"], name=LAYER)]
    graph = helper.make_graph(nodes, "product", [x], [y], [weight])
    opset = [helper.make_opsetid("", 17)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path
