"""Encoding a matrix in a format, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format
from onnxlr.numbers.gptq import round_with_feedback
from onnxlr.numbers.grid import choose_grid, expand

__all__ = ["Encoded", "encode"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Encoded:
    """A matrix in a format.

    Attributes
    ----------
    format
        The format.
    codes
        Stored numbers, one an entry: a matrix or stack `(*batch, inputs, outputs)`, or a kernel or
        table `(outputs, …)`.
    scales
        For integer formats one float for each output and group of inputs: `(*batch, groups,
        outputs)`, for kernels and tables `(outputs, groups)`. None for float formats.
    zero_points
        The codes that stand for 0, of the shape of the scales; None where that is code 0.
    kernel
        Whether outputs are on the first axis; the other axes together are its inputs.
    """

    format: Format
    codes: npt.NDArray[Any]
    scales: npt.NDArray[Any] | None = None
    zero_points: npt.NDArray[Any] | None = None
    kernel: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the codes."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points together, as a file holds them."""
        size = -(-self.codes.size * self.format.bits // 8)
        if self.scales is not None:
            size += self.scales.nbytes
        if self.zero_points is not None:
            size += -(-self.zero_points.size * self.format.bits // 8)
        return size

    def decode(self) -> Matrix:
        """Return the numbers the codes stand for, in float64."""
        values = self.codes.astype(np.float64)
        if self.scales is None:
            return values
        values = _as_matrix(values, self.kernel)
        if self.zero_points is not None:
            zeros = _as_matrix(self.zero_points.astype(np.float64), self.kernel)
            values = values - expand(zeros, values.shape[-2], self.format.group)
        scales = _as_matrix(self.scales.astype(np.float64), self.kernel)
        values = values * expand(scales, values.shape[-2], self.format.group)
        return _as_stored(values, self.codes.shape, self.kernel)


def encode(
    numbers: npt.NDArray[Any],
    format: Format,
    compute: npt.DTypeLike = np.float32,
    *,
    kernel: bool = False,
    hessian: Matrix | None = None,
) -> Encoded:
    """Round numbers to a format.

    Parameters
    ----------
    numbers
        Real numbers: `(*batch, inputs, outputs)`, or a kernel `(outputs, inputs/groups, *kernel)`.
    format
        The format to keep them in.
    compute
        Float type of the model, which scales are kept in.
    kernel
        Whether it is a kernel or table: its outputs are on the first axis.
    hessian
        Covariance of the inputs `(parts, inputs, inputs)`, which rounding `gptq` needs; the outputs
        are as many equal parts, each with inputs of its own (groups of a convolution). Without it,
        all rounding is to the nearest.

    Returns
    -------
    Encoded
        With scales that are never below the smallest normal number of `compute`: an output of zeros
        gets that scale, and codes that decode to 0.
    """
    numbers = np.asarray(numbers, np.float64)
    if format.is_float:
        limit = format.largest
        codes = np.clip(numbers, -limit, limit)
        # Products with subnormal numbers take many times as long on most processors. Those of
        # float16 are normal numbers of the float32 that runtimes compute in.
        if format.kind != "float16":
            codes = np.where(np.abs(codes) < format.smallest, 0.0, codes)
        return Encoded(format, codes.astype(format.dtype), kernel=kernel)
    matrix = _as_matrix(numbers, kernel)
    if format.rounding == "gptq" and hessian is not None:
        codes, scales, zeros = round_with_feedback(matrix, hessian, format, compute)
    else:
        grid = choose_grid(matrix, format, compute)
        codes, scales, zeros = grid.codes(matrix), grid.scales, grid.zero_points
    return Encoded(
        format,
        _as_stored(codes, numbers.shape, kernel).astype(format.dtype),
        _first_axis(scales, kernel).astype(compute),
        None if zeros is None else _first_axis(zeros, kernel).astype(format.dtype),
        kernel,
    )


def _as_matrix(values: npt.NDArray[Any], kernel: bool) -> npt.NDArray[Any]:
    """Return a kernel as a matrix `(inputs, outputs)`, anything else as it is."""
    return values.reshape(len(values), -1).T if kernel else values


def _as_stored(matrix: npt.NDArray[Any], shape: tuple[int, ...], kernel: bool) -> npt.NDArray[Any]:
    return matrix.T.reshape(shape) if kernel else matrix


def _first_axis(matrix: npt.NDArray[Any], kernel: bool) -> npt.NDArray[Any]:
    return matrix.T if kernel else matrix
