"""Rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Encoded, Format, encode

__all__ = ["Lookup"]


@dataclass(frozen=True)
class Lookup:
    """`y = T[x]`, with `T` of shape `(rows, width)` kept in some format, one scale for each row."""

    weight: Encoded

    @classmethod
    def of(cls, table: npt.NDArray[Any]) -> Lookup:
        """Return the stage of an exact table (kept in float64)."""
        return cls(encode(table, Format("float64"), kernel=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the table."""
        return self.weight.shape

    @property
    def parameters(self) -> int:
        """Entries of the table."""
        return int(self.weight.codes.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the table in its format."""
        return self.weight.nbytes

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the table in float64."""
        return self.weight.decode()

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Refuse: rows are taken by number, so nothing comes before."""
        raise ValueError(f"a lookup cannot follow a step of shape {dense.shape}")

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the rows of integer indices `x`, shape `(*x.shape, width)`."""
        rows: npt.NDArray[np.float64] = self.weight.decode()[x]
        return rows

    def operations(self, positions: int) -> int:  # noqa: ARG002
        """Return no multiply-adds."""
        return 0

    def encoded(self, format: Format, compute: npt.DTypeLike) -> Lookup:
        """Return the same step with its table rounded to `format`."""
        return Lookup(encode(self.weight.decode(), format, compute, kernel=True))
