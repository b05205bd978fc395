"""Operators beside torch's own modules, with the same weights: outputs and all gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch
from torch import nn

from onnxlr.training import TrainableModel

DOUBLE = torch.float64


def trainable(
    nodes: Sequence[onnx.NodeProto],
    ranks: int | Mapping[str, int],
    constants: Mapping[str, Any],
    opset: int = 17,
) -> TrainableModel:
    """Return a model from `x` to tensors of ranks (or to `y`, of the same rank), in float64."""
    value = helper.make_tensor_value_info
    outputs = {"x": ranks, "y": ranks} if isinstance(ranks, int) else dict(ranks)
    held = {name: torch.as_tensor(array).detach().numpy() for name, array in constants.items()}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value("x", TensorProto.FLOAT, [None] * outputs.pop("x"))],
        [value(name, TensorProto.FLOAT, [None] * rank) for name, rank in outputs.items()],
        [
            numpy_helper.from_array(
                array.astype(np.float32) if array.dtype == np.float64 else array, name
            )
            for name, array in held.items()
        ],
    )
    imports = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return TrainableModel(proto, floating=DOUBLE)


def single(module: nn.Module) -> nn.Module:
    """Round a module's parameters to float32, which the file holds, and compute in float64."""
    return module.float().to(DOUBLE)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def ordered(gates: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """Return torch's gates in ONNX's order."""
    parts = gates.chunk(len(order))
    return torch.cat([parts[place] for place in order])


ORDERS = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Torch has LSTM's gates as input, forget, cell, output, and GRU's as reset, update, new."""


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers(kind: str, both: bool) -> None:
    torch.manual_seed(0)
    module = single(getattr(nn, kind)(5, 7, bidirectional=both))
    suffixes = ["", "_reverse"] if both else [""]

    def weights(name: str) -> torch.Tensor:
        parts = [getattr(module, f"{name}_l0{suffix}") for suffix in suffixes]
        return torch.stack([ordered(part, ORDERS[kind]) for part in parts])

    constants = {
        "W": weights("weight_ih"),
        "R": weights("weight_hh"),
        "B": torch.cat([weights("bias_ih"), weights("bias_hh")], 1),
    }
    ranks = {"x": 3, "Y": 4, "Y_h": 3} | ({"Y_c": 3} if kind == "LSTM" else {})
    attributes: dict[str, Any] = {"hidden_size": 7}
    attributes |= {"direction": "bidirectional"} if both else {}
    attributes |= {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(kind, ["x", "W", "R", "B"], list(ranks)[1:], **attributes)
    model = trainable([node], ranks, constants)
    x = torch.randn(6, 3, 5, dtype=DOUBLE)
    found, (expected, last) = model({"x": x}), module(x)
    joined = found["Y"].transpose(1, 2).flatten(2)
    same(joined, expected)
    same(found["Y_h"], last[0] if kind == "LSTM" else last)
    factor = torch.randn_like(expected)
    (joined * factor).sum().backward()
    (expected * factor).sum().backward()
    slopes = torch.stack(
        [ordered(getattr(module, f"weight_hh_l0{s}").grad, ORDERS[kind]) for s in suffixes]
    )
    same(model.constant("R").grad, slopes)


CONVOLUTIONS = [
    (nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}),
    (nn.Conv2d, (4, 6, 3), {"dilation": 2, "padding": 2}),
    (nn.Conv3d, (2, 3, 2), {"stride": (1, 2, 1)}),
    (nn.ConvTranspose1d, (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    (nn.ConvTranspose2d, (4, 6, 3), {"stride": 2, "groups": 2}),
]


@pytest.mark.parametrize(("kind", "sizes", "options"), CONVOLUTIONS)
def test_convolutions(kind: Any, sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = single(kind(*sizes, **options))
    axes = module.weight.dim() - 2
    attributes: dict[str, Any] = {
        "strides": list(module.stride),
        "dilations": list(module.dilation),
        "pads": list(module.padding) * 2,
        "group": module.groups,
    }
    if "Transpose" in kind.__name__:
        attributes["output_padding"] = list(module.output_padding)
    name = "ConvTranspose" if "Transpose" in kind.__name__ else "Conv"
    node = helper.make_node(name, ["x", "w", "b"], ["y"], **attributes)
    model = trainable([node], axes + 2, {"w": module.weight, "b": module.bias})
    x = torch.randn(2, sizes[0], *[9] * axes, dtype=DOUBLE)
    found, expected = model({"x": x})["y"], module(x)
    same(found, expected)
    factor = torch.randn_like(expected)
    (found * factor).sum().backward()
    (expected * factor).sum().backward()
    same(model.constant("w").grad, module.weight.grad)
    same(model.constant("b").grad, module.bias.grad)


def test_running_statistics_are_moved_as_onnx_says() -> None:
    """`running · momentum + batch · (1 − momentum)`, with the variance divided by the size."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, dtype=DOUBLE) * 3 + 1
    before = {"mean": torch.randn(3), "var": torch.rand(3) + 0.5}
    constants = {"scale": torch.rand(3), "bias": torch.rand(3), **before}
    node = helper.make_node(
        "BatchNormalization", ["x", *constants], ["y"], momentum=0.7, epsilon=1e-3
    )
    model = trainable([node], 3, constants)
    assert {name for name, _ in model.named_parameters()} == {"scale", "bias"}
    module = single(nn.BatchNorm1d(3, eps=1e-3))
    module.weight.data[:], module.bias.data[:] = constants["scale"], constants["bias"]
    model.train()
    found = model({"x": x})["y"]
    same(found, module(x))
    rows = x.numpy().transpose(1, 0, 2).reshape(3, -1)
    for name, batch in (("mean", rows.mean(1)), ("var", rows.var(1))):
        expected = before[name].numpy() * 0.7 + batch * 0.3
        np.testing.assert_allclose(model.constant(name).numpy(), expected, rtol=1e-6)
    model.eval()
    after = model({"x": x})["y"]
    module.running_mean[:], module.running_var[:] = model.constant("mean"), model.constant("var")
    same(after, module.eval()(x))
    assert not torch.allclose(after, found)


def test_dropout_drops_in_train_mode_only() -> None:
    torch.manual_seed(0)
    nodes = [helper.make_node("Dropout", ["x", "ratio"], ["y"])]
    model = trainable(nodes, 1, {"ratio": torch.tensor(0.25)})
    x = torch.rand(20_000, dtype=DOUBLE) + 1
    same(model({"x": x})["y"], x)
    model.train()
    found = model({"x": x})["y"]
    stays = found != 0
    same(found[stays], (x / 0.75)[stays])
    assert abs(stays.double().mean().item() - 0.75) < 0.02  # 6 standard deviations


def test_multi_head_attention() -> None:
    """The graph that exporters write: projections, heads, softmax, and back."""
    torch.manual_seed(0)
    size, heads = 12, 3
    module = single(nn.MultiheadAttention(size, heads, batch_first=True))
    weights = module.in_proj_weight.chunk(3)
    biases = module.in_proj_bias.chunk(3)
    constants = {
        **{f"W{n}": weight.T for n, weight in zip("qkv", weights, strict=True)},
        **{f"b{n}": bias for n, bias in zip("qkv", biases, strict=True)},
        "Wo": module.out_proj.weight.T,
        "bo": module.out_proj.bias,
        "apart": torch.tensor([0, 0, heads, size // heads]),
        "joined": torch.tensor([0, 0, size]),
        "root": torch.tensor((size // heads) ** 0.5),
    }
    nodes = []
    for name in "qkv":
        nodes += [
            helper.make_node("MatMul", ["x", f"W{name}"], [f"{name}0"]),
            helper.make_node("Add", [f"{name}0", f"b{name}"], [f"{name}1"]),
            helper.make_node("Reshape", [f"{name}1", "apart"], [f"{name}2"]),
            helper.make_node(
                "Transpose",
                [f"{name}2"],
                [name],
                perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3],
            ),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Div", ["scores", "root"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["shares"]),
        helper.make_node("MatMul", ["shares", "v"], ["seen"]),
        helper.make_node("Transpose", ["seen"], ["seen1"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["seen1", "joined"], ["seen2"]),
        helper.make_node("MatMul", ["seen2", "Wo"], ["out"]),
        helper.make_node("Add", ["out", "bo"], ["y"]),
    ]
    model = trainable(nodes, 3, constants)
    for batch, length in ((2, 5), (3, 9)):
        x = torch.randn(batch, length, size, dtype=DOUBLE)
        found, expected = model({"x": x})["y"], module(x, x, x)[0]
        same(found, expected)
        factor = torch.randn_like(expected)
        model.zero_grad()
        module.zero_grad()
        (found * factor).sum().backward()
        (expected * factor).sum().backward()
        slopes = module.in_proj_weight.grad.chunk(3)
        for name, slope in zip("qkv", slopes, strict=True):
            same(model.constant(f"W{name}").grad, slope.T)


@pytest.mark.parametrize(
    ("node", "module"),
    [
        (("InstanceNormalization", {"epsilon": 1e-3}), nn.InstanceNorm2d(4, 1e-3, affine=True)),
        (("GroupNormalization", {"num_groups": 2, "epsilon": 1e-5}), nn.GroupNorm(2, 4)),
        (("LayerNormalization", {"axis": 1}), nn.LayerNorm([4, 5, 6])),
    ],
)
def test_normalisations(node: tuple[str, dict[str, Any]], module: Any) -> None:
    torch.manual_seed(0)
    single(module)
    nn.init.uniform_(module.weight)
    nn.init.uniform_(module.bias)
    single(module)
    constants = {"scale": module.weight, "bias": module.bias}
    made = helper.make_node(node[0], ["x", *constants], ["y"], **node[1])
    model = trainable([made], 4, constants, 21)
    x = torch.randn(3, 4, 5, 6, dtype=DOUBLE)
    found, expected = model({"x": x})["y"], module(x)
    same(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    same(model.constant("scale").grad, module.weight.grad)
