"""The shape of a dictionary and of what is taken of it, and what both take in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log2

from onnxlr.numbers import Format
from onnxlr.numbers.atom_storage import FLOATS, coefficient_bytes, packed_bytes

__all__ = ["Form"]

_KINDS = {4: "int4", 8: "int8", 16: "float16", 32: "float32"}


@dataclass(frozen=True)
class Form:
    """How a weight is kept as sums of atoms.

    Attributes
    ----------
    tile
        Inputs of a tile, which are the numbers of an atom.
    atoms
        Size of the dictionary.
    nonzeros
        Entries of a column: what a tile of one output takes of the dictionary.
    value_bits
        Of an entry: 2 to 8 for whole numbers from `−(2^(bits−1) − 1)` to `2^(bits−1) − 1`, 16 and
        32 for floats; 0 where all are 1.
    dictionary_bits
        Of a number of an atom: 4 and 8 are whole numbers, 16 and 32 floats. 0 for the identity,
        which is not kept.
    """

    tile: int
    atoms: int
    nonzeros: int
    value_bits: int
    dictionary_bits: int

    @property
    def is_dense(self) -> bool:
        """Whether a column has an entry for each atom."""
        return self.value_bits > 0 and self.nonzeros >= self.atoms

    @property
    def takes_one(self) -> bool:
        """Whether a column is one atom as it is: vector quantisation."""
        return self.nonzeros == 1 and self.value_bits == 0

    @property
    def is_identity(self) -> bool:
        """Whether the atoms are the inputs themselves."""
        return self.dictionary_bits == 0

    @property
    def takes_floats(self) -> bool:
        """Whether entries are any numbers, not those of a grid."""
        return self.value_bits in FLOATS

    @property
    def has_steps(self) -> bool:
        """Whether entries are whole numbers of steps, which differ from output to output."""
        return self.value_bits > 0 and not self.takes_floats

    @property
    def largest(self) -> float | None:
        """The largest value of an entry, infinity for floats; None where all are 1."""
        if self.takes_floats:
            return inf
        return 2 ** (self.value_bits - 1) - 1 if self.value_bits else None

    @property
    def format(self) -> Format:
        """What the dictionary is kept in; the identity is exact in any."""
        return Format(_KINDS[self.dictionary_bits or 8])

    @property
    def rate(self) -> float:
        """Bits that an input of an output is described by, however they are kept."""
        return self.nonzeros * (log2(max(self.atoms, 1)) + self.value_bits) / self.tile

    def bytes(self, inputs: int, outputs: int, scale: int) -> int:
        """Return the bytes of a weight, with `scale` bytes for the scale of each output."""
        columns = -(-inputs // self.tile) * outputs
        kept = columns * self.nonzeros
        sizes = coefficient_bytes(columns, self.atoms, self.nonzeros, kept, self.value_bits)
        # Several entries of 1 may be of one atom, which only indices can say.
        repeats = self.value_bits == 0 and self.nonzeros > 1
        total = sizes["indices"] if repeats else min(sizes.values())
        total += outputs * scale
        if self.is_identity:
            return total
        numbers = self.atoms * self.tile
        if self.format.is_float:
            return total + numbers * self.format.bits // 8
        if not self.format.is_packed:
            return total + numbers + self.tile * scale
        return total + packed_bytes(numbers, self.format.bits) + self.tile * (scale + 1)
