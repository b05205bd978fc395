"""Gradients of operators against differences in float64, at the data of ONNX's own cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import torch

from onnxlr.errors import ModelError
from onnxlr.training import TrainableModel
from onnxlr.training.operators import OPERATORS
from tests.training.operators.cases import Case, cases_of

FIXED: dict[str, tuple[int, ...]] = {
    "OneHot": (0, 1),
    "Pad": (2,),
    "Resize": (1, 2),
    "Upsample": (1,),
    "TopK": (1,),
    "Range": (0, 1, 2),
    "Mod": (1,),
    "Dropout": (1,),
    "BatchNormalization": (3, 4),
}
"""Float inputs that say what is done: nothing is trained there."""

STEPS = {
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
}
"""Gradients are meant to be others than those of the steps: see test_quantised."""

MOST = 20_000
"""Numbers of the data that differences are taken of."""

NAMES = sorted(name for domain, name in OPERATORS if not domain and name not in STEPS)


def differentiable(case: Case) -> tuple[Callable[..., Any], list[torch.Tensor]] | None:
    """Return the function of float inputs to float outputs, None if there is no such thing."""
    inputs = list(case.model.graph.node[-1].input)
    fixed = {inputs[place] for place in FIXED.get(case.operator, ()) if place < len(inputs)}
    names = [
        name
        for name, value in case.feeds.items()
        if value.dtype == np.float32 and value.size and name not in fixed
    ]
    size = sum(value.size for value in case.feeds.values())
    if not names or size > MOST or any(not np.isfinite(case.feeds[n]).all() for n in names):
        return None
    try:
        model = TrainableModel(case.model, floating=torch.float64)
    except ModelError:  # test_operator_cases knows why
        return None

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = model({**case.feeds, **dict(zip(names, values, strict=True))})
        return tuple(
            value for value in found.values() if value.requires_grad and value.isfinite().all()
        )

    generator = np.random.default_rng(0)
    values = [torch.tensor(_aside(case.feeds[name], generator)).requires_grad_() for name in names]
    return (run, values) if run(*values) else None


def _aside(value: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return numbers near by: many cases lie on the corners of functions, or have equal numbers."""
    return value.astype(np.float64) + 1e-3 * (1 + generator.random(value.shape))


@pytest.mark.parametrize("operator", NAMES)
def test_gradients_are_those_of_differences(operator: str) -> None:
    for case in cases_of(operator):
        found = differentiable(case)
        if found is not None:
            run, values = found
            assert torch.autograd.gradcheck(
                run, values, eps=1e-6, atol=1e-4, rtol=1e-3, fast_mode=True
            ), case.name
