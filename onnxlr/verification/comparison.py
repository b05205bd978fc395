"""How far two runs of an output are apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, log10, nan, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["METRICS", "Comparison", "compare"]

METRICS = ("cosine", "worst_cosine", "relative_l2", "max_abs", "sqnr", "top1", "agreement")
"""What a tolerance can be about."""


@dataclass(frozen=True)
class Comparison:
    """One output of two models, over all runs.

    Attributes
    ----------
    output
        Its name.
    is_float
        Whether it holds floats; other outputs have `agreement` only.
    cosine
        Cosine similarity of all values together; 1 if both are all zeros.
    worst_cosine
        The least cosine of a single run.
    relative_l2
        `‖y − y'‖ / ‖y‖`.
    max_abs
        Largest absolute difference.
    sqnr
        Signal to quantisation noise, `20 log10(‖y‖ / ‖y − y'‖)`, in dB.
    top1
        Share of rows (along the last axis, of at least two entries) whose largest entry is at the
        same place; None for outputs without such rows.
    agreement
        Share of entries that are equal.
    non_finite, original_non_finite
        Entries that are NaN or infinite in the compared output, and in the one it is compared to.
    entries
        Entries compared, of all runs together.
    mismatch
        Why the two cannot be compared: another shape or kind of numbers. All measures are NaN then.
        None if they can.
    """

    output: str
    is_float: bool
    cosine: float
    worst_cosine: float
    relative_l2: float
    max_abs: float
    sqnr: float
    top1: float | None
    agreement: float
    non_finite: int
    original_non_finite: int
    entries: int
    mismatch: str | None = None

    @property
    def fault(self) -> str | None:
        """What makes the output useless whatever the tolerance, None if nothing."""
        if self.mismatch:
            return f"output '{self.output}' has {self.mismatch}"
        if self.non_finite:
            origin = (
                "the model it is compared to has some on these inputs, too"
                if self.original_non_finite
                else "the model it is compared to has none"
            )
            return (
                f"output '{self.output}' has {self.non_finite:,} NaN or infinite entries ({origin})"
            )
        if self.original_non_finite:
            return (
                f"output '{self.output}' has finite entries where the model it is compared to has "
                f"{self.original_non_finite:,} NaN or infinite ones"
            )
        return None


def compare(output: str, pairs: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> Comparison:
    """Compare an output of two models, given as pairs `(expected, found)` of one run each."""
    sums = _Sums()
    for expected, found in pairs:
        if mismatch := _mismatch(expected, found):
            return _incomparable(output, _is_float(expected), mismatch)
        sums.add(expected, found)
    return sums.result(output)


_KINDS = {"f": "floats", "i": "integers", "u": "integers", "b": "booleans", "c": "complex numbers"}


def _mismatch(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> str | None:
    kinds = [_KINDS.get(array.dtype.kind, "strings") for array in (expected, found)]
    if kinds[0] != kinds[1]:
        return f"{kinds[1]}, expected {kinds[0]}"
    if expected.shape != found.shape:
        return f"shape {list(found.shape)}, expected {list(expected.shape)}"
    return None


def _is_float(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind == "f"


def _incomparable(output: str, is_float: bool, mismatch: str) -> Comparison:
    top1 = nan if is_float else None
    return Comparison(output, is_float, nan, nan, nan, nan, nan, top1, nan, 0, 0, 0, mismatch)


class _Sums:
    """Running sums over the runs, in float64."""

    def __init__(self) -> None:
        self.is_float = False
        self.entries = self.equal = self.bad = self.original_bad = 0
        self.rows = self.same_top = 0
        self.product = self.norm = self.other_norm = self.noise = self.largest = 0.0
        self.worst = 1.0

    def add(self, expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
        self.entries += expected.size
        self.equal += int(np.count_nonzero(expected == found))
        if not _is_float(expected):
            return
        self.is_float = True
        y, z = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        finite = np.isfinite(y) & np.isfinite(z)
        self.bad += int(np.count_nonzero(~np.isfinite(z)))
        self.original_bad += int(np.count_nonzero(~np.isfinite(y)))
        y, z = np.where(finite, y, 0.0), np.where(finite, z, 0.0)
        product, norm, other = float(y @ z), float(y @ y), float(z @ z)
        self.product, self.norm = self.product + product, self.norm + norm
        self.other_norm += other
        self.noise += float(np.square(y - z).sum())
        self.largest = max(self.largest, float(np.abs(y - z).max(initial=0.0)))
        self.worst = min(self.worst, _cosine(product, norm, other))
        if expected.ndim and expected.shape[-1] > 1 and expected.size:
            top = expected.argmax(-1) == found.argmax(-1)
            self.rows += top.size
            self.same_top += int(np.count_nonzero(top))

    def result(self, output: str) -> Comparison:
        noise, norm = sqrt(self.noise), sqrt(self.norm)
        relative = noise / norm if norm > 0 else (0.0 if noise == 0 else inf)
        return Comparison(
            output=output,
            is_float=self.is_float,
            cosine=_cosine(self.product, self.norm, self.other_norm),
            worst_cosine=self.worst,
            relative_l2=relative,
            max_abs=self.largest,
            sqnr=inf if relative == 0 else (-inf if relative == inf else -20 * log10(relative)),
            top1=self.same_top / self.rows if self.rows else None,
            agreement=self.equal / self.entries if self.entries else 1.0,
            non_finite=self.bad,
            original_non_finite=self.original_bad,
            entries=self.entries,
        )


def _cosine(product: float, norm: float, other: float) -> float:
    if norm == 0 or other == 0:
        return 1.0 if norm == other else 0.0
    return product / sqrt(norm) / sqrt(other)
