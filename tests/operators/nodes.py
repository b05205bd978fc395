"""Random ternary operators, models of them, and what they compute by the document's arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxlr.operators import (
    TernaryConv,
    TernaryMatMul,
    TernaryOperator,
    add_functions,
    make_node,
)
from tests.onelayer import LEVELS, Array, distance, run
from tests.operators import reference


def _floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def matmul(
    inputs: int, outputs: int, terms: int = 1, group_size: int | None = None, level: int = 4
) -> TernaryMatMul:
    """Return a random matrix; one scale for all inputs if no group size is given."""
    rng = np.random.default_rng([inputs, outputs, terms, group_size or 0, level])
    size = group_size or inputs
    return TernaryMatMul(
        rng.integers(-1, 2, (terms, inputs, outputs)).astype(np.int8),
        _floats(rng, terms, -(-inputs // size), outputs),
        _floats(rng, inputs),
        _floats(rng, outputs),
        size,
        level,
    )


def conv(
    outputs: int,
    channels: int,
    kernel: tuple[int, ...],
    group: int = 1,
    terms: int = 1,
    group_size: int | None = None,
    level: int = 4,
    **window: tuple[int, ...],
) -> TernaryConv:
    """Return a random kernel of `channels` in each of `group` groups."""
    rng = np.random.default_rng([outputs, channels, *kernel, group, terms, group_size or 0, level])
    inputs, axes = channels * prod(kernel), len(kernel)
    size = group_size or inputs
    return TernaryConv(
        rng.integers(-1, 2, (terms, outputs, channels, *kernel)).astype(np.int8),
        _floats(rng, terms, -(-inputs // size), outputs),
        _floats(rng, channels * group),
        _floats(rng, outputs),
        size,
        level,
        **({"strides": (1,) * axes, "pads": (0,) * 2 * axes, "dilations": (1,) * axes} | window),
        group=group,
    )


def data(shape: Sequence[int]) -> Array:
    """Return rows of very different sizes."""
    rng = np.random.default_rng(list(shape))
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal((*shape[:-1], 1)))).astype(
        np.float32
    )


def model_of(
    operators: Sequence[TernaryOperator],
    shape: Sequence[int | str],
    opset: int,
    ir_version: int | None = None,
    functions: bool = True,
) -> onnx.ModelProto:
    """Return a model of operators side by side on one input of that shape."""
    nodes, initializers, outputs = [], [], []
    for position, operator in enumerate(operators):
        node, tensors = make_node(operator, "x", f"y{position}", f"n{position}")
        nodes.append(node)
        initializers.extend(tensors)
        result = helper.make_tensor_value_info(
            f"y{position}", TensorProto.FLOAT, [None] * len(shape)
        )
        outputs.append(result)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version or (8 if opset < 21 else 10),
    )
    if functions:
        add_functions(model)
    return model


def expected(operator: TernaryOperator, x: Array) -> Array:
    """Return the operator's result by the reference."""
    weights: Mapping[str, Any] = {
        "ternary": operator.ternary,
        "scales": operator.scales,
        "input_scale": operator.input_scale,
        "bias": operator.bias,
        "group_size": operator.group_size,
        "level": operator.accuracy_level,
    }
    if isinstance(operator, TernaryConv):
        window = {k: getattr(operator, k) for k in ("strides", "pads", "dilations", "group")}
        return reference.conv(x, **weights, **window)
    return reference.matmul(x, **weights)


def assert_runs(operators: Sequence[TernaryOperator], shape: Sequence[int], opset: int) -> None:
    """Check a model of operators, and its results with graph optimisation on and off."""
    model = model_of(operators, [f"d{i}" if i == 0 else d for i, d in enumerate(shape)], opset)
    if len(shape) == 1:
        model = model_of(operators, shape, opset)
    onnx.checker.check_model(model, full_check=True)
    x = data(shape)
    for level in LEVELS:
        for operator, found in zip(operators, run(model, {"x": x}, level), strict=True):
            wanted = expected(operator, x)
            assert found.shape == wanted.shape
            assert distance(found, wanted) < 1e-5, (operator.operator, opset, level)
