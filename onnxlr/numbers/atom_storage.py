"""What sparse coefficients take in bytes, and whole numbers of few bits as a file keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FLOATS",
    "FORMS",
    "Planes",
    "coefficient_bytes",
    "entry_bytes",
    "entry_type",
    "index_bits",
    "packed_bytes",
]

FORMS = ("indices", "mask", "values")
"""How a column's coefficients are kept: the numbers of its atoms, as many in each column; a bit for
each atom that says whether it has an entry; or an entry for each atom. The first two have the
entries beside them, unless all are 1."""

FLOATS: dict[int, np.dtype[Any]] = {16: np.dtype(np.float16), 32: np.dtype(np.float32)}
"""Entries of so many bits are floats, all others whole numbers."""

_TOGETHER = 8
"""Numbers whose bits make whole bytes, however many bits they have."""
_AXES = {8: (), 4: (2,), 2: (1, 2), 1: (0, 1, 2)}
"""Of the numbers as `(2, 2, 2, …)`: the axes whose digits of so many bits share a byte."""


def index_bits(count: int) -> int:
    """Return the bits of a whole number from 0 to below `count`."""
    return max(count - 1, 0).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of so many whole numbers of so many bits."""
    return -(-count // _TOGETHER) * bits


def entry_type(bits: int) -> np.dtype[Any]:
    """Return the type that entries of so many bits have in memory."""
    return FLOATS.get(bits, np.dtype(np.int8))


def entry_bytes(count: int, bits: int) -> int:
    """Return the bytes of so many entries: whole numbers are packed, floats are not."""
    return count * FLOATS[bits].itemsize if bits in FLOATS else packed_bytes(count, bits)


def coefficient_bytes(
    columns: int, size: int, entries: int, nonzeros: int, bits: int
) -> dict[str, int]:
    """Return what coefficients take in bytes, by the form that they are kept in.

    Parameters
    ----------
    columns
        Tiles of all outputs.
    size
        Atoms of the dictionary.
    entries
        Of the column that has most of them.
    nonzeros
        Entries of all columns that are not 0.
    bits
        Of an entry, a float if they are in `FLOATS`; 0 where all are 1, which cannot be kept as
        `values`.
    """
    places = max(index_bits(size), 1)
    found = {
        "indices": packed_bytes(columns * entries, places) + entry_bytes(columns * entries, bits),
        "mask": packed_bytes(columns * size, 1),
    }
    if bits:
        found["mask"] += entry_bytes(nonzeros + 1, bits)  # what is not there is a 0 in front
        found["values"] = entry_bytes(columns * size, bits)
    return found


@dataclass(frozen=True)
class Planes:
    """Whole numbers of few bits, in planes of digits of 8, 4, 2 and 1 bits: 9 bits are 8 and 1.

    Numbers are padded with zeros until they are `(2, 2, 2, columns)`. Digits that share a byte lie
    along the first axes, so that what takes them apart runs along memory and broadcasts to that
    shape whatever the digit.

    Attributes
    ----------
    count
        How many numbers there are.
    digits
        Bits of each plane's digit, the lowest of the numbers first.
    planes
        Bytes, uint8 of shape `(2 or 1, 2 or 1, 2 or 1, columns)`; the axes of 1 share a byte, with
        the first digit in the lowest bits.
    """

    count: int
    digits: tuple[int, ...]
    planes: tuple[npt.NDArray[np.uint8], ...]

    @classmethod
    def of(cls, numbers: npt.NDArray[np.integer], bits: int) -> Planes:
        """Return the planes of numbers from 0 to below `2^bits`, in their order in memory.

        Raises
        ------
        ValueError
            If a number has more bits, or if there is none.
        """
        flat = np.ascontiguousarray(numbers).reshape(-1)
        if not flat.size or flat.min() < 0 or int(flat.max()) >= 1 << bits:
            raise ValueError(f"expected at least one number, each from 0 to below 2^{bits}")
        padded = np.pad(flat, (0, -flat.size % _TOGETHER)).reshape(2, 2, 2, -1)
        digits, planes, low = [], [], 0
        while low < bits:
            digit = next(size for size in _AXES if size <= bits - low)
            part = (padded >> low & (1 << digit) - 1).astype(np.uint8) << cls.shifts(digit)
            planes.append(np.asarray(part.sum(_AXES[digit], np.uint8, keepdims=True)))
            digits.append(digit)
            low += digit
        return cls(flat.size, tuple(digits), tuple(planes))

    @staticmethod
    def shifts(digit: int) -> npt.NDArray[np.uint8]:
        """Return how far up in its byte each digit lies; broadcasts along the numbers."""
        shape = [2 if axis in _AXES[digit] else 1 for axis in range(3)]
        return (np.arange(prod(shape), dtype=np.uint8) * digit).reshape(*shape, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(plane.nbytes for plane in self.planes)

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return the numbers, `(count,)`."""
        total = np.zeros((2, 2, 2, self.planes[0].shape[-1]), np.int64)
        low = 0
        for digit, plane in zip(self.digits, self.planes, strict=True):
            total += (plane.astype(np.int64) >> self.shifts(digit) & (1 << digit) - 1) << low
            low += digit
        return total.reshape(-1)[: self.count]
