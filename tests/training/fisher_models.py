"""Losses, models and closed forms for tests of Fisher information."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.classifier import CLASSES, weights

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

Array = np.ndarray[Any, Any]


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def entropy(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return torch.nn.functional.cross_entropy(outputs["logits"], batch["label"])


def summed(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return outputs["y"].sum()


def nothing(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return outputs["logits"].detach().sum()


def many(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return outputs["logits"]


def nan(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return outputs["logits"].sum() * float("nan")


def constant(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return 3.0


def drawn(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    y = outputs["logits"]
    label = torch.distributions.Categorical(logits=y.detach()).sample()
    return torch.nn.functional.cross_entropy(y, label)


def loss(name: str) -> str:
    return f"{__name__}:{name}"


def graph_of(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, list[Any]],
    constants: Mapping[str, Array],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def labels(count: int) -> Array:
    return np.random.default_rng(5).integers(0, CLASSES, count)


# --- the classifier, with labels -----------------------------------------------------------------


def by_hand(x: Array, label: Array) -> dict[str, list[Array]]:
    """Return the gradient of each sample's cross entropy, by numpy's chain rule."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    found: dict[str, list[Array]] = {"w1": [], "w2": [], "w3": []}
    for row, y in zip(x.astype(np.float64), label, strict=True):
        a = row @ w["w1"]
        b = np.maximum(a, 0)
        c = b @ w["w2"]
        d = np.maximum(c, 0)
        z = d @ w["w3"] + w["bias"]
        p = np.exp(z - z.max())
        g = p / p.sum() - np.eye(CLASSES)[y]
        g_c = (w["w3"] @ g) * (c > 0)
        g_a = (w["w2"] @ g_c) * (a > 0)
        for name, left, right in (("w1", row, g_a), ("w2", b, g_c), ("w3", d, g)):
            found[name].append(np.outer(left, right))
    return found
