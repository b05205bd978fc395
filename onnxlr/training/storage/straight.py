"""Codes as whole numbers of trained values, with gradients that pass through the rounding.

Straight-through: Bengio, Léonard, Courville, *Estimating or propagating gradients through
stochastic neurons* (arXiv:1308.3432), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxlr.training.torch_import import torch
from onnxlr.training.trainable import TrainableModel

__all__ = ["Layout", "Storage", "StoredCodes", "as_unit", "whole"]

Tensor = Any
Array = npt.NDArray[Any]

_LEAST_UNIT = 1e-3
"""Of the root of the mean squared unit. An output of zeros has the smallest normal number as its
scale: gradients by that would not be finite."""


class Layout(Protocol):
    """How codes lie in a constant."""

    def read(self, array: Array) -> Array:
        """Return the codes of a constant, in the shape in which they are trained."""

    def write(self, array: Array, codes: Array) -> Array:
        """Return the constant with other codes; what is no code of it stays."""


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bounds = (low, high)
        return values.round().clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        low, high = ctx.bounds
        # What is beyond an end may come back: else it would stay there for good.
        outwards = ((values < low) & (gradient > 0)) | ((values > high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0), None, None


def whole(values: Tensor, low: float, high: float) -> Tensor:
    """Return the nearest whole numbers from `low` to `high`; gradients pass as if unrounded.

    They stop where a value is beyond an end and a step against the gradient would take it further.
    """
    return _Whole.apply(values, low, high)


def as_unit(unit: Array, dtype: Any) -> Tensor:
    """Return sizes of what codes are multiplied by, none of them next to nothing."""
    sizes = np.abs(unit.astype(np.float64))
    typical = float(np.sqrt(np.square(sizes).mean())) if sizes.size else 1.0
    if not np.isfinite(typical) or typical == 0:
        return torch.ones(unit.shape, dtype=dtype)
    return torch.from_numpy(np.maximum(sizes, _LEAST_UNIT * typical)).to(dtype)


@dataclass(frozen=True)
class Storage:
    """Where a weight's codes are.

    Attributes
    ----------
    constant
        Name of the constant that holds them.
    name
        Name of the tensor that has them as numbers, one an entry: the constant, or what is unpacked
        from it.
    array
        The constant as it came.
    layout
        How they lie in it.
    low, high
        Least and largest code.
    zero
        The code that trained values of 0 stand for.
    scales
        Names of the constants that codes are multiplied by.
    fixed_scales
        Whether these cannot be changed alone, as something else is kept in their units.
    indices
        Of a table whose rows are unpacked as they are asked for: the tensor that asks.
    """

    constant: str
    name: str
    array: Array
    layout: Layout
    low: int
    high: int
    zero: int
    scales: tuple[str, ...]
    fixed_scales: bool = False
    indices: str | None = None

    @property
    def codes(self) -> Array:
        """The codes as they came, less the one of 0."""
        return self.layout.read(self.array) - self.zero


class StoredCodes(torch.nn.Module):
    """Whole-number codes of one constant, rounded from trained values.

    The values are in the units of the weight that the codes stand for: a code times its scale. So
    a step of an optimizer changes the weight as much as it would change a float weight, whatever
    the format, and the learning rates of float weights suit codes of 8 bits and of 2. (Distilling a
    network of two random 64×128 layers, Adam, 400 steps, the best of the rates 1e-4, 3e-4 and 1e-3
    in these units left an error of 6 to 11 % less than one unit for a whole tensor did; with steps
    counted in codes the useful rate is ten times as large, and differs from format to format.)

    Parameters
    ----------
    storage
        Where the codes are.
    unit
        What each code is multiplied by, up to sign, in the shape of the codes.
    dtype
        Float type that they are trained in; float32 if not given.

    Attributes
    ----------
    storage
        Where the codes are.
    values
        The trained values, in the shape of the codes.
    """

    storage: Storage
    values: torch.nn.Parameter
    unit: Tensor

    def __init__(self, storage: Storage, unit: Array, dtype: Any = None) -> None:
        super().__init__()
        self.storage = storage
        self.register_buffer("unit", as_unit(unit, dtype or torch.float32), persistent=False)
        start = torch.from_numpy(storage.codes).to(self.unit.dtype)
        self.values = torch.nn.Parameter(start * self.unit)

    @property
    def constant(self) -> str:
        """Name of the constant that holds the codes."""
        return self.storage.constant

    @property
    def name(self) -> str:
        """Name of the tensor that it gives."""
        return self.storage.name

    def attach(self, model: TrainableModel) -> None:
        """Let a model take its codes from here."""
        inputs = () if self.storage.indices is None else (self.storage.indices,)
        model.replace(self.name, self, inputs)

    def forward(self, indices: Tensor | None = None) -> Tensor:
        """Return the codes, as floats; of a table the rows asked for, if any are."""
        held, values, unit = self.storage, self.values, self.unit
        if indices is not None:
            values, unit = values[indices], unit[indices]
        return whole(values / unit, held.low - held.zero, held.high - held.zero) + held.zero

    def settle(self) -> None:
        """Take values that have gone beyond the range of the codes back to its ends."""
        held, unit = self.storage, self.unit
        with torch.no_grad():
            low, high = held.low - held.zero, held.high - held.zero
            self.values.copy_(torch.minimum(torch.maximum(self.values, low * unit), high * unit))

    def array(self) -> Array:
        """Return the constant with the codes as they are now, as the file keeps them."""
        with torch.no_grad():
            codes = self.forward().to("cpu", torch.float64).numpy()
        return self.storage.layout.write(self.storage.array, np.rint(codes).astype(np.int64))
