"""Rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format, encode
from onnxlr.stages.cost import Cost
from onnxlr.stages.stored import Stored

__all__ = ["Lookup"]


@dataclass(frozen=True)
class Lookup(Stored):
    """`y = T[x]`, with `T` of shape `(rows, width)` kept in some format, one scale for each row."""

    @classmethod
    def of(cls, table: npt.NDArray[Any]) -> Lookup:
        """Return the stage of an exact table (kept in float64)."""
        return cls(encode(table, Format("float64"), kernel=True))

    @property
    def cost(self) -> Cost:
        """Rows are only taken: no arithmetic."""
        return Cost(self.parameters, self.nbytes)

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Refuse: rows are taken by number, so nothing comes before."""
        raise ValueError(f"a lookup cannot follow a step of shape {dense.shape}")

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the rows of integer indices `x`, shape `(*x.shape, width)`."""
        rows: npt.NDArray[np.float64] = self.weight.decode()[x]
        return rows

    def encoded(
        self,
        format: Format,
        compute: npt.DTypeLike,
        hessian: npt.NDArray[np.float64] | None = None,  # noqa: ARG002
    ) -> Lookup:
        """Return the same step with its table rounded to `format`."""
        return Lookup(encode(self.weight.decode(), format, compute, kernel=True))
