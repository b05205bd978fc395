"""A matrix applied to the last axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format, encode
from onnxlr.stages.stored import Stored

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear(Stored):
    """`y = x @ W`, with `W` of shape `(*batch, inputs, outputs)` kept in some format."""

    @classmethod
    def of(cls, matrix: npt.NDArray[Any]) -> Linear:
        """Return the stage of an exact matrix (kept in float64)."""
        return cls(encode(matrix, Format("float64")))

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the matrix of a step `dense` followed by this one."""
        return self.apply(dense)

    def preceding(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the matrix of this step followed by one of matrix `dense`."""
        return np.asarray(self.dense() @ dense)

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return `x @ W` in float64; `x` has shape `(..., inputs)`."""
        product: npt.NDArray[np.float64] = np.asarray(x, np.float64) @ self.weight.decode()
        return product

    def encoded(
        self,
        format: Format,
        compute: npt.DTypeLike,
        hessian: npt.NDArray[np.float64] | None = None,
    ) -> Linear:
        """Return the same step with its matrix rounded to `format`."""
        return Linear(encode(self.weight.decode(), format, compute, hessian=hessian))
