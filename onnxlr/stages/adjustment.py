"""What a chain has beside its stages at one site, known from calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["Adjustment", "Range"]

Range = tuple[float, float]
"""Least and largest value of a tensor."""


@dataclass(frozen=True)
class Adjustment:
    """Of one site.

    Attributes
    ----------
    correction
        Bias correction `E[x]ᵀ (W − Ŵ)`, shape `(outputs,)`, added to the chain's output; None where
        it does not pay.
    ranges
        Ranges of the data, of what each stage but the last makes, and of the output; None where
        they are not known.
    """

    correction: npt.NDArray[Any] | None = None
    ranges: tuple[Range, ...] | None = None
