"""LSTM, GRU and RNN with all that they may have, beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch

from onnxlr.errors import ModelError
from onnxlr.training import TrainableModel
from tests.onelayer import distance, model_of, run

TIME, BATCH, INPUTS, HIDDEN = 6, 3, 4, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = np.array([6, 2, 4], np.int32)

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"input_forget": 1}),
    ("LSTM", {"clip": 0.3}),
    ("LSTM", {"activations": ["HardSigmoid", "Relu", "Softsign"]}),
    ("GRU", {}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"clip": 0.3}),
    (
        "GRU",
        {
            "activations": ["Sigmoid", "ScaledTanh"],
            "activation_alpha": [0.7],
            "activation_beta": [1.3],
        },
    ),
    ("RNN", {}),
    ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}),
]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_recurrent_operators(
    kind: str, options: dict[str, Any], lengths: bool, direction: str
) -> None:
    random = np.random.default_rng(0)
    ways, gates = (2 if direction == "bidirectional" else 1), GATES[kind]

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return random.standard_normal(shape).astype(np.float32)

    options = {
        name: value * ways if isinstance(value, list) else value for name, value in options.items()
    }
    constants = {
        "w": normal(ways, gates * HIDDEN, INPUTS),
        "r": normal(ways, gates * HIDDEN, HIDDEN),
        "b": normal(ways, 2 * gates * HIDDEN),
        "lengths": LENGTHS,
        "h": normal(ways, BATCH, HIDDEN),
    }
    if kind == "LSTM":
        constants |= {"c": normal(ways, BATCH, HIDDEN), "p": normal(ways, 3 * HIDDEN)}
    inputs = ["x", *constants]
    if not lengths:
        inputs[inputs.index("lengths")] = ""
        constants.pop("lengths")
    outputs = ["y", "last", "cell"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(
        kind, inputs, outputs, hidden_size=HIDDEN, direction=direction, **options
    )
    x = normal(TIME, BATCH, INPUTS)
    proto = model_of([node], {"x": x}, outputs, constants, 14)
    found = TrainableModel(proto)({"x": x})
    for name, expected in zip(outputs, run(proto, {"x": x}), strict=True):
        assert distance(found[name].detach().numpy(), expected) < 1e-5, name

    double = TrainableModel(proto, floating=torch.float64)
    data = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda value: double({"x": value})["y"], (data,), atol=1e-4, fast_mode=True
    )


def test_activations_that_are_not_covered_are_named() -> None:
    node = helper.make_node(
        "RNN", ["x", "w", "r"], ["y"], "rings", hidden_size=2, activations=["Sine"]
    )
    x = np.zeros((3, 1, 2), np.float32)
    constants = {name: np.zeros((1, 2, 2), np.float32) for name in "wr"}
    with pytest.raises(ModelError, match=r"RNN \(activation Sine is not covered\): 'rings'"):
        TrainableModel(model_of([node], {"x": x}, ["y"], constants, 14))
