"""Activations, the shares of a softmax, and dropout."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.torch_import import torch

__all__: list[str] = []

functional = torch.nn.functional

for _name, _function in {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "Softsign": functional.softsign,
    "HardSwish": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "Mish": functional.mish,
}.items():
    operator(_name)(lambda run, x, function=_function: function(x))  # noqa: ARG005


@operator("LeakyRelu")
def leaky_relu(run: Run, x: Any) -> Any:
    """Multiply negative numbers by alpha."""
    return functional.leaky_relu(x, run.number("alpha", 0.01))


@operator("PRelu")
def prelu(run: Run, x: Any, slope: Any) -> Any:
    """Multiply negative numbers by slopes that broadcast; before opset 7 one for each channel."""
    if run.version < 7 and slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.dim() - 2))
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def elu(run: Run, x: Any) -> Any:
    """Return `alpha (exp x − 1)` of negative numbers."""
    return functional.elu(x, run.number("alpha", 1.0))


@operator("Celu")
def celu(run: Run, x: Any) -> Any:
    """Return `alpha (exp(x / alpha) − 1)` of negative numbers."""
    return functional.celu(x, run.number("alpha", 1.0))


@operator("Selu")
def selu(run: Run, x: Any) -> Any:
    """Return the exponential unit, scaled by gamma."""
    alpha = run.number("alpha", 1.6732632423543772)
    return run.number("gamma", 1.0507009873554805) * functional.elu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(run: Run, x: Any) -> Any:
    """Return numbers above alpha, 0 for others."""
    return torch.where(x > run.number("alpha", 1.0), x, torch.zeros_like(x))


@operator("Shrink")
def shrink(run: Run, x: Any) -> Any:
    """Return numbers beyond lambd, moved towards 0 by bias; 0 for others."""
    bias, edge = run.number("bias", 0.0), run.number("lambd", 0.5)
    return torch.where(x > edge, x - bias, torch.where(x < -edge, x + bias, torch.zeros_like(x)))


@operator("HardSigmoid")
def hard_sigmoid(run: Run, x: Any) -> Any:
    """Return `alpha x + beta` between 0 and 1."""
    return torch.clamp(run.number("alpha", 0.2) * x + run.number("beta", 0.5), 0, 1)


@operator("Gelu")
def gelu(run: Run, x: Any) -> Any:
    """Return x times the probability of a normal number below it, or its approximation by tanh."""
    return functional.gelu(x, approximate=run.number("approximate", "none"))


@operator("Swish")
def swish(run: Run, x: Any) -> Any:
    """Return `x · sigmoid(alpha x)`."""
    return x * torch.sigmoid(run.number("alpha", 1.0) * x)


@operator("SwiGLU")
def gated_swish(run: Run, gate: Any, x: Any) -> Any:
    """Return `x · gate · sigmoid(alpha gate)`."""
    return x * swish(run, gate)


@operator("QuickGelu", domain="com.microsoft")
def quick_gelu(run: Run, x: Any) -> Any:
    """Return `x · sigmoid(alpha x)`."""
    return x * torch.sigmoid(run.number("alpha", 1.702) * x)


@operator("Gelu", "BiasGelu", domain="com.microsoft")
def biased_gelu(run: Run, x: Any, bias: Any = None) -> Any:  # noqa: ARG001
    """Return the Gelu of data, with a bias added first."""
    return functional.gelu(x if bias is None else x + bias)


@operator("FastGelu", domain="com.microsoft")
def fast_gelu(run: Run, x: Any, bias: Any = None) -> Any:  # noqa: ARG001
    """Return the approximation by tanh, with a bias added first."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _along(run: Run, x: Any, function: Any) -> Any:
    """Apply a function along an axis; before opset 13 along all axes from it on, as one."""
    if run.version >= 13:
        return function(x, run.number("axis", -1))
    axis = run.number("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    flat = x.reshape(*x.shape[:axis], -1)
    return function(flat, -1).reshape(x.shape)


def _hard(x: Any, axis: int) -> Any:
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


@operator("Softmax")
def softmax(run: Run, x: Any) -> Any:
    """Return shares."""
    return _along(run, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(run: Run, x: Any) -> Any:
    """Return logarithms of shares."""
    return _along(run, x, torch.log_softmax)


@operator("Hardmax")
def hardmax(run: Run, x: Any) -> Any:
    """Return 1 for the first largest number, 0 for others; its gradient is 0."""
    return _along(run, x, _hard)


@operator("Dropout")
def dropout(run: Run, x: Any, ratio: Any = None, trains: Any = None) -> tuple[Any, Any]:
    """Drop numbers in train() mode, whatever the node says of training itself."""
    part = run.number("ratio", 0.5) if ratio is None else ratio.item()
    if not run.training or (trains is None and run.version >= 12 and not part):
        return x, torch.ones_like(x, dtype=torch.bool)
    stays = torch.rand_like(x) >= part
    return torch.where(stays, x / max(1 - part, 1e-30), torch.zeros_like(x)), stays
