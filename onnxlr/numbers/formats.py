"""The formats a factor can be kept in."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes  # gives numpy the type bfloat16
import numpy as np

from onnxlr.errors import UsageError

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True)
class Format:
    """How the numbers of a matrix are kept.

    Attributes
    ----------
    kind
        `float64`, `float32`, `float16`, `bfloat16`, or `int8` (integers −127 … 127 with one scale
        for each output, no zero point).
    """

    kind: str

    @classmethod
    def parse(cls, text: str) -> Format:
        """Return the format of that name; raises UsageError naming the known ones."""
        if text not in FORMATS:
            raise UsageError(f"format '{text}' is unknown, expected one of {', '.join(FORMATS)}")
        return cls(text)

    @property
    def is_float(self) -> bool:
        """Whether values are kept as they are, up to the precision of the type."""
        return self.kind != "int8"

    @property
    def largest(self) -> float:
        """The largest finite number of a float format."""
        return float(ml_dtypes.finfo(self.kind).max)  # type: ignore[no-untyped-call]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy type of the stored codes."""
        return np.dtype(self.kind)

    def entry_bytes(self) -> int:
        """Return the bytes one stored code takes."""
        return self.dtype.itemsize


FORMATS = ("float64", "float32", "float16", "bfloat16", "int8")
"""All format kinds."""
