"""Reading and making the tensors of a model, one at a time; external data stays on disk."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from onnxlr.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

__all__ = [
    "FLOAT_TYPES",
    "is_external",
    "make_tensor",
    "read_raw",
    "read_tensor",
    "replace_values",
    "stored_bytes",
    "type_name",
]

FLOAT_TYPES: dict[int, np.dtype[Any]] = {
    int(TensorProto.FLOAT): np.dtype(np.float32),
    int(TensorProto.FLOAT16): np.dtype(np.float16),
    int(TensorProto.DOUBLE): np.dtype(np.float64),
}
"""The element types whose weights can be factorized, and their numpy types."""


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's values lie in a file beside the model."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def type_name(data_type: int) -> str:
    """Return the element type's name as ONNX writes it, in lower case: `float`, `float16`."""
    return str(TensorProto.DataType.Name(data_type)).lower()


def read_raw(tensor: TensorProto, directory: Path) -> bytes:
    """Return the raw bytes of a tensor that keeps them as raw or external data."""
    if not is_external(tensor):
        return bytes(tensor.raw_data)
    copy = TensorProto()
    copy.CopyFrom(tensor)
    load_external_data_for_tensor(copy, str(directory))
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
    try:
        return numpy_helper.to_array(tensor, base_dir=str(directory))
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


def replace_values(tensor: TensorProto, values: npt.NDArray[Any]) -> None:
    """Give a tensor other values of the same type and shape, stored inside the model."""
    new = make_tensor(values, tensor.name)
    if new.data_type != tensor.data_type or list(new.dims) != list(tensor.dims):
        raise ValueError(f"tensor '{tensor.name}': the new values have another type or shape")
    new.doc_string = tensor.doc_string
    tensor.CopyFrom(new)
