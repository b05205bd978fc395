"""Models of one layer whose chain is given, written by a target's lowerings."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnxlr.layers import find_layers
from onnxlr.lowering import find_target, lower_layer
from onnxlr.model import open_model, splice
from onnxlr.numbers import Format
from onnxlr.stages import Adjustment, Chain, Convolution, Linear, Lookup, Stored
from tests.onelayer import LEVELS, Array, model_of

RUNTIME = tuple(map(int, ort.__version__.split(".")[:2]))


def written(
    model: onnx.ModelProto,
    stages: Sequence[Stored],
    target: str = "onnx",
    activations: str = "float",
    adjustments: Sequence[Adjustment] = (),
) -> onnx.ModelProto:
    """Return the model with its only layer replaced by a chain."""
    source = open_model(model)
    (layer,) = (layer for layer in find_layers(source) if layer.skip is None)
    chain = Chain(tuple(stages))
    change = lower_layer(
        layer, chain, source, source.names, find_target(target), activations, adjustments
    )
    splice(source, change)
    onnx.checker.check_model(source.proto, full_check=True)
    return source.proto


def stage_of(canonical: Array, format: Format, groups: int | None = None) -> Stored:
    """Return the stage of a matrix, or of a kernel in groups."""
    if groups is None:
        return Linear.of(canonical).encoded(format, canonical.dtype)
    window = tuple(range(canonical.ndim - 2))
    return Convolution.of(canonical, groups, window).encoded(format, canonical.dtype)


def table_of(rows: Array, format: Format) -> Stored:
    """Return the stage of a table."""
    return Lookup.of(rows).encoded(format, rows.dtype)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many nodes of each operator a model has."""
    return dict(Counter(node.op_type for node in model.graph.node))


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as ONNX Runtime runs it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def constant_bytes(model: onnx.ModelProto, least: int = 1) -> int:
    """Return the bytes of a model's initializers but whole numbers of 64 bits, which are shapes."""
    tensors = (t for t in model.graph.initializer if t.data_type != onnx.TensorProto.INT64)
    return sum(size for t in tensors if (size := _size(t)) >= least)


def _size(tensor: onnx.TensorProto) -> int:
    if tensor.raw_data:
        return len(tensor.raw_data)
    return int(numpy_helper.to_array(tensor).nbytes)


def expect(
    model: onnx.ModelProto,
    inputs: Mapping[str, Array],
    expected: Array,
    limit: float,
    size: Array | None = None,
) -> None:
    """Run with graph optimisation off and on, and compare, relative to what sums are made of."""
    for level in LEVELS:
        found = run_strictly(model, inputs, level)
        assert found.shape == expected.shape
        whole = expected if size is None else size
        norm = float(np.linalg.norm(whole.astype(np.float64))) or 1.0
        wrong = float(np.linalg.norm(found.astype(np.float64) - expected)) / norm
        assert wrong <= limit, (level, wrong)


def run_strictly(model: onnx.ModelProto, inputs: Mapping[str, Array], level: Any) -> Array:
    """Return the model's output in ONNX Runtime."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, dict(inputs))[0])


def integers_are_exact() -> bool:
    """Return whether ONNX Runtime adds products of 8-bit integers without saturation here.

    On x86 processors without VNNI instructions it adds pairs of them in 16 bits.
    """
    x = np.full((8, 64), 1.0, np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["codes"], to=onnx.TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["codes", "w"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    weight = np.full((64, 16), 127, np.int8)
    model = model_of(nodes, {"x": x}, ["y"], {"w": weight})
    return bool(np.all(run_strictly(model, {"x": 255 * x}, LEVELS[1]) == 255 * 127 * 64))


def simulated(x: Array, scale: np.float32, zero_point: int) -> Array:
    """Return data as 256 codes stand for it, by the standard's definition."""
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255)
    return (codes - zero_point) * np.float64(scale)


def is_clear(x: Array, scale: np.float32) -> bool:
    """Return whether no entry is so near the middle of two codes that float noise decides."""
    fractions = np.abs(x.astype(np.float64) / scale) % 1
    return bool(np.all(np.abs(fractions - 0.5) > 1e-3))
