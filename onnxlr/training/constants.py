"""Constants of a file as tensors, and which of them follow the data instead of being trained."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxlr.errors import ModelError
from onnxlr.training.program import Program
from onnxlr.training.torch_import import torch

__all__ = ["array_of", "running_statistics", "tensor_of"]

_STATISTICS = slice(3, 5)
"""Inputs of BatchNormalization that follow the data."""

_NARROW = ("int4", "uint4", "int2", "uint2")
"""Types that torch has not, kept as int8."""

_KNOWN = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")


def tensor_of(array: npt.NDArray[Any], where: str) -> Any:
    """Return a tensor with the numbers of an array; unsigned types of 16 bits and more as int64.

    Raises
    ------
    ModelError
        If torch has no such numbers; `where` says whose they are.
    """
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    elif array.dtype.name in _NARROW:
        array = array.astype(np.int8)
    elif array.dtype.name not in _KNOWN:
        raise ModelError(f"{where} is of type {array.dtype.name}, which is not covered in torch")
    return torch.from_numpy(np.array(array))


def array_of(tensor: Any) -> npt.NDArray[Any]:
    """Return a tensor's numbers; those of bfloat16, which numpy has not, as float32."""
    found = tensor.detach().cpu()
    return np.asarray((found.float() if found.dtype == torch.bfloat16 else found).numpy())


def running_statistics(program: Program) -> set[str]:
    """Return the constants that are running means and variances, through copies too."""
    calls = list(program.all_calls())
    copies = {call.outputs[0]: call.inputs[0] for call in calls if call.operator == "Identity"}
    found = set()
    for call in calls:
        if call.operator == "BatchNormalization":
            for name in call.inputs[_STATISTICS]:
                while name in copies:
                    name = copies[name]
                found.add(name)
    return found
