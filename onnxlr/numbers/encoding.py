"""Encoding a matrix in a format, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format
from onnxlr.numbers.rounding import round_to
from onnxlr.numbers.scales import expand
from onnxlr.numbers.trits import codes_of, trits_of

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
        table `(outputs, …)`. Those of a ternary format have a digit to the base 3 for each term,
        the first term's the lowest; digits 0, 1, 2 stand for −1, 0, 1.
    scales
        For integer formats one float for each output and group of inputs: `(*batch, groups,
        outputs)`, for kernels and tables `(outputs, groups)`. For ternary formats one more for each
        term: `(*batch, terms, groups, outputs)`, of kernels `(outputs, groups, terms)`. None for
        float formats.
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

    @classmethod
    def of_trits(
        cls,
        trits: npt.NDArray[np.int8],
        scales: npt.NDArray[Any],
        group: int | None = None,
        kernel: bool = False,
    ) -> Encoded:
        """Return ternary numbers.

        Parameters
        ----------
        trits
            −1, 0 and 1, terms first: `(terms, *batch, inputs, outputs)`, or kernels
            `(terms, outputs, …)`.
        scales
            In the float type they are kept in, shaped as the attribute is.
        group
            Inputs that share a scale; None for all.
        """
        own = Format("ternary", group, terms=len(trits))
        return cls(own, codes_of(trits), scales, None, kernel)

    @property
    def trits(self) -> npt.NDArray[np.int8]:
        """Of a ternary format: −1, 0 and 1, `(terms, *shape)`."""
        return trits_of(self.codes, self.format.terms)

    def terms(self, kind: str) -> tuple[Encoded, ...]:
        """Return the terms of a ternary format as `int8` or `int2` numbers each."""
        if self.scales is None or kind not in ("int8", "int2"):
            raise ValueError(f"{self.format} numbers have no terms of {kind}")
        own = Format(kind, self.format.group)
        found = []
        for term, trits in enumerate(self.trits):
            scales = self.scales[..., term] if self.kernel else self.scales[..., term, :, :]
            if kind == "int8":
                found.append(Encoded(own, trits, scales, None, self.kernel))
                continue
            zeros = np.ones(scales.shape, np.uint8)
            codes = (trits + 1).astype(np.uint8)
            found.append(Encoded(own, codes, scales, zeros, self.kernel))
        return tuple(found)

    def decode(self) -> Matrix:
        """Return the numbers the codes stand for, in float64."""
        if self.format.is_ternary:
            terms = [term.decode() for term in self.terms("int8")]
            return np.asarray(sum(terms[1:], start=terms[0]))
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
    fed = hessian if format.rounding == "gptq" else None
    found = round_to(matrix, format, compute, fed)
    zeros = found.zero_points
    return Encoded(
        format,
        _as_stored(found.codes, numbers.shape, kernel).astype(format.dtype),
        _first_axis(found.scales, kernel).astype(compute),
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
