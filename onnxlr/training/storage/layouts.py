"""How codes lie in the constants that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.operators.packing import pack, pack_kernel, unpack, unpack_kernel

__all__ = ["Bits", "Blocks", "Plain", "TernaryKernel", "TernaryMatrix"]

Array = npt.NDArray[Any]


class Plain:
    """One code an entry."""

    def read(self, array: Array) -> Array:
        """Return the entries."""
        return array.astype(np.int64)

    def write(self, array: Array, codes: Array) -> Array:
        """Return codes in the constant's type."""
        return codes.astype(array.dtype)


@dataclass(frozen=True)
class Bits:
    """A few bits of a byte for each code.

    Attributes
    ----------
    bits
        Of a code.
    bytes_of
        Which byte of the constant holds a code, in the shape of the codes.
    shifts
        The lowest of its bits there.
    """

    bits: int
    bytes_of: npt.NDArray[np.integer[Any]]
    shifts: npt.NDArray[np.uint8]

    def read(self, array: Array) -> Array:
        """Return the codes."""
        held = array.reshape(-1)[self.bytes_of] >> self.shifts
        return (held & np.uint8((1 << self.bits) - 1)).astype(np.int64)

    def write(self, array: Array, codes: Array) -> Array:
        """Return the bytes with these codes; bits that belong to none stay."""
        found = array.reshape(-1).copy()
        own = np.zeros(found.shape, np.uint8)
        np.bitwise_or.at(own, self.bytes_of, np.uint8((1 << self.bits) - 1) << self.shifts)
        found &= ~own
        np.bitwise_or.at(found, self.bytes_of, codes.astype(np.uint8) << self.shifts)
        return found.reshape(array.shape)


@dataclass(frozen=True)
class Blocks:
    """MatMulNBits' bytes `(outputs, groups, bytes)`; codes are `(outputs, inputs)`.

    The first code of a byte is in its lowest bits; what fills a short last group stays.
    """

    bits: int
    inputs: int
    outputs: int

    def read(self, array: Array) -> Array:
        """Return the codes without the filling."""
        return self._all(array)[:, : self.inputs].astype(np.int64)

    def write(self, array: Array, codes: Array) -> Array:
        """Return the bytes of codes."""
        every = self._all(array)
        every[:, : self.inputs] = codes
        each = 8 // self.bits
        shifted = every.reshape(-1, each) << (self.bits * np.arange(each, dtype=np.uint8))
        return np.bitwise_or.reduce(shifted, axis=-1).astype(np.uint8).reshape(array.shape)

    def _all(self, array: Array) -> Array:
        shifts = self.bits * np.arange(8 // self.bits, dtype=np.uint8)
        codes = array.reshape(-1)[:, None] >> shifts & np.uint8((1 << self.bits) - 1)
        return codes.reshape(self.outputs, -1)


@dataclass(frozen=True)
class TernaryMatrix:
    """The packed codes of TernaryMatMul; −1, 0 and 1, `(terms, inputs, outputs)`."""

    inputs: int
    outputs: int

    def read(self, array: Array) -> Array:
        """Return −1, 0 and 1."""
        return unpack(array, self.inputs, self.outputs).astype(np.int64)

    def write(self, array: Array, codes: Array) -> Array:  # noqa: ARG002
        """Return the packed codes."""
        return pack(codes.astype(np.int8))


@dataclass(frozen=True)
class TernaryKernel:
    """The packed codes of TernaryConv; `(terms, outputs, channels / group, *kernel)`."""

    shape: tuple[int, ...]
    group: int

    def read(self, array: Array) -> Array:
        """Return −1, 0 and 1."""
        return unpack_kernel(array, self.shape).astype(np.int64)

    def write(self, array: Array, codes: Array) -> Array:  # noqa: ARG002
        """Return the packed codes."""
        return pack_kernel(codes.astype(np.int8), self.group)

    def scales(self, scales: Array, size: int) -> Array:
        """Return a scale for each trit of `(terms, groups of inputs, outputs)`.

        Groups of `size` follow a patch: kernel position first, channel last.
        """
        _, channels, *kernel = self.shape
        places = np.arange(prod(kernel) * channels).reshape(prod(kernel), channels)
        groups = (places // size).T.reshape(channels, *kernel)
        return np.moveaxis(scales[:, groups], -1, 1)
