"""What a lowering must respect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["ACTIVATIONS", "Context"]

ACTIVATIONS = ("float", "dynamic_int8", "static_int8")
"""What the data may be computed in: floats only, or 8-bit integers, with a range that the runtime
finds as it runs or that calibration has found."""


@dataclass(frozen=True)
class Context:
    """The model a stage is written into.

    Attributes
    ----------
    opset
        Version of the standard operators.
    dtype
        Float type of the data and of the weight that is replaced.
    activations
        One of `ACTIVATIONS`.
    ir_version
        Version of the model's file format.
    """

    opset: int
    dtype: np.dtype[Any]
    activations: str = "float"
    ir_version: int = 8
