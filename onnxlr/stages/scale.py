"""A factor for each feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format

__all__ = ["Scale"]


@dataclass(frozen=True)
class Scale:
    """`y = x * s`, with `s` of shape `(*batch, features)`."""

    factors: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the diagonal matrix this is, `(*batch, features, features)`."""
        return (*self.factors.shape, self.factors.shape[-1])

    @property
    def parameters(self) -> int:
        """Number of factors."""
        return int(self.factors.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return int(self.factors.nbytes)

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return `x * s` in float64; `x` has shape `(..., features)`."""
        factors = self.factors.astype(np.float64)
        rows = factors[..., None, :] if factors.ndim > 1 else factors
        return np.asarray(x, np.float64) * rows

    def operations(self, positions: int) -> int:
        """Return the multiplications for `positions` rows."""
        return positions * self.parameters

    def encoded(self, format: Format, compute: npt.DTypeLike) -> Scale:  # noqa: ARG002
        """Return the factors in the model's float type: they are too few to be worth a format."""
        return Scale(self.factors.astype(compute))
