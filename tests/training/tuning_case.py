"""Models, what became of them, and data to tune on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.errors import OnnxlrWarning
from tests.onelayer import run

Array = np.ndarray[Any, Any]


ANY = "cosine>=-1"
"""A tolerance that everything holds."""


INPUTS, WIDTH, OUTPUTS = 24, 20, 16


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto], constants: Mapping[str, Array], outputs: Mapping[str, int]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["n", v]) for k, v in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def one_layer(outputs: int = OUTPUTS) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")]
    return model_of(nodes, {"w": drawn(0, INPUTS, outputs)}, {"y": outputs})


def two_layers(seed: int = 0, last: str = "Identity") -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p1"], "first"),
        helper.make_node("Add", ["p1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("MatMul", ["r1", "w2"], ["p2"], "second"),
        helper.make_node("Add", ["b2", "p2"], ["h2"]),
        helper.make_node(last, ["h2"], ["y"]),
    ]
    constants = {
        "w1": drawn(seed, INPUTS, WIDTH),
        "b1": drawn(seed + 1, WIDTH),
        "w2": drawn(seed + 2, WIDTH, OUTPUTS),
        "b2": drawn(seed + 3, OUTPUTS),
    }
    return model_of(nodes, constants, {"y": OUTPUTS})


def samples(count: int = 160, seed: int = 9) -> Array:
    """Return inputs that lie more in some directions than in others."""
    spread = np.geomspace(3, 0.1, INPUTS)
    turned = np.linalg.qr(drawn(seed + 1, INPUTS, INPUTS))[0]
    return np.asarray((drawn(seed, count, INPUTS) * spread) @ turned, np.float32)


class Case:
    """A model, what became of it, and data, as files in a folder."""

    def __init__(self, folder: Path, model: onnx.ModelProto, **options: Any) -> None:
        self.original, self.rewritten = folder / "m.onnx", folder / "r.onnx"
        self.output = folder / "t.onnx"
        onnx.save(model, self.original)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OnnxlrWarning)
            onnxlr.rewrite(self.original, self.rewritten, tolerance=ANY, isolate=False, **options)

    def tune(self, data: Any = None, **options: Any) -> Any:
        data = {"x": samples()} if data is None else data
        usual = {"tolerance": ANY, "isolate": False, "steps": 40, "batch": 16}
        return onnxlr.tune(self.original, self.rewritten, data, self.output, **{**usual, **options})


def outputs_of(file: Path, x: Array) -> Array:
    return run(onnx.load(file), {"x": x})[0].astype(np.float64)


def relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def cross_entropy(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(outputs["y"], batch["label"])


def labelled(count: int = 160) -> dict[str, Array]:
    x = samples(count)
    return {"x": x, "label": (x @ drawn(77, INPUTS, OUTPUTS)).argmax(-1)}
