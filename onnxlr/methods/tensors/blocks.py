"""The identity behind the factors of semi-tensor forms, and modes that it divides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.tensors.modes import Modes, factor_sizes
from onnxlr.methods.tensors.options import TensorOptions, sizes_text

__all__ = ["SemiOptions", "check_divides", "divisible_modes"]


@dataclass(frozen=True)
class SemiOptions(TensorOptions):
    """As of all tensor decompositions, and the size of the identity.

    Attributes
    ----------
    t
        Of semi_tucker, semi_tensor_train and semi_tensor_ring: size of the identity behind each
        factor, 2 if not given; 1 is the plain form. It divides sizes of modes and ranks.
    """

    t: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.t, int) or isinstance(self.t, bool) or self.t < 1:
            raise UsageError(f"t {self.t} is not a whole number of at least 1")

    def __str__(self) -> str:
        return f"{super().__str__()}, t {self.t}"


def divisible_modes(
    weight: npt.NDArray[Any], groups: int | None, options: SemiOptions, count: int
) -> Modes:
    """Return the modes of a weight, all of them multiples of t where their sizes are not given.

    Parameters
    ----------
    count
        As of `Modes.of`; a side of a matrix has fewer where t does not divide so many.

    Raises
    ------
    UsageError
        As `Modes.of` does.
    """
    modes = Modes.of(weight, groups, options, count)
    if options.modes is not None or groups is not None:
        return modes
    inputs, outputs = weight.shape
    return Modes(_split(inputs, count, options.t), _split(outputs, count, options.t))


def _split(size: int, count: int, t: int) -> tuple[int, ...]:
    """Return nearly equal multiples of t; any sizes where t does not divide their product."""
    for number in range(count, 0, -1):
        if size % t**number == 0:
            small = factor_sizes(size // t**number, number)
            filled = (*small, *[1] * (number - len(small)))
            return tuple(t * part for part in filled if t * part > 1) or (1,)
    return factor_sizes(size, count)


def check_divides(t: int, sides: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Refuse modes that t does not divide.

    Parameters
    ----------
    sides
        Sizes of modes, and what messages call them.

    Raises
    ------
    UsageError
        Naming the first mode that it does not divide.
    """
    for what, sizes in sides:
        for size in sizes:
            if size % t:
                listed = f" of {sizes_text(sizes)}" if len(sizes) > 1 else ""
                raise UsageError(
                    f"t = {t} does not divide mode {size}{listed} of the {what}: give modes that "
                    "are multiples of t, or another t"
                )
