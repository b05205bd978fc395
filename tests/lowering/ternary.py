"""Ternary stages from random trits, their matrices by numpy, and models that have them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

import onnxlr
from onnxlr.errors import OnnxlrWarning
from onnxlr.layers import find_layers
from onnxlr.lowering import carry_functions, find_target, lower_layer
from onnxlr.model import open_model, splice
from onnxlr.numbers import Encoded
from onnxlr.stages import Adjustment, Chain, Convolution, Linear, Scale, Stage
from tests.onelayer import Array, distance, model_of
from tests.operators.oplibrary import installed_library


def matrix(
    seed: int,
    inputs: int,
    outputs: int,
    terms: int = 1,
    group: int | None = None,
    dtype: str = "float32",
) -> tuple[Linear, Array]:
    """Return a random ternary stage, and its dense matrix `(inputs, outputs)` in float64."""
    rng = np.random.default_rng([seed, inputs, outputs, terms])
    trits = rng.integers(-1, 2, (terms, inputs, outputs)).astype(np.int8)
    size = group or inputs
    scales = (rng.standard_normal((terms, -(-inputs // size), outputs)) / terms).astype(dtype)
    expanded = np.repeat(scales.astype(np.float64), size, axis=1)[:, :inputs]
    return Linear(Encoded.of_trits(trits, scales, group)), (trits * expanded).sum(axis=0)


def kernel(
    seed: int,
    shape: tuple[int, ...],
    groups: int = 1,
    terms: int = 1,
    group: int | None = None,
    window: tuple[int, ...] | None = None,
) -> tuple[Convolution, Array]:
    """Return a random ternary stage, and its kernel `(outputs, inputs/groups, *k)` in float64."""
    rng = np.random.default_rng([seed, *shape, terms])
    trits = rng.integers(-1, 2, (terms, *shape)).astype(np.int8)
    inputs = prod(shape[1:])
    size = group or inputs
    scales = rng.standard_normal((shape[0], -(-inputs // size), terms)).astype(np.float32)
    expanded = np.repeat(scales.astype(np.float64), size, axis=1)[:, :inputs]
    flat = trits.reshape(terms, shape[0], inputs)
    dense = np.einsum("toi,oit->oi", flat, expanded).reshape(shape)
    encoded = Encoded.of_trits(trits, scales, group, kernel=True)
    axes = tuple(range(len(shape) - 2)) if window is None else window
    return Convolution(encoded, groups, axes), dense


def normal(seed: int, *shape: int, dtype: str = "float32") -> Array:
    """Return random numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def matmul_model(
    weight: Array, x: Array, opset: int = 17, ir_version: int | None = None
) -> onnx.ModelProto:
    """Return a model of one product."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    return model_of([node], {"x": x}, ["y"], {"w": weight}, opset, ir_version)


def svd_chain(
    seed: int, inputs: int, outputs: int, rank: int, scaled: bool = True
) -> tuple[list[Stage], Array]:
    """Return a chain as a ternary SVD is, and its dense matrix."""
    first, left = matrix(seed, inputs, rank)
    second, right = matrix(seed + 1, rank, outputs)
    if not scaled:
        return [first, second], left @ right
    d = factors(seed, inputs)
    return [Scale(d), first, second], d[:, None].astype(np.float64) * (left @ right)


def factors(seed: int, count: int) -> Array:
    """Return random factors of inputs, none of them near zero."""
    rng = np.random.default_rng([seed, count])
    return (rng.choice([-1, 1], count) * rng.uniform(0.5, 2, count)).astype(np.float32)


def lowered(
    model: onnx.ModelProto,
    stages: Sequence[Stage],
    target: str = "onnxlr",
    activations: str = "float",
    adjustments: Sequence[Adjustment] = (),
) -> onnx.ModelProto:
    """Return the model with its only layer replaced by a chain, checked, with its functions."""
    source = open_model(model)
    (layer,) = (layer for layer in find_layers(source) if layer.skip is None)
    change = lower_layer(
        layer,
        Chain(tuple(stages)),
        source,
        source.names,
        find_target(target),
        activations,
        adjustments,
    )
    splice(source, change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxlrWarning)
        carry_functions(source.proto)
    onnx.checker.check_model(source.proto, full_check=True)
    return source.proto


def own_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the main graph's ternary nodes."""
    return [node for node in model.graph.node if node.domain == "onnxlr"]


def by_functions(model: onnx.ModelProto, inputs: Mapping[str, Array], level: Any = None) -> Array:
    """Return the model's first output in ONNX Runtime, which knows no op library."""
    return np.asarray(ort_session(model, level).run(None, dict(inputs))[0])


def by_kernels(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> Array:
    """Return the model's first output with the op library's kernels; skip where there is none."""
    installed_library()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxlr.session(model, ["CPUExecutionProvider"], options)
    return np.asarray(session.run(None, dict(inputs))[0])


def ort_session(model: onnx.ModelProto, level: Any = None) -> ort.InferenceSession:
    """Return a plain session."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if level is not None:
        options.graph_optimization_level = level
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def row_rounded(x: Array) -> Array:
    """Return rows as 255 int8 codes stand for them, by the operators' document."""
    x = x.astype(np.float32)
    peak = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30))
    codes = np.rint(x * (np.float32(127) / peak))
    return codes.astype(np.float64) * (peak / np.float32(127))


def _has_kernels() -> bool:
    """Return whether there is an op library; raises where it was to be built."""
    try:
        onnxlr.get_library_path()
    except onnxlr.LibraryMissingError:
        if os.environ.get("ONNXLR_OPS") == "required":
            raise
        return False
    return True


def expect_all(
    model: onnx.ModelProto, inputs: Mapping[str, Array], expected: Array, limit: float
) -> None:
    """Compare functions, optimised and not, and kernels with what is expected.

    `limit` is above 1e-5 only where terms of the expected sums cancel each other.
    """
    for level in (
        ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        found = by_functions(model, inputs, level)
        assert found.shape == expected.shape
        assert distance(found, expected) <= limit, level
    if own_nodes(model) and _has_kernels():
        kernels = by_kernels(model, inputs)
        assert kernels.shape == expected.shape
        assert distance(kernels, expected) <= limit
        assert distance(kernels, found.astype(np.float64)) <= max(1e-5, limit)
