"""Numbers as sums of few atoms of a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.atom_storage import (
    FORMS,
    coefficient_bytes,
    index_bits,
    packed_bytes,
)
from onnxlr.numbers.encoding import Encoded

__all__ = ["Atoms", "Coefficients", "Entries", "index_bits"]

Matrix = npt.NDArray[np.float64]
Entries: TypeAlias = npt.NDArray[np.int8 | np.float16 | np.float32]


@dataclass(frozen=True)
class Coefficients:
    """A sparse matrix: what is taken of each atom, in every column.

    Attributes
    ----------
    size
        Number of atoms.
    indices
        Atoms that a column has entries for, int64 of shape `(tiles, outputs, entries)`; None where
        every column has an entry for each atom, which may be 0.
    values
        The entries, of the same shape, or `(tiles, outputs, size)` without indices; None where all
        are 1. int8, float16 or float32.
    bits
        Of a value. 2 to 8 for whole numbers from `−(2^(bits−1) − 1)` to `2^(bits−1) − 1`, 16 or 32
        for floats. 0 without values.
    """

    size: int
    indices: npt.NDArray[np.int64] | None
    values: Entries | None
    bits: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Tiles, outputs, and entries of a column."""
        held = self.values if self.indices is None else self.indices
        if held is None:
            raise ValueError("coefficients have neither indices nor values")
        return held.shape

    @property
    def nonzeros(self) -> int:
        """Entries that are not 0."""
        return prod(self.shape) if self.values is None else int(np.count_nonzero(self.values))

    @property
    def columns(self) -> int:
        """Tiles of all outputs."""
        return prod(self.shape[:2])

    @property
    def most(self) -> int:
        """Entries of a column: as many in each, or not 0 in the one that has most of them."""
        if self.indices is not None or self.values is None:
            return self.shape[2]
        return max(int(np.count_nonzero(self.values, axis=2).max()), 1)

    @property
    def repeats(self) -> bool:
        """Whether a column has two entries for the same atom."""
        if self.indices is None or self.shape[2] < 2:
            return False
        return bool(np.any(np.diff(np.sort(self.indices, axis=2), axis=2) == 0))

    def form(self, among: Sequence[str] = FORMS) -> str:
        """Return the form, one of `FORMS`, that takes the fewest bytes.

        Of coefficients that repeat atoms, that is `indices`.
        """
        sizes = self._sizes()
        best = min((name for name in among if name in sizes), key=sizes.__getitem__)
        return "indices" if best != "indices" and self.repeats else best

    @property
    def nbytes(self) -> int:
        """Bytes in that form."""
        return self._sizes()[self.form()]

    def _sizes(self) -> dict[str, int]:
        return coefficient_bytes(self.columns, self.size, self.most, self.nonzeros, self.bits)

    def entries(self) -> tuple[npt.NDArray[np.int64], Entries | None]:
        """Return indices, and values unless all are 1, `(tiles, outputs, entries)` both."""
        if self.indices is not None:
            return self.indices, self.values
        if self.values is None:
            raise ValueError("coefficients have neither indices nor values")
        first = np.argsort(self.values == 0, axis=2, kind="stable")[..., : self.most]
        return first, np.take_along_axis(self.values, first, axis=2)

    def matrix(self) -> Entries:
        """Return an entry for each atom, `(tiles, outputs, size)`; atoms must not repeat."""
        if self.indices is None:
            return np.asarray(self.values)
        values = np.int8(1) if self.values is None else self.values
        whole = np.zeros((*self.shape[:2], self.size), values.dtype)
        np.put_along_axis(whole, self.indices, values, axis=2)
        return whole

    def combine(self, atoms: Matrix) -> Matrix:
        """Return the sums of atoms `(size, width)`, of shape `(tiles, outputs, width)`."""
        if self.indices is None:
            return np.asarray(np.asarray(self.values, np.float64) @ atoms)
        total = np.zeros((*self.shape[:2], atoms.shape[1]))
        for entry in range(self.shape[2]):
            chosen = atoms[self.indices[..., entry]]
            if self.values is not None:
                chosen = chosen * self.values[..., entry, None]
            total += chosen
        return total


@dataclass(frozen=True)
class Atoms:
    """A matrix or kernel whose columns are sums of few atoms.

    The inputs of an output, in the order of a matrix's rows or of a kernel's patch, are cut into
    tiles of one width, of which the last may be shorter. A tile's numbers are a sum of atoms, times
    the output's scale.

    Attributes
    ----------
    dims
        Shape of the matrix `(inputs, outputs)`, or of the kernel `(outputs, …)`.
    dictionary
        The atoms in some format, `(size, width)`, one scale for all of each column at most.
    coefficients
        What each tile of each output takes of them.
    scales
        One for each output, in the model's float type; None for 1.
    kernel
        Whether outputs are on the first axis.
    """

    dims: tuple[int, ...]
    dictionary: Encoded
    coefficients: Coefficients
    scales: npt.NDArray[Any] | None = None
    kernel: bool = False

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.dims[0 if self.kernel else -1]

    @property
    def inputs(self) -> int:
        """Number of inputs of each of them."""
        return prod(self.dims) // self.outputs

    @property
    def is_plain(self) -> bool:
        """Whether the dictionary is the identity, which need not be kept."""
        size, width = self.dictionary.shape
        return size == width and bool(np.array_equal(self.dictionary.decode(), np.eye(size)))

    @property
    def parameters(self) -> int:
        """Stored numbers: of the dictionary, coefficients that are not 0, and scales."""
        atoms = 0 if self.is_plain else int(self.dictionary.codes.size)
        scales = 0 if self.scales is None else int(self.scales.size)
        return atoms + self.coefficients.nonzeros + scales

    @property
    def nbytes(self) -> int:
        """Bytes of dictionary, coefficients and scales, as a file holds them."""
        scales = 0 if self.scales is None else int(self.scales.nbytes)
        atoms = 0 if self.is_plain else _dictionary_bytes(self.dictionary)
        return atoms + self.coefficients.nbytes + scales

    def decode(self) -> Matrix:
        """Return the numbers in float64."""
        columns = self.coefficients.combine(self.dictionary.decode())  # (tiles, outputs, width)
        if self.scales is not None:
            columns = columns * self.scales.astype(np.float64)[:, None]
        rows = columns.swapaxes(0, 1).reshape(self.outputs, -1)[:, : self.inputs]
        return np.asarray(rows.reshape(self.dims) if self.kernel else rows.T)


def _dictionary_bytes(dictionary: Encoded) -> int:
    if not dictionary.format.is_packed:
        return dictionary.nbytes
    size = packed_bytes(dictionary.codes.size, dictionary.format.bits)
    for beside in (dictionary.scales, dictionary.zero_points):
        size += 0 if beside is None else int(beside.nbytes)
    return size
