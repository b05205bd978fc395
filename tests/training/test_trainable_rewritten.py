"""What onnxlr writes, in torch beside ONNX Runtime: all methods, formats and targets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import onnxlr
from onnxlr.training import TrainableModel
from tests.classifier import classifier, samples
from tests.onelayer import distance, run

Array = np.ndarray[Any, Any]
CHANNELS = 8


def images(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, 9, 9)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Return `x (n, 8, 9, 9) → y (n, 10)`: convolutions 3×3 and 1×1, a Gemm; a table beside."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "w1": normal(32, CHANNELS, 3, 3),
        "b1": normal(32),
        "w2": normal(32, 32, 1, 1),
        "w3": normal(10, 32),
        "table": normal(40, 10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "wide", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], "narrow"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3"], ["f"], "head", transB=1),
        helper.make_node("Gather", ["table", "i"], ["g"], "table"),
        helper.make_node("Add", ["f", "g"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [
            value("x", onnx.TensorProto.FLOAT, ["n", CHANNELS, 9, 9]),
            value("i", onnx.TensorProto.INT64, ["n"]),
        ],
        [value("y", onnx.TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feeds_of(kind: str, count: int) -> dict[str, Array]:
    if kind == "matrices":
        return {"x": samples(count)}
    return {"x": images(count), "i": np.arange(count) % 40}


MODELS = {"matrices": classifier, "network": network}

METHODS: list[dict[str, Any]] = [
    {"method": "svd", "ratio": 0.8},
    {"method": "tucker", "ratio": 0.8},
    {"method": "cp", "ratio": 0.5},
    {"method": "tensor_train", "ratio": 0.8},
    {"method": "tensor_ring", "ratio": 0.5},
    {"method": "kronecker", "ratio": 0.5},
    {"method": "ternary"},
    {"method": "ternary_svd", "bits": 4.0},
    {"method": "ternary", "terms": 2, "target": "onnxlr", "activations": "float"},
    {"method": "sparse_quantized", "bits": 4.0},
]
FORMATS: list[dict[str, Any]] = [
    {"method": "quantize", "format": kind, "target": target, "group_size": group}
    for target in ("onnx", "ort")
    for kind, group in (("int8", 0), ("int4", 32), ("int2", 32))
] + [
    {"method": "quantize", "format": "float16"},
    {"method": "svd", "ratio": 0.8, "format": "int8"},
]
ROUNDED: list[dict[str, Any]] = [
    {"method": "quantize", "format": "int8", "activations": "dynamic_int8"},
    {"method": "quantize", "format": "int8", "activations": "static_int8"},
    {"method": "quantize", "format": "int4", "activations": "dynamic_int8", "target": "ort"},
    {"method": "ternary", "activations": "dynamic_int8", "target": "ort"},
    {"method": "ternary", "activations": "dynamic_int8"},
    {"method": "ternary", "activations": "dynamic_int8", "target": "onnxlr"},
]
"""Data is rounded to int8, so that numbers on a half may fall either way."""


def name_of(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


def written(tmp_path: Path, kind: str, options: dict[str, Any]) -> Path:
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnxlr.OnnxlrWarning)
        result = onnxlr.rewrite(
            MODELS[kind](),
            path,
            calibration=[feeds_of(kind, 64)],
            isolate=False,
            keep=True,
            tolerance="cosine>=-1",
            **options,
        )
    assert result is not None
    return path


def compare(path: Path, kind: str, most: float) -> None:
    proto = onnx.load(path)
    model = TrainableModel(path)
    for count in (1, 7):
        feeds = feeds_of(kind, count)
        found = model(feeds)
        (name,) = found
        (expected,) = run(proto, feeds)
        assert distance(found[name].detach().numpy(), expected) < most
    found[name].square().sum().backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None and p.dim() > 0]
    assert slopes
    assert all(np.isfinite(slope.numpy()).all() for slope in slopes)


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("options", METHODS + FORMATS, ids=name_of)
def test_what_computes_in_float(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    compare(written(tmp_path, kind, options), kind, 1e-4)


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("options", ROUNDED, ids=name_of)
def test_what_rounds_its_data(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    compare(written(tmp_path, kind, options), kind, 0.02)
