"""What stored codes are multiplied by, and which of them stands for 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.training.flow import MOVES, Flow, Use, is_move
from onnxlr.training.program import Call
from onnxlr.training.torch_import import torch

__all__ = ["Decoding", "decoding_of", "slopes"]

Array = npt.NDArray[Any]

_PROBE_SEED = 7


@dataclass(frozen=True)
class Decoding:
    """How codes become numbers.

    Attributes
    ----------
    scales
        Names of the constants that codes are multiplied by.
    zero
        The code that stands for 0; None if there are several.
    fixed_scales
        Whether something else is kept in units of these scales.
    """

    scales: tuple[str, ...]
    zero: int | None
    fixed_scales: bool = False


def decoding_of(flow: Flow, name: str) -> Decoding | None:
    """Return how a tensor of whole numbers is decoded; None if it is no stored weight's codes.

    Zero points are none: they are the second operand of a subtraction, or an input of their own.
    """
    walk = _Walk(flow)
    left = [name]
    while left:
        for use in flow.uses(left.pop()):
            following = walk.step(use)
            if following is None:
                return None
            left += following
    if not walk.is_scaled or any(_is_part(flow, name) for name in walk.repeated):
        return None
    zero = walk.zeros.pop() if len(walk.zeros) == 1 else None
    return Decoding(tuple(dict.fromkeys(walk.scales)), zero, walk.tied)


def _is_part(flow: Flow, name: str) -> bool:
    """Whether what was multiplied is a zero point, or a byte that is taken apart."""
    ends = flow.ends(name, lambda use: is_move(use) or use.at("Cast"))
    return any(use.at("Sub", 1) or use.at("Floor") for use in ends)


class _Walk:
    """Follows codes to where they are scaled."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.scales: list[str] = []
        self.zeros: set[int | None] = set()
        self.repeated: list[str] = []
        self.is_scaled = self.tied = False

    def step(self, use: Use) -> list[str] | None:
        """Return the tensors to go on with; None where codes do not go."""
        call = use.call
        if use.at("DequantizeLinear", 0):
            self._dequantized(call)
        elif use.at("MatMulInteger", 0, 1) or use.at("ConvInteger", 1):
            self._subtract(_input(call, use.place + 2))
            return list(call.outputs)
        elif use.at("QLinearConv", 3):
            self._take(call.inputs[4])
            self._subtract(_input(call, 5))
            self.tied = len(call.inputs) > 8
        elif use.at("QLinearMatMul", 3):
            self._take(call.inputs[4])
            self._subtract(_input(call, 5))
        elif is_move(use) or use.at("Cast") or use.at("Gather", 0):
            return list(call.outputs)
        elif use.at("Sub", 0):
            self._subtract(use.other)
            return list(call.outputs)
        elif use.at("Mul"):
            self._take(use.other)
            self.repeated += call.outputs
        elif use.at("Add") or use.at("MatMul", 0, 1) or use.at("Conv", 1):
            self.is_scaled = True  # scales are elsewhere, or all 1
        else:
            return None
        return []

    def _take(self, name: str) -> None:
        self.is_scaled = True
        if not self.zeros:
            self.zeros.add(0)
        found = list(_factors(self.flow, name))
        constants = self.flow.model.constants  # what only repeats others is all 1
        own = [name for name in found if (constants[name].astype(np.float64) != 1).any()]
        self.scales += own or found[:1]

    def _subtract(self, name: str) -> None:
        if not name:
            self.zeros.add(0)
            return
        value = self._uniform(name)
        self.zeros.add(value)

    def _uniform(self, name: str) -> int | None:
        if name not in self.flow.fixed:
            return None
        constants = self.flow.model.constants
        if name in constants:
            values = np.asarray(constants[name]).astype(np.float64)
        else:
            with torch.no_grad():
                values = self.flow.model.part([], [name])({})[name].to("cpu", torch.float64).numpy()
        same = values.size and (values == values.flat[0]).all()
        return int(values.flat[0]) if same else None

    def _dequantized(self, call: Call) -> None:
        self._subtract(_input(call, 2))
        self._take(call.inputs[1])
        for output in call.outputs:
            for use in self.flow.ends(output):
                bias = _input(use.call, 2)
                maker = self.flow.makers.get(bias)
                if use.place == 1 and maker is not None and maker.operator == "DequantizeLinear":
                    self.tied = True


def _input(call: Call, place: int) -> str:
    return call.inputs[place] if place < len(call.inputs) else ""


def _factors(flow: Flow, name: str) -> Iterator[str]:
    """Yield the float constants that a tensor is the product of."""
    constants = flow.model.constants
    if name in constants:
        if flow.model.constant(name).is_floating_point():
            yield name
        return
    call = flow.makers.get(name)
    if call is None or call.domain:
        return
    if call.operator == "Mul":
        for operand in call.inputs:
            yield from _factors(flow, operand)
    elif call.operator in (*MOVES, "Cast", "Gather"):
        yield from _factors(flow, call.inputs[0])


def slopes(flow: Flow, name: str, codes: Array, scales: tuple[str, ...]) -> Array:
    """Return how much a weight changes with each code, up to sign.

    Where weights are made of constants alone, they are differentiated, in a direction whose entries
    are drawn from −1 and 1: of a code that makes one entry, that is its scale with a sign.
    Elsewhere scales are spread as numpy would, along the last axis or the first; where they do not
    fit, all codes get their root mean square.
    """
    if name in flow.fixed:
        found = _differentiated(flow, name, codes)
        if found is not None:
            return found
    return _spread(flow, codes.shape, scales)


def _differentiated(flow: Flow, name: str, codes: Array) -> Array | None:
    model = flow.model
    targets = [target for target in flow.made_of(name) if target != name]
    if not targets:
        return None
    given = torch.from_numpy(codes.astype(np.float64)).to(model.floating).requires_grad_()
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    total = torch.zeros(())
    for value in model.part([name], targets)({name: given}).values():
        if value.is_floating_point():
            signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            total = total + (value * signs.to(value)).sum()
    if not total.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(total, given)
    return np.asarray(gradient.to("cpu", torch.float64).numpy())


def _spread(flow: Flow, shape: tuple[int, ...], scales: tuple[str, ...]) -> Array:
    total = np.ones(shape)
    for name in scales:
        values = np.asarray(flow.model.constants[name]).astype(np.float64)
        total = total * _fitted(values, shape)
    return total


def _fitted(values: Array, shape: tuple[int, ...]) -> Array:
    squeezed = values.reshape([size for size in values.shape if size != 1])
    if squeezed.ndim == 0:
        return squeezed
    if squeezed.shape == shape[-squeezed.ndim :]:
        return squeezed
    if squeezed.shape == shape[: squeezed.ndim]:
        return squeezed.reshape(*squeezed.shape, *[1] * (len(shape) - squeezed.ndim))
    if squeezed.ndim == 2 == len(shape) and squeezed.shape[0] == shape[0]:
        group = -(-shape[1] // squeezed.shape[1])
        return np.repeat(squeezed, group, axis=1)[:, : shape[1]]
    return np.sqrt(np.square(values).mean())
