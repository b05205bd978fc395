"""Reading and making the tensors of a model, one at a time; external data stays on disk."""

from __future__ import annotations

from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from onnxlr.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

__all__ = [
    "FLOAT_TYPES",
    "is_external",
    "make_tensor",
    "read_raw",
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


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's values lie in a file beside the model."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def type_name(data_type: int) -> str:
    """Return the element type's name as ONNX writes it, in lower case: `float`, `float16`."""
    if data_type not in TensorProto.DataType.values():  # the checker lets any number pass
        return f"unknown type {data_type}"
    return str(TensorProto.DataType.Name(data_type)).lower()


def read_raw(tensor: TensorProto, directory: Path) -> bytes:
    """Return the raw bytes of a tensor that keeps them as raw or external data.

    Raises
    ------
    ModelError
        If external data is missing, unreadable or too short.
    """
    if not is_external(tensor):
        return bytes(tensor.raw_data)
    copy = TensorProto()
    copy.CopyFrom(tensor)
    with _reading(tensor):
        load_external_data_for_tensor(copy, str(directory))
        stated = {entry.key: entry.value for entry in tensor.external_data}.get("length")
        if len(copy.raw_data) < int(stated or 0):  # onnx 1.17 reads what there is
            raise ValueError(f"its file holds only {len(copy.raw_data):,} bytes of it")
    return bytes(copy.raw_data)


def read_tensor(tensor: TensorProto, directory: Path) -> npt.NDArray[Any]:
    """Return a tensor's values; those of an external tensor are read from its file.

    Raises
    ------
    ModelError
        If the data is missing, unreadable or of another length than the shape says.
    """
    if is_external(tensor):
        # numpy_helper loads external data into the message it is given: give it a copy.
        copy = TensorProto()
        copy.CopyFrom(tensor)
        tensor = copy
    with _reading(tensor):
        return numpy_helper.to_array(tensor, base_dir=str(directory))


@contextmanager
def _reading(tensor: TensorProto) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, OSError, onnx.checker.ValidationError) as error:
        shape = "×".join(map(str, tensor.dims))
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"tensor '{tensor.name}' ({type_name(tensor.data_type)} {shape}) cannot be read: "
            f"{reason}"
        ) from error


def stored_bytes(tensor: TensorProto) -> int:
    """Return how many bytes the tensor's values take, wherever they are stored."""
    if is_external(tensor):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries.get("length", "").isdigit():
            return int(entries["length"])
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        return int(prod(tensor.dims)) * int(item)
    return int(tensor.ByteSize())


def make_tensor(values: npt.NDArray[Any], name: str) -> TensorProto:
    """Return an initializer holding `values` as raw data."""
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
