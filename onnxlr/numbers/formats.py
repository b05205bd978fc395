"""The formats a factor can be kept in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes  # gives numpy the type bfloat16
import numpy as np

from onnxlr.errors import UsageError, check_known

__all__ = ["FORMATS", "GROUP_SIZES", "MOST_TERMS", "ROUNDINGS", "Format"]

FORMATS = ("float64", "float32", "float16", "bfloat16", "int8", "int4", "int2", "ternary")
"""All format kinds."""

GROUP_SIZES = (0, 32, 64, 128)
"""How many inputs share a scale; 0 stands for all of them."""

ROUNDINGS = ("nearest", "gptq")
"""How numbers become codes: each to the nearest one, or with the error fed to those that follow."""

MOST_TERMS = 5
"""The most ternary terms whose values one byte can hold: 3⁵ = 243."""


@dataclass(frozen=True)
class Format:
    """How the numbers of a matrix are kept.

    Attributes
    ----------
    kind
        A float type; `int8`: integers −127 … 127 without zero point; `int4` and `int2`: integers
        0 … 15 and 0 … 3 with a zero point; `ternary`: sums of terms, each a
        scale times −1, 0 or 1.
    group
        How many inputs in a row share a scale of each output; None for all of them.
    rounding
        One of `ROUNDINGS`; `gptq` needs statistics, and is `nearest` where there are none.
    terms
        Of `ternary`: how many are added, 1 to `MOST_TERMS`. 1 elsewhere.
    """

    kind: str
    group: int | None = None
    rounding: str = "nearest"
    terms: int = 1

    _BITS: ClassVar[dict[str, int]] = {"int8": 8, "int4": 4, "int2": 2, "ternary": 2}
    _DEFAULT_GROUPS: ClassVar[dict[str, int]] = {"int4": 32, "int2": 32, "ternary": 128}

    @classmethod
    def parse(cls, kind: str, group_size: int | None = None, rounding: str | None = None) -> Format:
        """Return a format by the names of a plan.

        Parameters
        ----------
        kind
            One of `FORMATS`.
        group_size
            One of `GROUP_SIZES`; None means 0 for int8, 32 for int4 and int2, 128 for ternary.
        rounding
            One of `ROUNDINGS`; None means `nearest`.

        Raises
        ------
        UsageError
            If one of them is unknown, or a float format is given groups or rounding.
        """
        check_known("format", kind, FORMATS)
        if group_size is not None and group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise UsageError(f"group size {group_size} is unknown, expected one of {sizes}")
        if rounding is not None:
            check_known("rounding", rounding, ROUNDINGS)
        if kind not in cls._BITS:
            if group_size or rounding not in (None, "nearest"):
                raise UsageError(
                    f"format {kind} has no groups and no rounding but to the nearest: those are "
                    f"for {', '.join(cls._BITS)}"
                )
            return cls(kind)
        size = cls._DEFAULT_GROUPS.get(kind, 0) if group_size is None else group_size
        return cls(kind, size or None, rounding or "nearest")

    def __str__(self) -> str:
        terms = f" ×{self.terms}" if self.terms > 1 else ""
        group = f" in groups of {self.group}" if self.group else ""
        return f"{self.kind}{terms}{group}"

    @property
    def is_float(self) -> bool:
        """Whether values are kept as they are, up to the precision of the type."""
        return self.kind not in self._BITS

    @property
    def is_packed(self) -> bool:
        """Whether several codes share a byte."""
        return self._BITS.get(self.kind, 8) < 8

    @property
    def is_ternary(self) -> bool:
        """Whether numbers are sums of scaled −1, 0 and 1."""
        return self.kind == "ternary"

    @property
    def largest(self) -> float:
        """The largest finite number of a float format."""
        return float(ml_dtypes.finfo(self.kind).max)  # type: ignore[no-untyped-call]

    @property
    def smallest(self) -> float:
        """The smallest normal number of a float format."""
        return float(ml_dtypes.finfo(self.kind).tiny)  # type: ignore[no-untyped-call]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy type codes are held in; uint8 for those that are packed in the file."""
        return np.dtype(np.uint8 if self.is_packed else self.kind)

    @property
    def bits(self) -> int:
        """Bits of one stored code, of all its terms together."""
        return self._BITS.get(self.kind, 8 * self.dtype.itemsize) * self.terms

    def groups(self, inputs: int) -> int:
        """Return how many groups that many inputs make; the last may be shorter."""
        return -(-inputs // self.group) if self.group else 1

    def bytes(self, inputs: int, outputs: int, scale: int) -> int:
        """Return the bytes of a matrix, with `scale` bytes for each scale."""
        codes = -(-inputs * outputs * self.bits // 8)
        if self.is_float:
            return codes
        count = self.groups(inputs) * outputs * self.terms
        zero_points = -(-count * self.bits // 8) if self.is_packed and not self.is_ternary else 0
        return codes + count * scale + zero_points
