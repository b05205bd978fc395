"""The arithmetic of docs/operators.md in numpy: scaled weights, rounded rows, patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["multiplied", "patches_of", "scaled_sum"]


def scaled_sum(
    ternary: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], group_size: int
) -> npt.NDArray[np.float64]:
    """Return the sum of all terms (inputs, outputs) of matrices (terms, inputs, outputs)."""
    rows = np.repeat(scales.astype(np.float64), group_size, axis=1)[:, : ternary.shape[1]]
    return np.asarray((ternary * rows).sum(axis=0))


def multiplied(
    rows: npt.NDArray[np.float32], matrix: npt.NDArray[np.float64], accuracy_level: int
) -> npt.NDArray[np.float64]:
    """Return rows (…, inputs) times a matrix (inputs, outputs), summed in float64.

    At level 4 each row is rounded to int8 first, in float32 as the specification says.
    """
    if accuracy_level == 0:
        return np.asarray(rows.astype(np.float64) @ matrix)
    largest = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), np.float32(1e-30))
    codes = np.rint(rows * (np.float32(127) / largest)).astype(np.float64)
    return np.asarray((codes @ matrix) * (largest / np.float32(127)))


def patches_of(
    x: npt.NDArray[Any],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
) -> npt.NDArray[Any]:
    """Return patches (batch, *out, *kernel, channels) of an image (batch, channels, *space)."""
    axes = len(kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[i], pads[i + axes]) for i in range(axes))])
    extents = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    spatial = tuple(range(2, axes + 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, extents, axis=spatial)
    steps = tuple(slice(None, None, step) for step in (1, 1, *strides, *dilations))
    return np.moveaxis(windows[steps], 1, -1)
