"""Forms of a convolution's kernel written out by hand, independently of onnxlr."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from onnxlr.methods import SvdOptions
from onnxlr.plan import Choice

Array = np.ndarray[Any, Any]


def forms_of(extent: tuple[int, ...]) -> dict[str, list[int]]:
    """Return each form that a kernel of that extent has, with the axes of its first stage."""
    wide = [axis for axis, size in enumerate(extent) if size > 1]
    forms = {"channel": list(range(len(extent)))}
    if wide:
        forms["input"] = []
    if len(wide) > 1:
        forms["spatial"] = [wide[-1]]
        forms["spatial_swapped"] = [a for a in range(len(extent)) if a != wide[-1]]
    return forms


def to_matrix(kernel: Array, first: list[int]) -> Array:
    """Return `(inputs, outputs, *k)` of one group as `(inputs · k_first) × (outputs · k_rest)`."""
    spatial = kernel.ndim - 2
    rest = [axis for axis in range(spatial) if axis not in first]
    ordered = kernel.transpose(0, *(a + 2 for a in first), 1, *(a + 2 for a in rest))
    rows = kernel.shape[0]
    for axis in first:
        rows *= kernel.shape[axis + 2]
    return ordered.reshape(rows, -1)


def from_matrix(matrix: Array, shape: tuple[int, ...], first: list[int]) -> Array:
    """Undo `to_matrix`."""
    spatial = len(shape) - 2
    rest = [axis for axis in range(spatial) if axis not in first]
    order = [0, *(a + 2 for a in first), 1, *(a + 2 for a in rest)]
    return matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def blocks(stored: Array, groups: int, transposed: bool) -> list[Array]:
    """Return each group of a stored kernel as `(inputs, outputs, *k)` in float64.

    Conv stores `(O, I/g, *k)`, ConvTranspose `(I, O/g, *k)`; both in groups along the first axis.
    """
    parts = np.split(stored.astype(np.float64), groups, axis=0)
    return parts if transposed else [part.swapaxes(0, 1) for part in parts]


def joined(parts: list[Array], transposed: bool) -> Array:
    """Undo `blocks`."""
    return np.concatenate([part if transposed else part.swapaxes(0, 1) for part in parts])


def factors(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return numpy's truncated factors, the singular values on the left, without rounding."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = min(rank, len(s))
    return u[:, :rank] * s[:rank], vt[:rank]


def to_int8(values: Array, axes: tuple[int, ...], compute: str = "float32") -> Array:
    """Return what values are after rounding to int8 with one scale across `axes`."""
    peak = np.abs(values).max(axis=axes, keepdims=True)
    tiny = float(np.finfo(compute).tiny)
    scale = np.maximum(peak / 127, tiny).astype(compute).astype(np.float64)
    return np.clip(np.rint(values / scale), -127, 127) * scale


def truncated_kernel(
    stored: Array, groups: int, transposed: bool, form: str, rank: int, format: str | None = None
) -> Array:
    """Return a stored kernel with each group truncated in a form, the factors rounded, float64."""
    extent = stored.shape[2:]
    first = forms_of(extent)[form]
    parts = []
    for block in blocks(stored, groups, transposed):
        left, right = factors(to_matrix(block, first), rank)
        if format == "float16":
            left, right = (f.astype(np.float16).astype(np.float64) for f in (left, right))
        elif format == "int8":
            # The first stage's outputs are the columns of `left`; the second's are the outputs of
            # the block, so that its scales cover the ranks and the taps that the second stage has.
            left = to_int8(left, (0,))
            right = to_int8(right.reshape(len(right), block.shape[1], -1), (0, 2))
            right = right.reshape(left.shape[1], -1)
        parts.append(from_matrix(left @ right, block.shape, first))
    return joined(parts, transposed)


def full_rank(stored: Array, groups: int, transposed: bool, form: str) -> int:
    """Return the smaller side of a group's matrix in a form."""
    block = blocks(stored, groups, transposed)[0]
    return min(to_matrix(block, forms_of(stored.shape[2:])[form]).shape)


def factor_sizes(
    stored: Array, groups: int, transposed: bool, form: str, rank: int
) -> tuple[int, int, int]:
    """Return the entries of both factors of all groups together, and the scales they would have."""
    block = blocks(stored, groups, transposed)[0]
    rows, columns = to_matrix(block, forms_of(stored.shape[2:])[form]).shape
    return groups * rank * rows, groups * rank * columns, groups * (rank + block.shape[1])


def form_choice(rank: int, form: str | None, format: str | None = None) -> Choice:
    """Return the choice of a rank and a form."""
    return Choice("svd", SvdOptions(rank=rank, form=form), format=format)


def quantized(format: str) -> Choice:
    """Return the choice of another format for the whole weight."""
    return Choice("quantize", format=format)


def convolution(operator: str, constants: dict[str, Array], output: str = "y", **attributes: Any):
    """Return a node whose further inputs are the constants in order."""
    given = {name: value for name, value in attributes.items() if value is not None}
    return helper.make_node(operator, ["x", *constants], [output], name="conv", **given)
