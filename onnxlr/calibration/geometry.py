"""How a node sees its data: as rows of a matrix, or as the patches under a convolution's window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.layers import Layout, Site

__all__ = ["Geometry", "row_blocks", "rows", "window_blocks"]

BLOCK_BYTES = 1 << 25
"""Most bytes of rows or patches, in float64, that are made at once."""

Array = npt.NDArray[Any]
Block = npt.NDArray[np.float64]
"""`(groups, rows, inputs)`, whose matrices lie in C or in Fortran order."""


@dataclass(frozen=True)
class Geometry:
    """How rows are made of a tensor; the fields are JSON values.

    Attributes
    ----------
    columns
        Whether the tensor's columns are the rows: `W @ x`, and the transposed data of a Gemm.
    kernel
        Extent of a convolution's window; None for matrices.
    strides, pads, dilations
        As ONNX has them, one number for each axis, `pads` two; empty for ONNX's defaults.
    auto_pad
        As ONNX has it.
    groups
        Groups of channels.
    """

    columns: bool = False
    kernel: Sequence[int] | None = None
    strides: Sequence[int] = ()
    pads: Sequence[int] = ()
    dilations: Sequence[int] = ()
    auto_pad: str = "NOTSET"
    groups: int = 1

    @classmethod
    def of_data(cls, site: Site) -> Geometry:
        """Return how a matrix site or a convolution sees its data."""
        if site.layout is not Layout.CONVOLUTION:
            return cls((site.layout is Layout.SECOND_LAST) != site.transpose_data)
        values: dict[str, Any] = {
            entry.name: onnx.helper.get_attribute_value(entry) for entry in site.node.attribute
        }
        numbers = {
            name: tuple(int(number) for number in values.get(name, ()))
            for name in ("strides", "pads", "dilations")
        }
        auto_pad = values.get("auto_pad", b"NOTSET").decode()
        return cls(
            False, site.operand.dims[2:], **numbers, auto_pad=auto_pad, groups=site.groups or 1
        )

    @classmethod
    def of_output(cls, site: Site) -> Geometry:
        """Return how the results of those rows lie in the site's output."""
        return cls(site.layout is Layout.SECOND_LAST, () if site.is_convolution else None)

    def extents(self, shape: Sequence[int]) -> tuple[list[tuple[int, int]], list[int], list[int]]:
        """Return pads before and after each spatial axis of that shape, strides and dilations."""
        axes = len(shape)
        strides = list(self.strides or (1,) * axes)
        dilations = list(self.dilations or (1,) * axes)
        if self.auto_pad in ("NOTSET", ""):
            ends = list(self.pads or (0,) * (2 * axes))
            return list(zip(ends[:axes], ends[axes:], strict=True)), strides, dilations
        pads = []
        for size, kernel, stride, dilation in zip(
            shape, self.kernel or (), strides, dilations, strict=True
        ):
            missing = 0
            if self.auto_pad != "VALID":  # SAME: as many windows as strides
                missing = max(
                    (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0
                )
            less, more = missing // 2, missing - missing // 2
            pads.append((more, less) if self.auto_pad == "SAME_LOWER" else (less, more))
        return pads, strides, dilations


def rows(tensor: Array, geometry: Geometry) -> Array:
    """Return a matrix site's tensor as `(*leading, inputs)`; a vector is one row."""
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    return tensor.swapaxes(-1, -2) if geometry.columns else tensor


def row_blocks(matrix: Array) -> Iterator[Block]:
    """Yield the rows of `(rows, inputs)` in float64, some at a time."""
    count, inputs = matrix.shape
    step = max(1, BLOCK_BYTES // (8 * max(inputs, 1)))
    for start in range(0, count, step):
        yield matrix[start : start + step].astype(np.float64)[None]


def window_blocks(tensor: Array, geometry: Geometry) -> Iterator[Block]:
    """Yield the patches of data `(samples, channels, *spatial)` in float64, some at a time."""
    kernel = tuple(geometry.kernel or ())
    axes = len(kernel)
    pads, strides, dilations = geometry.extents(tensor.shape[2:])
    padded = np.pad(tensor, [(0, 0), (0, 0), *pads])
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    if any(size < extent for size, extent in zip(padded.shape[2:], reach, strict=True)):
        return  # no window fits
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(2, 2 + axes)))
    whole = (slice(None), slice(None))
    steps = (*whole, *(slice(None, None, step) for step in (*strides, *dilations)))
    windows = windows[steps]
    # (samples, channels, *positions, *kernel) -> (channels, *kernel, samples, *positions)
    order = (1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
    windows = windows.transpose(order)
    groups = geometry.groups
    inputs = prod(windows.shape[: 1 + axes]) // groups
    for cut in _cuts(windows.shape[1 + axes :], BLOCK_BYTES // (8 * max(inputs * groups, 1))):
        part = windows[(slice(None),) * (1 + axes) + cut].astype(np.float64, order="C")
        yield part.reshape(groups, inputs, -1).swapaxes(1, 2)


def _cuts(shape: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """Cut a box into boxes of at most `most` points (one, if that is none), last axes whole."""
    sizes, left = [], max(most, 1)
    for size in reversed(shape):
        sizes.append(min(size, left))
        left = max(left // max(size, 1), 1)
    sizes.reverse()
    starts = (range(0, size, max(step, 1)) for size, step in zip(shape, sizes, strict=True))
    for corner in product(*starts):
        yield tuple(slice(at, at + step) for at, step in zip(corner, sizes, strict=True))
