"""Takes planes of digits apart, by arithmetic on whole numbers. Any opset."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.arithmetic import Arithmetic
    from onnxlr.numbers.atom_storage import Planes

__all__ = ["Hold", "numbers_of"]

Hold = Callable[[npt.NDArray[Any]], "gs.Tensor"]
"""Writes an array of the file."""

_SHIFT_OPSET = 11


def numbers_of(write: Arithmetic, planes: Planes, dtype: npt.DTypeLike, hold: Hold) -> gs.Tensor:
    """Return the numbers of planes in a type that holds them.

    Returns
    -------
    Tensor
        In their order, `(2, 2, 2, columns)`, or `(count,)` where they were padded.
    """
    total: gs.Tensor | None = None
    low = 0
    for digit, plane in zip(planes.digits, planes.planes, strict=True):
        part = write.cast(_apart(write, hold(plane), digit, planes.shifts(digit)), dtype)
        if low:
            factor = write.constant(1 << low, dtype, "factor")
            part = write.combine("Mul", part, factor)
        total = part if total is None else write.combine("Add", total, part)
        low += digit
    if total is None:
        raise ValueError("numbers of no bits")
    size = int(np.prod(total.shape))
    if size == planes.count:
        return total
    return write.begin(write.reshape(total, [size]), 0, planes.count)


def _apart(
    write: Arithmetic, plane: gs.Tensor, digit: int, shifts: npt.NDArray[np.uint8]
) -> gs.Tensor:
    """Return the digits of a plane's bytes, each by itself."""
    if digit == 8:
        return plane
    nodes, dims = write.nodes, [2, 2, 2, plane.shape[-1]]
    base = 1 << digit
    if nodes.opset >= _SHIFT_OPSET:
        by = write.constant(shifts, np.uint8, "shifts")
        down = {"direction": "RIGHT"}
        moved = nodes.add("BitShift", [plane, by], "BitShift", dims, down, dtype=np.uint8)
        return write.combine("Mod", moved, write.constant(base, np.uint8, "base"))
    wide = write.cast(plane, np.int32)
    powers = write.constant(1 << shifts.astype(np.int32), np.int32, "powers")
    moved = write.combine("Div", wide, powers, dims)
    whole = write.constant(base, np.int32, "base")
    above = write.combine("Mul", write.combine("Div", moved, whole), whole)
    return write.combine("Sub", moved, above)
