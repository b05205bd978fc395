"""Rounding to codes: values beside ONNX Runtime's, gradients beside what they are meant to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch

from onnxlr.training import TrainableModel
from tests.onelayer import distance, ir_version_of, model_of, run

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


class Given(torch.nn.Module):
    """Gives a trained tensor in place of a constant."""

    def __init__(self, values: Array) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values, dtype=torch.float32))

    def forward(self) -> torch.Tensor:
        return self.values


def rounding_model(axis: int | None = None) -> list[Any]:
    attributes = {} if axis is None else {"axis": axis}
    return [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], **attributes),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], **attributes),
    ]


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_gradients_pass_straight_through_and_stop_where_codes_are_clipped(kind: Any) -> None:
    nodes = rounding_model()
    x = np.array([-9, -3.3, -0.04, 0.0, 0.26, 2.2, 5, 40], np.float32)
    constants = {"scale": np.float32(0.1), "zero": np.array(100, np.uint8).astype(kind)}
    proto = model_of(nodes, {"x": x}, ["y"], constants, 13)
    model = TrainableModel(proto)
    given = torch.tensor(x, requires_grad=True)
    found = model({"x": given})["y"]
    (expected,) = run(proto, {"x": x})
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6)
    (slopes,) = torch.autograd.grad(found.sum(), given)
    codes = np.rint(x / np.float32(0.1)) + 100
    inside = (codes >= np.iinfo(kind).min) & (codes <= np.iinfo(kind).max)
    np.testing.assert_allclose(slopes.numpy(), inside.astype(np.float32), atol=1e-6)


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes() -> None:
    """Esser et al. 2020 (https://arxiv.org/abs/1902.08153), equation 3."""
    nodes = rounding_model()
    x = normal(50) * 40
    constants = {"scale": np.float32(0.5), "zero": np.int8(0)}
    model = TrainableModel(model_of(nodes, {"x": x}, ["y"], constants, 13))
    model({"x": x})["y"].sum().backward()
    ratio = x.astype(np.float64) / 0.5
    slope = np.clip(np.rint(ratio), -128, 127) - np.where(np.abs(ratio) < 127.5, ratio, 0)
    found = model.constant("scale").grad.item()
    assert found == pytest.approx(slope.sum(), rel=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_scales_of_an_axis(axis: int) -> None:
    x = normal(3, 4, 5)
    count = x.shape[axis]
    zero = RANDOM.integers(0, 255, count).astype(np.uint8)
    constants = {"scale": np.abs(normal(count)) + 0.01, "zero": zero}
    nodes = rounding_model(axis)
    proto = model_of(nodes, {"x": x}, ["y"], constants, 13)
    found = TrainableModel(proto)({"x": x})["y"].detach().numpy()
    assert distance(found, run(proto, {"x": x})[0]) < 1e-6


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 40), st.integers(1, 9))
def test_dynamic_rounding_and_its_product(seed: int, rows: int, inputs: int, outputs: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, inputs)).astype(np.float32)
    weight = generator.integers(-127, 128, (inputs, outputs)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["codes", "weight", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["y"]),
    ]
    proto = model_of(nodes, {"x": x}, ["y"], {"weight": weight}, 13)
    model = TrainableModel(proto)
    given = torch.tensor(x, requires_grad=True)
    found = model({"x": given})["y"]
    (expected,) = run(proto, {"x": x})
    assert distance(found.detach().numpy(), expected) < 1e-5
    target = generator.standard_normal((rows, outputs)).astype(np.float32)
    (slopes,) = torch.autograd.grad((found * torch.tensor(target)).sum(), given)
    np.testing.assert_allclose(slopes.numpy(), target @ weight.T.astype(np.float32), 1e-3, 1e-2)


def test_gradients_reach_codes_that_a_module_gives() -> None:
    weight = RANDOM.integers(-127, 128, (6, 4)).astype(np.int8)
    x = normal(3, 6)
    nodes = [
        helper.make_node("Cast", ["weight"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["kernel"]),
        helper.make_node("MatMul", ["x", "kernel"], ["y"]),
    ]
    scale = np.abs(normal(4))
    proto = model_of(nodes, {"x": x}, ["y"], {"weight": weight, "scale": scale}, 13)
    model = TrainableModel(proto)
    codes = Given(weight)
    model.replace("weight", codes)
    found = model({"x": x})["y"]
    assert distance(found.detach().numpy(), run(proto, {"x": x})[0]) < 1e-6
    found.sum().backward()
    expected = x.sum(0)[:, None] * scale[None]
    np.testing.assert_allclose(codes.values.grad.numpy(), expected, rtol=1e-4)


def test_blocks_of_an_axis() -> None:
    """The specification's formula; ONNX Runtime 1.18 has no such kernel."""
    codes = RANDOM.integers(-8, 8, (7, 3)).astype(np.int8)
    scale, zero = np.abs(normal(2, 3)), RANDOM.integers(-8, 8, (2, 3)).astype(np.int8)
    node = helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"], axis=0, block_size=4)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, scale.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, codes.shape)],
        [
            helper.make_tensor("c", TensorProto.INT4, codes.shape, codes.ravel().tolist()),
            helper.make_tensor("z", TensorProto.INT4, zero.shape, zero.ravel().tolist()),
        ],
    )
    imports = [helper.make_opsetid("", 21)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=ir_version_of(21))
    found = TrainableModel(proto)({"s": scale})["y"].detach().numpy()
    rows = np.repeat(np.arange(2), 4)[:7]
    np.testing.assert_allclose(found, (codes - zero[rows]) * scale[rows], rtol=1e-6)


def test_convolutions_of_codes() -> None:
    x = RANDOM.integers(0, 256, (2, 4, 7, 6)).astype(np.uint8)
    kernel = RANDOM.integers(-128, 128, (6, 2, 3, 3)).astype(np.int8)
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], group=2, pads=[1, 0, 2, 1])
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(117),
        "w": kernel,
        "ws": np.abs(normal(6)) * 0.1 + 0.01,
        "wz": np.zeros(6, np.int8),
        "ys": np.float32(0.3),
        "yz": np.uint8(120),
        "b": RANDOM.integers(-900, 900, 6).astype(np.int32),
    }
    proto = model_of([node], {"x": x}, ["y"], constants, 13)
    found = TrainableModel(proto)({"x": x})["y"].detach().numpy()
    expected = run(proto, {"x": x})[0].astype(np.float32)
    assert np.abs(found - expected).max() <= 1  # halves are rounded after other sums
    assert (found != expected).mean() < 0.01
    assert expected.std() > 0


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 32), (2, 16), (4, 16)])
@pytest.mark.parametrize("zeros", [False, True])
def test_products_of_few_bits(bits: int, group: int, zeros: bool) -> None:
    """The matrix by numpy, from the operator's description."""
    inputs, outputs = 77, 5
    groups = -(-inputs // group)
    codes = RANDOM.integers(0, 2**bits, (outputs, groups * group))
    points = RANDOM.integers(0, 2**bits, (outputs, groups))
    scales = np.abs(normal(outputs, groups)) + 0.1
    constants = {
        "blocks": in_bytes(codes, bits).reshape(outputs, groups, -1),
        "scales": scales.reshape(-1),
    }
    if zeros:
        constants["zeros"] = in_bytes(points, bits).reshape(-1)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=bits,
        block_size=group,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = TrainableModel(helper.make_model(graph, opset_imports=imports, ir_version=8))
    x = normal(3, inputs)
    less = np.repeat(points, group, 1) if zeros else 2 ** (bits - 1)
    matrix = ((codes - less) * np.repeat(scales, group, 1))[:, :inputs]
    found = model({"x": x})["y"].detach().numpy()
    assert distance(found, x.astype(np.float64) @ matrix.T) < 1e-5

    given = Given(codes[:, :inputs])
    model.replace("blocks", given)
    again = model({"x": x})["y"]
    assert distance(again.detach().numpy(), found) < 1e-6
    again.sum().backward()
    expected = np.repeat(scales, group, 1)[:, :inputs] * x.sum(0)
    np.testing.assert_allclose(given.values.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def in_bytes(codes: Array, bits: int) -> Array:
    """Return rows of codes in bytes, the first of each byte in its lowest bits."""
    each = 8 // bits
    whole = np.pad(codes, [(0, 0), (0, -codes.shape[1] % each)])
    parts = whole.reshape(len(codes), -1, each)
    return sum(parts[..., place] << (bits * place) for place in range(each)).astype(np.uint8)


def test_groups_of_rows_rounded_to_int8() -> None:
    """Accuracy level 4 beside numpy."""
    inputs, outputs, group = 40, 3, 16
    codes = RANDOM.integers(0, 16, (outputs, 48))
    scales = np.abs(normal(outputs, 3))
    node = helper.make_node(
        "MatMulNBits",
        ["x", "blocks", "scales"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=outputs,
        bits=4,
        block_size=group,
        accuracy_level=4,
    )
    constants = {"blocks": in_bytes(codes, 4).reshape(outputs, 3, 8), "scales": scales}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = TrainableModel(helper.make_model(graph, opset_imports=imports, ir_version=8))
    x = normal(4, inputs)
    parts = np.pad(x, [(0, 0), (0, 8)]).reshape(4, 3, group).astype(np.float64)
    step = np.abs(parts).max(-1, keepdims=True) / 127
    rounded = (np.rint(parts / step) * step).reshape(4, -1)[:, :inputs]
    matrix = ((codes - 8) * np.repeat(scales, group, 1))[:, :inputs]
    given = torch.tensor(x, requires_grad=True)
    found = model({"x": given})["y"]
    assert distance(found.detach().numpy(), rounded @ matrix.T) < 1e-5
    (slopes,) = torch.autograd.grad(found.sum(), given)
    np.testing.assert_allclose(slopes.numpy(), np.tile(matrix.sum(0), (4, 1)), rtol=1e-4, atol=1e-4)
