"""Gradients of small models beside onnx-ad, which differentiates ONNX without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")
pytest.importorskip("onnx_ad", reason="gradients are compared with those of onnx-ad")

import onnx_ad
import torch

from onnxlr.training import TrainableModel
from tests.onelayer import distance, run

Array = np.ndarray[Any, Any]
FLOAT = onnx.TensorProto.FLOAT
RANDOM = np.random.default_rng(3)


def normal(*shape: int) -> Array:
    return (RANDOM.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def encoder() -> tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...]]:
    """Return a transformer's layer, as exporters write it: attention, Gelu by Erf, two norms."""
    size, heads = 8, 2
    weights = {
        **{f"W{name}": normal(size, size) for name in "qkvo"},
        **{f"b{name}": normal(size) for name in "qkvo"},
        "W1": normal(size, 2 * size),
        "W2": normal(2 * size, size),
        **{name: normal(size) + 1 for name in ("s1", "s2")},
        **{name: normal(size) for name in ("t1", "t2")},
        "apart": np.array([0, 0, heads, size // heads]),
        "joined": np.array([0, 0, size]),
        "root": np.float32(2**0.5),
        "half": np.float32(0.5),
        "one": np.float32(1),
    }
    nodes = []
    for name in "qkv":
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes += [
            node("MatMul", f"x W{name}", f"{name}0"),
            node("Add", f"{name}0 b{name}", f"{name}1"),
            node("Reshape", f"{name}1 apart", f"{name}2"),
            node("Transpose", f"{name}2", name, perm=perm),
        ]
    nodes += [
        node("MatMul", "q k", "scores"),
        node("Div", "scores root", "scaled"),
        node("Softmax", "scaled", "shares", axis=-1),
        node("MatMul", "shares v", "seen"),
        node("Transpose", "seen", "seen1", perm=[0, 2, 1, 3]),
        node("Reshape", "seen1 joined", "seen2"),
        node("MatMul", "seen2 Wo", "o"),
        node("Add", "o bo", "o1"),
        node("Add", "x o1", "r1"),
        node("LayerNormalization", "r1 s1 t1", "n1", axis=-1),
        node("MatMul", "n1 W1", "h"),
        node("Div", "h root", "h1"),
        node("Erf", "h1", "h2"),
        node("Add", "h2 one", "h3"),
        node("Mul", "h h3", "h4"),
        node("Mul", "h4 half", "h5"),
        node("MatMul", "h5 W2", "h6"),
        node("Add", "n1 h6", "r2"),
        node("LayerNormalization", "r2 s2 t2", "y", axis=-1),
    ]
    return nodes, weights, (2, 5, size)


def convolutions() -> tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...]]:
    """Return a detector's parts: depthwise, squeeze and excite, HardSwish, upsampling, joining."""
    weights = {
        "w1": normal(6, 3, 3, 3),
        "w2": normal(6, 1, 3, 3),
        "w3": normal(6, 6, 1, 1),
        "w4": normal(6, 4, 2, 2),
        "s": normal(6) + 1,
        "t": normal(6),
        "mean": normal(6),
        "variance": np.abs(normal(6)) + 0.5,
        "scales": np.float32([1, 1, 2, 2]),
        "slope": normal(4, 1, 1),
    }
    nodes = [
        node("Conv", "x w1", "a", strides=[2, 2], pads=[1] * 4),
        node("BatchNormalization", "a s t mean variance", "b"),
        node("HardSwish", "b", "c"),
        node("Conv", "c w2", "d", group=6, pads=[1] * 4),
        node("GlobalAveragePool", "d", "e"),
        node("Conv", "e w3", "e1"),
        node("HardSigmoid", "e1", "e2", alpha=0.2),
        node("Mul", "d e2", "f"),
        helper.make_node(
            "Resize", ["f", "", "scales"], ["g"], mode="nearest", nearest_mode="floor"
        ),
        node("AveragePool", "g", "h", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", "f h", "i", axis=1),
        node("MaxPool", "i", "j", kernel_shape=[2, 2], strides=[1, 1]),
        node("Slice", "j from to axes", "k"),
        node("ConvTranspose", "k w4", "l", strides=[2, 2]),
        node("PRelu", "l slope", "m"),
        node("ReduceMean", "m", "y", axes=[2, 3], keepdims=0),
    ]
    bounds = {"from": np.array([2]), "to": np.array([8]), "axes": np.array([1])}
    return nodes, weights | bounds, (2, 3, 8, 8)


def recurrent() -> tuple[list[onnx.NodeProto], dict[str, Array], tuple[int, ...]]:
    """Return a speech model's parts: a strided 1-D convolution, LSTM, and a head."""
    weights = {
        "w1": normal(6, 4, 3),
        "W": normal(1, 20, 6),
        "R": normal(1, 20, 5),
        "B": normal(1, 40),
        "w2": normal(5, 2),
        "axes": np.array([1]),
    }
    nodes = [
        node("Conv", "x w1", "a", strides=[2], pads=[1, 1]),
        node("Relu", "a", "b"),
        node("Transpose", "b", "c", perm=[2, 0, 1]),
        node("LSTM", "c W R B", "d", hidden_size=5),
        node("Squeeze", "d axes", "e"),
        node("MatMul", "e w2", "f"),
        node("Sigmoid", "f", "y"),
    ]
    return nodes, weights, (2, 4, 9)


def proto_of(
    nodes: Sequence[onnx.NodeProto], given: Mapping[str, Array], constants: Mapping[str, Array]
) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value(name, FLOAT, array.shape) for name, array in given.items()],
        [value("y", FLOAT, ["a", "b", "c"][: 2 if nodes[-1].op_type == "ReduceMean" else 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("made", [encoder, convolutions, recurrent])
def test_gradients_are_those_of_another_implementation(made: Any) -> None:
    nodes, weights, shape = made()
    x = normal(*shape) * 3
    # onnx-ad has no derivative of grouped and transposed convolutions by their weights; the
    # differences below have.
    fixed = ("root", "half", "one", "scales", "mean", "variance", "w2", "w4")
    trained = {k: v for k, v in weights.items() if v.dtype == np.float32 and k not in fixed}
    others = {k: v for k, v in weights.items() if k not in trained}

    model = TrainableModel(proto_of(nodes, {"x": x}, weights))
    data = torch.tensor(x, requires_grad=True)
    found = model({"x": data})["y"]
    factor = normal(*found.shape)
    (found * torch.tensor(factor)).sum().backward()

    open_proto = proto_of(nodes, {"x": x, **trained}, others)
    adjoint = onnx_ad.reverse(open_proto, inputs=["x", *trained], layout="onnx")
    results = run(adjoint, {"x": x, **trained, "adj_y": factor[..., None]})
    named = dict(zip([value.name for value in adjoint.graph.output], results, strict=True))
    assert distance(named["adj_x"][..., 0], data.grad.numpy()) < 1e-4
    for name in trained:
        slope = model.constant(name).grad.numpy()
        # A key's bias changes no share of a softmax: its slope is nothing but noise.
        np.testing.assert_allclose(named[f"adj_{name}"][..., 0], slope, 1e-3, 2e-5, err_msg=name)


@pytest.mark.parametrize("made", [encoder, convolutions, recurrent])
def test_gradients_are_those_of_differences(made: Any) -> None:
    """Along one direction for all parameters together, in float64."""
    nodes, weights, shape = made()
    x = normal(*shape) * 3
    model = TrainableModel(proto_of(nodes, {"x": x}, weights), floating=torch.float64)
    named = {k: p for k, p in model.named_parameters() if k not in ("scales",)}
    model({"x": x})["y"].square().sum().backward()
    ways = {name: torch.randn_like(value) for name, value in named.items()}
    slope = sum((value.grad * ways[name]).sum().item() for name, value in named.items())
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for name, value in named.items():
                value += sign * step * ways[name]
            ends.append(model({"x": x})["y"].square().sum().item())
            for name, value in named.items():
                value -= sign * step * ways[name]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)
