"""Reading and making the tensors of a model, one at a time; external data stays on disk."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxlr.errors import ModelError
from onnxlr.model.claims import claimed_bytes, describe, type_name
from onnxlr.model.external import extent_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

__all__ = [
    "FLOAT_TYPES",
    "is_external",
    "make_tensor",
    "read_tensor",
    "stored_bytes",
    "type_name",
]

FLOAT_TYPES: dict[int, np.dtype[Any]] = {
    int(TensorProto.FLOAT): np.dtype(np.float32),
    int(TensorProto.FLOAT16): np.dtype(np.float16),
    int(TensorProto.DOUBLE): np.dtype(np.float64),
    int(TensorProto.BFLOAT16): np.dtype(ml_dtypes.bfloat16),
}
"""The element types whose weights can be factorized, and their numpy types."""

_MAPPED_FROM = 1 << 20
"""Bytes from which on external data is mapped instead of read."""


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's values lie in a file beside the model."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def read_tensor(tensor: TensorProto, directory: Path) -> npt.NDArray[Any]:
    """Return a tensor's values, read-only where they lie in a file of their own.

    Large external tensors are mapped: what is not looked at is not read, and the system may drop
    what has been.

    Raises
    ------
    ModelError
        If the data is missing, unreadable or of another length than the shape says.
    """
    if not is_external(tensor):
        with _reading(tensor):
            return numpy_helper.to_array(tensor)
    extent = extent_of(tensor, directory)
    with _reading(tensor):
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        fits = extent.length == prod(tensor.dims) * dtype.itemsize  # not if several share a byte
        if extent.length >= _MAPPED_FROM and fits and sys.byteorder == "little":
            shape = tuple(tensor.dims)
            return np.asarray(np.memmap(extent.path, dtype, "r", extent.offset, shape))
        inside = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        with extent.path.open("rb") as stream:
            stream.seek(extent.offset)
            inside.raw_data = stream.read(extent.length)
        return numpy_helper.to_array(inside)


@contextmanager
def _reading(tensor: TensorProto) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, onnx.checker.ValidationError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{describe(tensor)} cannot be read: {reason}") from error


def stored_bytes(tensor: TensorProto) -> int:
    """Return how many bytes the tensor's values take, wherever they are stored."""
    if is_external(tensor):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("length", "").isdigit():
            return int(entries["length"])
        return claimed_bytes(tensor) or 0
    return int(tensor.ByteSize())


def make_tensor(values: npt.NDArray[Any], name: str) -> TensorProto:
    """Return an initializer holding `values` as raw data."""
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
