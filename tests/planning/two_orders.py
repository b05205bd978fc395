"""A method with two orders of contraction, of which the usual one does many times the work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.methods import METHODS, Setting, Svd
from onnxlr.methods.budget import RankBudget
from onnxlr.stages import Chain, Linear
from tests.onelayer import model_of

Array = np.ndarray[Any, Any]
WIDE = 200


@dataclass(frozen=True)
class TwoOrdersOptions(RankBudget):
    """A rank and an order."""

    order: str | None = None

    def __str__(self) -> str:
        return super().__str__() + (f", {self.order}" if self.order else "")


class TwoOrders(Svd):
    """Low rank by `svd`, in the order `wide` with zeros between the factors."""

    name = "two_orders"
    options = TwoOrdersOptions
    width = WIDE
    calls: list[str | None]

    def __init__(self) -> None:
        self.calls = []

    def factorize(self, weight: Array, options: Any, setting: Setting) -> Chain:
        self.calls.append(options.order)
        first, second = super().factorize(weight, Svd.options(rank=options.rank), setting).stages
        if options.order == "narrow":
            return Chain((first, second))
        left, right = first.dense(), second.dense()
        more = self.width - left.shape[1]
        padded = (
            Linear.of(np.pad(left, ((0, 0), (0, more)))),
            Linear.of(np.pad(right, ((0, more), (0, 0)))),
        )
        return Chain(padded).encoded(setting.format, setting.compute)

    def settle(self, options: Any, chain: Chain) -> Any:  # noqa: ARG002
        return options

    def orders(self, options: Any, setting: Setting) -> tuple[Any, ...]:  # noqa: ARG002
        if options.order is not None:
            return ()
        return tuple(replace(options, order=order) for order in ("wide", "narrow"))


def registered(monkeypatch: pytest.MonkeyPatch) -> TwoOrders:
    """Return the method, which `find_method` now finds."""
    method = TwoOrders()
    monkeypatch.setitem(METHODS, method.name, method)
    return method


def weights(count: int = 2, size: int = 512) -> list[Array]:
    """Return matrices whose singular values fall fast."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        left, right = rng.standard_normal((2, size, size))
        scale = np.exp(-np.arange(size) / 3.0)
        found.append((np.linalg.qr(left)[0] * scale @ np.linalg.qr(right)[0]).astype(np.float32))
    return found


def network(count: int = 2, size: int = 512, rows: Any = 128) -> onnx.ModelProto:
    """Return products one behind the other, named `layer0`, `layer1` …."""
    matrices = weights(count, size)
    nodes = []
    for number in range(count):
        data = "x" if number == 0 else f"a{number - 1}"
        nodes.append(
            helper.make_node("MatMul", [data, f"w{number}"], [f"h{number}"], f"layer{number}")
        )
        nodes.append(helper.make_node("Tanh", [f"h{number}"], [f"a{number}"]))
    x = np.zeros((rows if isinstance(rows, int) else 1, size), np.float32)
    constants = {f"w{number}": matrix for number, matrix in enumerate(matrices)}
    model = model_of(nodes, {"x": x}, [f"a{count - 1}"], constants)
    if not isinstance(rows, int):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = rows
        for value in model.graph.output:
            value.type.tensor_type.shape.dim[0].dim_param = rows
    return model
