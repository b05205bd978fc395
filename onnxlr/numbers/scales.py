"""Scales: one for each group of inputs and output, kept in the model's float type."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format

__all__ = ["expand", "stored"]

Matrix = npt.NDArray[np.float64]


def expand(values: npt.NDArray[Any], inputs: int, group: int | None) -> npt.NDArray[Any]:
    """Repeat `(*batch, groups, outputs)` for every input of a group; leave one row to broadcast."""
    if group is None:
        return values
    return np.repeat(values, group, axis=-2)[..., :inputs, :]


def stored(scales: Matrix, compute: npt.DTypeLike) -> Matrix:
    """Return scales as the model's float type will hold them: never below its smallest normal."""
    own = Format(np.dtype(compute).name)
    inside = np.clip(scales, own.smallest, own.largest)
    return np.asarray(inside.astype(compute).astype(np.float64))
