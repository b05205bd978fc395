"""What a tensor says of itself: type, shape, bytes; told apart from what there really is.

Nothing here allocates by what a file claims.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from onnx import TensorProto

from onnxlr.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_claims", "claimed_bytes", "describe", "shape_text", "type_name"]

_BITS = {
    64: ("DOUBLE", "INT64", "UINT64", "COMPLEX64"),
    32: ("FLOAT", "INT32", "UINT32"),
    16: ("FLOAT16", "BFLOAT16", "INT16", "UINT16"),
    8: (
        *("BOOL", "INT8", "UINT8", "FLOAT8E8M0"),
        *("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
    ),
    4: ("INT4", "UINT4", "FLOAT4E2M1"),
    2: ("INT2", "UINT2"),
    128: ("COMPLEX128",),
}

_BITS_OF = {
    int(TensorProto.DataType.Value(name)): bits
    for bits, names in _BITS.items()
    for name in names
    if name in TensorProto.DataType.keys()  # noqa: SIM118  (an enum wrapper is no mapping)
}
"""Bits of an entry in raw and external data; types that this version of ONNX lacks are not here."""

_FIELDS = {
    "float_data": ("FLOAT", "COMPLEX64"),
    "double_data": ("DOUBLE", "COMPLEX128"),
    "int64_data": ("INT64",),
    "uint64_data": ("UINT32", "UINT64"),
    "string_data": ("STRING",),
}
"""The field of typed data by element type; all others are in `int32_data`."""

_ADDRESSABLE = 2**63
"""No array of as many bytes can be: numpy and the runtimes count them in signed 64 bits."""


def type_name(data_type: int) -> str:
    """Return the element type's name as ONNX writes it, in lower case: `float`, `float16`."""
    if data_type not in TensorProto.DataType.values():  # the checker lets any number pass
        return f"unknown type {data_type}"
    return str(TensorProto.DataType.Name(data_type)).lower()


def shape_text(dims: Iterable[int]) -> str:
    """Return dimensions as messages write them: `32×24`."""
    return "×".join(map(str, dims))


def describe(tensor: TensorProto) -> str:
    """Return what messages call a tensor: `tensor 'fc.W' (float 32×24)`."""
    shape = shape_text(tensor.dims[:8]) + ("×…" if len(tensor.dims) > 8 else "")
    what = f"{type_name(tensor.data_type)} {shape}".strip()
    return f"tensor '{tensor.name}' ({what})"


def claimed_bytes(tensor: TensorProto) -> int | None:
    """Return the bytes that raw or external data of a tensor's type and shape take.

    None for strings, and for types whose size is not known.

    Raises
    ------
    ModelError
        If a dimension is negative, or no memory could ever hold an array of this shape.
    """
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        raise ModelError(
            f"{describe(tensor)} cannot be read: it has a negative dimension, expected sizes"
        )
    bits = _BITS_OF.get(int(tensor.data_type))
    # An empty array needs no memory, but numpy counts its other dimensions all the same.
    if prod(dim for dim in dims if dim) * (bits or 8) // 8 >= _ADDRESSABLE:
        raise ModelError(
            f"{describe(tensor)} cannot be read: its dimensions claim more entries than any "
            "memory can hold"
        )
    return None if bits is None else -(-prod(dims) * bits // 8)


def check_claims(tensor: TensorProto) -> None:
    """Check that a tensor which keeps its values in the model file has as many as its shape says.

    Raises
    ------
    ModelError
        If it has not.
    """
    expected = claimed_bytes(tensor)
    if tensor.HasField("raw_data"):
        if expected is not None and len(tensor.raw_data) != expected:
            raise ModelError(
                f"{describe(tensor)} cannot be read: it holds {len(tensor.raw_data):,} bytes, "
                f"expected {expected:,}"
            )
        return
    if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
        return
    field = _field(int(tensor.data_type))
    found, wanted = len(getattr(tensor, field)), _numbers(tensor)
    if found != wanted:
        raise ModelError(
            f"{describe(tensor)} cannot be read: it holds {found:,} numbers, expected {wanted:,}"
        )


def _field(data_type: int) -> str:
    name = TensorProto.DataType.Name(data_type)
    return next((field for field, names in _FIELDS.items() if name in names), "int32_data")


def _numbers(tensor: TensorProto) -> int:
    """Return how many numbers typed data of a tensor's shape has."""
    bits = _BITS_OF.get(int(tensor.data_type), 8)
    entries = int(prod(tensor.dims))
    if bits < 8:  # packed as in raw data, one byte to a number
        return -(-entries * bits // 8)
    return 2 * entries if type_name(tensor.data_type).startswith("complex") else entries
