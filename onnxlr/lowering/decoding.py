"""From codes in a file to numbers, by arithmetic that ONNX Runtime folds when it loads the model.

Float16 and bfloat16 numbers are computed in float32 and rounded in the last node: ONNX Runtime has
no such arithmetic on the CPU, and would not fold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxlr.lowering.arithmetic import Arithmetic
from onnxlr.stages import Linear

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.model.shapes import Dim
    from onnxlr.numbers import Encoded

__all__ = ["decode_rows", "decode_weight", "exchanged", "pack", "unpack"]

Array = npt.NDArray[Any]

_TERNARY_ZERO = np.array(1, np.uint8)
"""The code that stands for 0 in all terms."""


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return codes `(…, count)` in bytes `(…, bytes)`: the first `bytes` codes in the lowest bits.

    Codes that are neighbours lie in neighbouring bytes, not in one, so that the arithmetic that
    takes them apart runs along memory; it takes a third of the time.
    """
    each = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    planes = padded.reshape(*padded.shape[:-1], each, -1)
    shifted = planes << (bits * np.arange(each, dtype=np.uint8)[:, None])
    return np.asarray(np.bitwise_or.reduce(shifted, axis=-2), np.uint8)


def unpack(write: Arithmetic, packed: gs.Tensor, bits: int, dims: Sequence[Dim]) -> gs.Tensor:
    """Return the codes of packed rows `(…, 1, bytes)` as float32 of `dims`, padding left out.

    A byte is divided by the powers of two that leave a code just behind the point. What is before
    the point is taken off, the code is moved before it, and the rest left out: exact in float32.
    """
    *rows, _, size = packed.shape
    each = 8 // bits
    shifts = write.constant(2.0 ** (-bits * (1 + np.arange(each)[:, None])), np.float32, "shifts")
    one = write.constant(2.0**bits, np.float32, "one")
    moved = write.combine("Mul", write.cast(packed, np.float32), shifts, [*rows, each, size])
    behind = write.combine("Sub", moved, write.floor(moved))
    codes = write.floor(write.combine("Mul", behind, one))
    count = prod(dim for dim in dims[len(rows) :] if isinstance(dim, int))
    if count == each * size:
        return write.reshape(codes, dims)
    row = write.begin(write.reshape(codes, [*rows, each * size]), len(rows), count)
    return row if len(dims) == len(rows) + 1 else write.reshape(row, dims)


def decode_weight(write: Arithmetic) -> gs.Tensor:
    """Return the place's weight as its operator takes it, in the layer's float type."""
    place, dtype = write.place, write.nodes.dtype
    weight = place.stage.weight
    if weight.scales is None:
        return write.cast(_stored(write, weight, place.arrange(weight.codes)), dtype)
    if not weight.format.is_ternary:
        return _number(write, weight, weight.zero_points, dtype)
    terms = weight.terms("int2")
    inner = dtype if len(terms) == 1 else _inner(dtype)
    total, *others = (_number(write, term, _TERNARY_ZERO, inner) for term in terms)
    for other in others:
        total = write.combine("Add", total, other)
    return write.cast(total, dtype)


def _number(
    write: Arithmetic, weight: Encoded, zeros: Array | None, dtype: np.dtype[Any]
) -> gs.Tensor:
    """Return what integers stand for, arranged as the place's operator takes them."""
    place, codes, scales = write.place, weight.codes, weight.scales
    if scales is None:
        raise ValueError("integer codes without scales")
    decoded = partial(_decoded, write, weight, dtype=dtype)
    if isinstance(place.stage, Linear):
        inputs = codes.ndim - (1 if place.flip else 2)
        grouped = scales.shape[-2] > 1
        arranged = _each(place.arrange, scales, zeros)
        return decoded(place.arrange(codes), *arranged, axis=inputs if grouped else None)
    if scales.shape[1] == 1 and not (place.spreads and place.groups > 1):
        columns = _each(place.arrange_scales, scales, zeros)
        return decoded(place.arrange(codes), *columns, axis=None)
    axis = 1 if scales.shape[1] > 1 else None
    flat = decoded(codes.reshape(len(codes), -1), scales, zeros, axis=axis)
    kernel = write.reshape(flat, codes.shape)
    return exchanged(write, kernel) if place.spreads else kernel


def decode_rows(
    write: Arithmetic, codes: gs.Tensor, scales: gs.Tensor, zeros: gs.Tensor | None
) -> gs.Tensor:
    """Return the numbers of a table's gathered rows.

    Parameters
    ----------
    codes, scales, zeros
        What was gathered: codes `(…, width)`, or `(…, 1, bytes)` where the format is packed, as the
        zero points then are; scales `(…, groups, 1)`, or `(…, 1)` where it is one.

    Returns
    -------
    Tensor
        Of shape `(…, width)`, in the layer's float type, with the name that the place wants.
    """
    kept = write.place.stage.weight.format
    if zeros is not None:
        codes = unpack(write, codes, kept.bits, [*codes.shape[:-2], write.place.features])
        zeros = unpack(write, zeros, kept.bits, scales.shape)
    last = len(codes.shape) - 1
    axis = last if len(scales.shape) > len(codes.shape) else None
    return _scaled(write, codes, scales, zeros, axis, write.nodes.dtype, write.place.output)


def _inner(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that numbers of a type are computed in."""
    return dtype if dtype == np.float64 else np.dtype(np.float32)


def _each(
    arrange: Callable[[Array], Array], scales: Array, zeros: Array | None
) -> tuple[Array, Array | None]:
    """Arrange scales, and zero points that are as many."""
    return arrange(scales), arrange(zeros) if zeros is not None and zeros.ndim else zeros


def _decoded(
    write: Arithmetic,
    weight: Encoded,
    codes: Array,
    scales: Array,
    zeros: Array | None,
    *,
    axis: int | None,
    dtype: np.dtype[Any],
) -> gs.Tensor:
    """Return numbers of a type; `zeros` without axes holds for all of them."""
    points = None
    if zeros is not None and not zeros.ndim:
        points = write.constant(zeros, np.float32, "zero_point")
    if axis is not None:  # room for what repeats them
        scales = np.expand_dims(scales, axis + 1)
    if zeros is not None and zeros.ndim:
        room = zeros if axis is None else np.expand_dims(zeros, axis + 1)
        points = _stored(write, weight, room, "zero_points")
    kept = write.constant(scales, write.nodes.dtype, "scales")
    return _scaled(write, _stored(write, weight, codes), kept, points, axis, dtype)


def _stored(write: Arithmetic, weight: Encoded, codes: Array, hint: str = "codes") -> gs.Tensor:
    """Return an array of codes as the file keeps it: packed, in one row, if they are small."""
    if not weight.format.is_packed:
        return write.constant(codes, codes.dtype, hint)
    row = pack(codes.reshape(1, -1), weight.format.bits)
    packed = write.constant(row, np.uint8, f"packed_{hint}")
    return unpack(write, packed, weight.format.bits, codes.shape)


def _scaled(
    write: Arithmetic,
    codes: gs.Tensor,
    scales: gs.Tensor,
    zeros: gs.Tensor | None,
    axis: int | None,
    dtype: np.dtype[Any],
    output: str | None = None,
) -> gs.Tensor:
    """Return `(codes − zeros) · scales`, with groups of codes along `axis`; None for no groups."""
    inner = _inner(dtype)
    if zeros is not None:
        points = _expanded(write, zeros, codes.shape, axis) if zeros.shape else zeros
        codes = write.combine("Sub", codes, points)
    numbers = write.cast(codes, inner)
    factors = _expanded(write, write.cast(scales, inner), codes.shape, axis)
    if inner == dtype:
        return write.combine("Mul", numbers, factors, output=output)
    return write.cast(write.combine("Mul", numbers, factors), dtype, output)


def _expanded(write: Arithmetic, values: gs.Tensor, dims: list[Dim], axis: int | None) -> gs.Tensor:
    """Repeat the values of groups `(…, groups, 1, …)` for their codes; others broadcast."""
    group = write.place.stage.weight.format.group
    if axis is None or group is None:
        return values
    *before, groups = values.shape[: axis + 1]
    behind = values.shape[axis + 2 :]
    ones = write.constant(np.ones((group, *[1] * len(behind))), values.dtype, "ones")
    repeated = write.combine("Mul", values, ones, [*before, groups, group, *behind])
    joined = write.reshape(repeated, [*before, groups * group, *behind])
    return write.begin(joined, axis, int(dims[axis] or 0))


def exchanged(write: Arithmetic, kernel: gs.Tensor) -> gs.Tensor:
    """Return a kernel with its channels exchanged within each group, as ConvTranspose has it."""
    first, second, *sizes = kernel.shape
    groups = write.place.groups
    apart = write.reshape(kernel, [groups, first // groups, second, *sizes])
    swapped = write.transpose(apart, [0, 2, 1, *range(3, 3 + len(sizes))])
    return write.reshape(swapped, [groups * second, first // groups, *sizes])
