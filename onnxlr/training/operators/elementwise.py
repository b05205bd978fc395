"""Operators that treat each number by itself."""

from __future__ import annotations

from functools import reduce
from typing import Any

from onnxlr.training.operators.kinds import WIDE_UNSIGNED
from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__: list[str] = []


def _plain(name: str, function: Any) -> None:
    operator(name)(lambda run, *values: function(*values))  # noqa: ARG005


# Floor, Ceil, Round and Sign have the gradient 0, as they are flat nearly everywhere.
for _name, _function in {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Sqrt": torch.sqrt,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Log": torch.log,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Reciprocal": torch.reciprocal,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "IsNaN": torch.isnan,
    "Identity": lambda x: x,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": torch.logical_not,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Where": lambda condition, one, other: torch.where(condition.bool(), one, other),
}.items():
    _plain(_name, _function)


@operator("Div")
def divide(run: Run, one: Any, other: Any) -> Any:  # noqa: ARG001
    """Divide; whole numbers towards zero."""
    if one.is_floating_point() or other.is_floating_point():
        return one / other
    return torch.div(one, other, rounding_mode="trunc")


@operator("Mod")
def modulo(run: Run, one: Any, other: Any) -> Any:
    """Return what is left: with the divisor's sign, or as C's fmod with the dividend's."""
    return torch.fmod(one, other) if run.number("fmod", 0) else torch.remainder(one, other)


@operator("Pow")
def power(run: Run, base: Any, exponent: Any) -> Any:  # noqa: ARG001
    """Return powers, in the type of the base.

    The gradient of an exponent is 0 where the base is not above 0: the logarithm that it has
    elsewhere does not exist there, and squares of negative numbers are common.
    """
    fixed = exponent.detach()
    if exponent.numel() == 1 and exponent.dim() <= base.dim():
        fixed = exponent.item()  # squares and roots are faster so
    found = torch.pow(base, fixed).to(base.dtype)
    if not exponent.requires_grad or not base.is_floating_point():
        return found
    above = base > 0
    slope = torch.where(above, found * torch.log(torch.where(above, base, 1)), 0).detach()
    return found + slope * (exponent - exponent.detach())


@operator("Sum")
def total(run: Run, *values: Any) -> Any:  # noqa: ARG001
    """Return the sum of each place."""
    return reduce(torch.add, values)


@operator("Mean")
def mean(run: Run, *values: Any) -> Any:  # noqa: ARG001
    """Return the mean of each place."""
    return reduce(torch.add, values) / len(values)


@operator("Max")
def maximum(run: Run, *values: Any) -> Any:  # noqa: ARG001
    """Return the largest of each place."""
    return reduce(torch.maximum, values)


@operator("Min")
def minimum(run: Run, *values: Any) -> Any:  # noqa: ARG001
    """Return the smallest of each place."""
    return reduce(torch.minimum, values)


@operator("Clip")
def clip(run: Run, x: Any, low: Any = None, high: Any = None) -> Any:
    """Return numbers within bounds; no gradient flows from those that were beyond."""
    low = run.number("min") if low is None else low
    high = run.number("max") if high is None else high
    if low is None and high is None:
        return x
    bounds = [
        None if bound is None else torch.as_tensor(bound, dtype=x.dtype, device=x.device)
        for bound in (low, high)
    ]
    return torch.clamp(x, *bounds)


@operator("IsInf")
def is_infinite(run: Run, x: Any) -> Any:
    """Tell which numbers are infinite, of the signs that are looked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if run.number("detect_positive", 1):
        found = found | torch.isposinf(x)
    if run.number("detect_negative", 1):
        found = found | torch.isneginf(x)
    return found


def _refuses_unsigned(call: Call) -> str | None:
    return (
        "unsigned numbers of more than 8 bits are not covered"
        if call.kind_of(0) in WIDE_UNSIGNED
        else None
    )


@operator("BitwiseNot", refuses=_refuses_unsigned)
def flip(run: Run, x: Any) -> Any:  # noqa: ARG001
    """Return all bits, changed."""
    return torch.bitwise_not(x)


@operator("BitShift")
def shift(run: Run, x: Any, by: Any) -> Any:
    """Shift bits; torch has no such thing for uint8 everywhere, so that it is done in int64."""
    wide, count = x.to(torch.int64), by.to(torch.int64)
    if run.number("direction") == "RIGHT":
        return (wide >> count).to(x.dtype)
    return (wide << count).to(x.dtype)
