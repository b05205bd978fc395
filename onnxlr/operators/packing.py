"""The packed format of ternary weights, layout 1 of docs/operators.md.

A ternary value t is the code t + 1. Sixteen inputs of sixteen columns are a block of 64 bytes: byte
`4 * column + j` holds the code of input `4 * g + j` at bits `2 * g`, for g from 0 to 3. What lies
beyond the last input or column has the code 1, which stands for zero.
"""

from __future__ import annotations

from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxlr.errors import ModelError, UsageError

__all__ = [
    "BLOCK_BYTES",
    "SIDE",
    "Codes",
    "Ternary",
    "pack",
    "pack_kernel",
    "unpack",
    "unpack_kernel",
]

SIDE = 16  # inputs of a block, and columns of a panel
BLOCK_BYTES = 64
_SHARING = 4  # codes in one byte, and bytes of one column in a block

Ternary: TypeAlias = npt.NDArray[np.int8]
Codes: TypeAlias = npt.NDArray[np.uint8]


def pack(ternary: npt.NDArray[Any]) -> Codes:
    """Pack ternary matrices.

    Parameters
    ----------
    ternary
        Integers -1, 0 and 1, (terms, inputs, outputs), or (inputs, outputs) for one term.

    Returns
    -------
    numpy.ndarray
        uint8 (terms, panels, blocks, 64), with ⌈outputs / 16⌉ panels of ⌈inputs / 16⌉ blocks.

    Raises
    ------
    UsageError
        If it is not such an array.
    """
    if ternary.ndim not in (2, 3):
        raise UsageError(
            f"ternary matrices have the shape {ternary.shape}; expected (terms, inputs, outputs)"
            " or (inputs, outputs)."
        )
    return _pack(_checked(ternary if ternary.ndim == 3 else ternary[None]))


def pack_kernel(ternary: npt.NDArray[Any], group: int) -> Codes:
    """Pack the ternary kernels of a convolution, one matrix for each group of channels.

    Parameters
    ----------
    ternary
        Integers -1, 0 and 1, (terms, outputs, channels / group, *kernel).
    group
        Groups of channels.

    Returns
    -------
    numpy.ndarray
        uint8 (terms, group, panels, blocks, 64): inputs with the kernel position first and the
        channel last, ⌈outputs / group / 16⌉ panels for each group.

    Raises
    ------
    UsageError
        If it is not such an array, or if `group` does not divide the outputs.
    """
    if ternary.ndim < 4:
        raise UsageError(
            f"a ternary kernel has the shape {ternary.shape}; expected"
            " (terms, outputs, channels / group, *kernel)."
        )
    terms, outputs, channels, *kernel = ternary.shape
    if group < 1 or outputs % group:
        raise UsageError(
            f"a kernel of {outputs} outputs cannot have {group} groups of channels; expected a"
            " divisor of the outputs."
        )
    grouped = _checked(ternary).reshape(terms, group, outputs // group, channels, prod(kernel))
    matrices = grouped.transpose(0, 1, 4, 3, 2)  # terms, group, position, channel, output
    return _pack(matrices.reshape(terms, group, prod(kernel) * channels, outputs // group))


def unpack(codes: npt.NDArray[Any], inputs: int, outputs: int) -> Ternary:
    """Return the ternary matrices of packed codes.

    Parameters
    ----------
    codes
        uint8 (terms, panels, blocks, 64).
    inputs, outputs
        The size of each matrix.

    Returns
    -------
    numpy.ndarray
        int8 (terms, inputs, outputs).

    Raises
    ------
    ModelError
        If dtype or shape do not fit, if a code is 3, or if one beyond the matrix is not 1.
    """
    if codes.ndim != 4:
        raise ModelError(
            f"packed codes have the shape {codes.shape}; expected (terms, panels, blocks, 64)."
        )
    return _unpack(codes, inputs, outputs)


def unpack_kernel(codes: npt.NDArray[Any], shape: tuple[int, ...]) -> Ternary:
    """Return the ternary kernels of a convolution's packed codes.

    Parameters
    ----------
    codes
        uint8 (terms, group, panels, blocks, 64).
    shape
        Of one kernel: (outputs, channels / group, *kernel).

    Returns
    -------
    numpy.ndarray
        int8 (terms, outputs, channels / group, *kernel).

    Raises
    ------
    ModelError
        As `unpack`, or if the groups do not divide the outputs.
    """
    outputs, channels, *kernel = shape
    if codes.ndim != 5 or not codes.shape[1] or outputs % codes.shape[1]:
        raise ModelError(
            f"packed codes of a kernel {shape} have the shape {codes.shape}; expected"
            " (terms, group, panels, blocks, 64) with groups that divide the outputs."
        )
    terms, group = codes.shape[:2]
    matrices = _unpack(codes, prod(kernel) * channels, outputs // group)
    grouped = matrices.reshape(terms, group, prod(kernel), channels, outputs // group)
    return np.ascontiguousarray(grouped.transpose(0, 1, 4, 3, 2)).reshape(terms, *shape)


def _checked(ternary: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not np.issubdtype(ternary.dtype, np.signedinteger):
        raise UsageError(f"ternary values are of type {ternary.dtype}; expected int8.")
    if not ternary.size:
        raise UsageError(f"ternary values have the shape {ternary.shape}; expected at least one.")
    low, high = int(ternary.min()), int(ternary.max())
    if low < -1 or high > 1:
        raise UsageError(f"ternary values lie between {low} and {high}; expected -1, 0 and 1 only.")
    return ternary


def _pack(matrices: npt.NDArray[Any]) -> Codes:
    """Return the codes (*stack, panels, blocks, 64) of matrices (*stack, inputs, outputs)."""
    *stack, inputs, outputs = matrices.shape
    blocks, panels = -(-inputs // SIDE), -(-outputs // SIDE)
    padded = np.ones((*stack, blocks * SIDE, panels * SIDE), np.uint8)
    padded[..., :inputs, :outputs] = matrices + 1
    parts = padded.reshape(-1, blocks, _SHARING, _SHARING, panels, SIDE)
    packed = parts[:, :, 0].copy()  # stack, block, j, panel, column
    for place in range(1, _SHARING):
        packed |= parts[:, :, place] << np.uint8(2 * place)
    ordered = np.ascontiguousarray(packed.transpose(0, 3, 1, 4, 2))
    return ordered.reshape(*stack, panels, blocks, BLOCK_BYTES)


def _unpack(codes: npt.NDArray[Any], inputs: int, outputs: int) -> Ternary:
    """Return the matrices (*stack, inputs, outputs) of codes (*stack, panels, blocks, 64)."""
    *stack, panels, blocks, _ = codes.shape
    expected = (-(-outputs // SIDE), -(-inputs // SIDE), BLOCK_BYTES)
    if codes.dtype != np.uint8 or codes.shape[-3:] != expected or inputs < 1 or outputs < 1:
        raise ModelError(
            f"packed codes of {inputs} inputs and {outputs} outputs are {codes.dtype} with"
            f" {codes.shape[-3:]} as panels, blocks and bytes; expected uint8 with {expected}."
        )
    ordered = codes.reshape(-1, panels, blocks, SIDE, _SHARING).transpose(0, 2, 4, 1, 3)
    values = np.empty((ordered.shape[0], blocks, _SHARING, *ordered.shape[2:]), np.uint8)
    for place in range(_SHARING):
        values[:, :, place] = ordered >> np.uint8(2 * place) & np.uint8(3)
    matrices = values.reshape(*stack, blocks * SIDE, panels * SIDE)
    if matrices.size and int(matrices.max()) > 2:
        where = np.unravel_index(int(matrices.argmax()), matrices.shape)
        raise ModelError(
            f"packed codes hold a 3 at input {where[-2]} and output {where[-1]}; expected 0, 1"
            " or 2."
        )
    if (matrices[..., inputs:, :] != 1).any() or (matrices[..., outputs:] != 1).any():
        raise ModelError(
            f"packed codes are not all 1 beyond input {inputs} and output {outputs}; expected 1,"
            " which stands for zero."
        )
    ternary = np.ascontiguousarray(matrices[..., :inputs, :outputs]).view(np.int8)
    ternary -= np.int8(1)
    return ternary
