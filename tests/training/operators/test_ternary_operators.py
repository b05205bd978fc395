"""The ternary operators beside their specification in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch

from onnxlr.operators import TernaryConv, TernaryMatMul, TernaryOperator, add_functions, make_node
from onnxlr.training import TrainableModel
from tests.onelayer import distance

Array = np.ndarray[Any, Any]

LEVELS = st.sampled_from([0, 4])


def model_of(weights: TernaryOperator, shape: list[Any], carried: bool = False) -> onnx.ModelProto:
    node, constants = make_node(weights, "x", "y", "ternary")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        constants,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("onnxlr", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    if carried:
        add_functions(model)
    return model


def matrix_of(seed: int, terms: int, inputs: int, outputs: int, level: int) -> TernaryMatMul:
    random = np.random.default_rng(seed)
    group = int(random.choice([32, 64, inputs]))
    return TernaryMatMul(
        random.integers(-1, 2, (terms, inputs, outputs)).astype(np.int8),
        random.standard_normal((terms, -(-inputs // group), outputs)).astype(np.float32),
        (random.random(inputs) + 0.5).astype(np.float32),
        random.standard_normal(outputs).astype(np.float32),
        group,
        level,
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 90), st.integers(1, 40), LEVELS)
@settings(max_examples=40, deadline=None)
def test_matrices(seed: int, terms: int, inputs: int, outputs: int, level: int) -> None:
    weights = matrix_of(seed, terms, inputs, outputs, level)
    x = np.random.default_rng(seed).standard_normal((2, 3, inputs)).astype(np.float32)
    found = TrainableModel(model_of(weights, [None, None, inputs]))({"x": x})["y"]
    expected = weights.reference(x)
    # A row's codes may differ by one where a product lies on a half.
    assert distance(found.detach().numpy(), expected) < (1e-5 if level == 0 else 2e-3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2), LEVELS, st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_kernels(seed: int, axes: int, level: int, terms: int) -> None:
    random = np.random.default_rng(seed)
    group, each, outputs = (int(random.integers(1, high)) for high in (4, 5, 4))
    kernel = tuple(int(size) for size in random.integers(1, 4, axes))
    inputs = each * int(np.prod(kernel))
    size = int(random.choice([32, inputs]))
    scales = random.standard_normal((terms, -(-inputs // size), outputs * group))
    weights = TernaryConv(
        random.integers(-1, 2, (terms, outputs * group, each, *kernel)).astype(np.int8),
        scales.astype(np.float32),
        (random.random(each * group) + 0.5).astype(np.float32),
        random.standard_normal(outputs * group).astype(np.float32),
        size,
        level,
        tuple(int(n) for n in random.integers(1, 3, axes)),
        tuple(int(n) for n in random.integers(0, 3, 2 * axes)),
        tuple(int(n) for n in random.integers(1, 3, axes)),
        group,
    )
    space = [int(n) for n in random.integers(6, 10, axes)]
    x = random.standard_normal((2, each * group, *space)).astype(np.float32)
    found = TrainableModel(model_of(weights, [None] * (axes + 2)))({"x": x})["y"]
    expected = weights.reference(x)
    assert found.shape == expected.shape
    assert distance(found.detach().numpy(), expected) < (1e-5 if level == 0 else 2e-3)


@pytest.mark.parametrize("level", [0, 4])
def test_gradients_pass_straight_through_the_rows_and_reach_given_codes(level: int) -> None:
    weights = matrix_of(3, 2, 70, 9, level)
    model = TrainableModel(model_of(weights, [None, 70]))
    values = torch.nn.Parameter(torch.tensor(weights.ternary, dtype=torch.float32))
    model.replace("ternary.codes", Held(values))
    x = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
    data = torch.tensor(x, requires_grad=True)
    found = model({"x": data})["y"]
    assert distance(found.detach().numpy(), weights.reference(x)) < 2e-3
    target = np.random.default_rng(1).standard_normal(found.shape).astype(np.float32)
    (found * torch.tensor(target)).sum().backward()
    rows = np.repeat(weights.scales, weights.group_size, 1)[:, :70]
    matrix = (weights.ternary * rows).sum(0)
    scaled = x * weights.input_scale
    assert distance(data.grad.numpy(), (target @ matrix.T) * weights.input_scale) < 1e-5
    slope = (scaled.T @ target)[None] * rows
    assert distance(values.grad.numpy(), slope) < (1e-5 if level == 0 else 2e-2)
    assert distance(model.constant("ternary.bias").grad.numpy(), target.sum(0)) < 1e-5


class Held(torch.nn.Module):
    def __init__(self, values: torch.nn.Parameter) -> None:
        super().__init__()
        self.values = values

    def forward(self) -> torch.Tensor:
        return self.values


def test_operators_are_run_as_such_where_the_file_carries_their_functions() -> None:
    weights = matrix_of(3, 2, 70, 9, 0)
    model = TrainableModel(model_of(weights, [None, 70], carried=True))
    assert [call.operator for call in model.calls] == ["TernaryMatMul"]


def test_codes_are_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxlr.training.operators import ternary

    asked = []
    true = ternary.unpack
    monkeypatch.setattr(ternary, "unpack", lambda *given: asked.append(1) or true(*given))
    model = TrainableModel(model_of(matrix_of(3, 2, 70, 9, 0), [None, 70]))
    for _ in range(3):
        model({"x": np.ones((1, 70), np.float32)})
    assert len(asked) == 1
