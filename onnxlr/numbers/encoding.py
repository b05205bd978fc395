"""Encoding a matrix in a format, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format

__all__ = ["Encoded", "encode"]

_INT8_MAX = 127


@dataclass(frozen=True)
class Encoded:
    """A matrix in a format.

    Attributes
    ----------
    format
        The format.
    codes
        Stored numbers, shape `(*batch, inputs, outputs)`, of the format's dtype.
    scales
        For integer formats, floats of shape `(*batch, 1, outputs)`; None for float formats.
    """

    format: Format
    codes: npt.NDArray[Any]
    scales: npt.NDArray[Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix, `(*batch, inputs, outputs)`."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return self.codes.nbytes + (self.scales.nbytes if self.scales is not None else 0)

    def decode(self) -> npt.NDArray[np.float64]:
        """Return the matrix the codes stand for, in float64."""
        values = self.codes.astype(np.float64)
        return values if self.scales is None else values * self.scales.astype(np.float64)


def encode(
    matrix: npt.NDArray[Any], format: Format, compute: npt.DTypeLike = np.float32
) -> Encoded:
    """Round a matrix to a format, to the nearest code.

    Parameters
    ----------
    matrix
        Real numbers, shape `(*batch, inputs, outputs)`.
    format
        The format to keep it in.
    compute
        Float type of the model, which scales are kept in.

    Returns
    -------
    Encoded
        For `int8` each column's scale is its largest magnitude / 127, never below the smallest
        normal number of `compute` (a column of zeros gets that scale and codes 0).
    """
    if format.is_float:
        limits = np.finfo(format.kind)
        return Encoded(format, np.clip(matrix, limits.min, limits.max).astype(format.dtype))
    smallest = np.finfo(compute).tiny
    peak = np.abs(matrix).max(axis=-2, keepdims=True, initial=0.0)
    scales = np.maximum(peak / _INT8_MAX, smallest).astype(compute)
    codes = np.rint(matrix / scales.astype(np.float64))
    return Encoded(format, np.clip(codes, -_INT8_MAX, _INT8_MAX).astype(np.int8), scales)
