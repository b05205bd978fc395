"""Encoding a matrix in a format, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
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
        Stored numbers of the format's dtype: a matrix or stack `(*batch, inputs, outputs)`, or a
        convolution's kernel `(outputs, inputs/groups, *kernel)`.
    scales
        For integer formats one float for each output (of each matrix of a stack), in a shape that
        broadcasts against the codes; None for float formats.
    """

    format: Format
    codes: npt.NDArray[Any]
    scales: npt.NDArray[Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales together."""
        return self.codes.nbytes + (self.scales.nbytes if self.scales is not None else 0)

    def decode(self) -> npt.NDArray[np.float64]:
        """Return the numbers the codes stand for, in float64."""
        values = self.codes.astype(np.float64)
        return values if self.scales is None else values * self.scales.astype(np.float64)


def encode(
    numbers: npt.NDArray[Any],
    format: Format,
    compute: npt.DTypeLike = np.float32,
    *,
    kernel: bool = False,
) -> Encoded:
    """Round numbers to a format, to the nearest code.

    Parameters
    ----------
    numbers
        Real numbers: `(*batch, inputs, outputs)`, or a kernel `(outputs, inputs/groups, *kernel)`.
    format
        The format to keep them in.
    compute
        Float type of the model, which scales are kept in.
    kernel
        Whether it is a kernel: its outputs are on the first axis.

    Returns
    -------
    Encoded
        For `int8` each output's scale is its largest magnitude / 127, never below the smallest
        normal number of `compute` (an output of zeros gets that scale and codes 0).
    """
    numbers = np.asarray(numbers, np.float64)
    if format.is_float:
        limit = format.largest
        return Encoded(format, np.clip(numbers, -limit, limit).astype(format.dtype))
    reduced = tuple(range(1, numbers.ndim)) if kernel else (-2,)
    peak = np.abs(numbers).max(axis=reduced, keepdims=True, initial=0.0)
    smallest = float(ml_dtypes.finfo(compute).tiny)  # type: ignore[no-untyped-call]
    scales = np.maximum(peak / _INT8_MAX, smallest).astype(compute)
    codes = np.rint(numbers / scales.astype(np.float64))
    return Encoded(format, np.clip(codes, -_INT8_MAX, _INT8_MAX).astype(np.int8), scales)
