"""In which types of torch the numbers of ONNX's types are kept."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from onnxlr.training.torch_import import torch

__all__ = ["WIDE_UNSIGNED", "refuses_kept", "refuses_made", "torch_type"]

WIDE_UNSIGNED = (TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)
"""Types that torch has hardly any operators for: int64 holds their numbers."""

_TYPES = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    **dict.fromkeys(WIDE_UNSIGNED, torch.int64),
}

_NARROW = {
    TensorProto.DataType.Value(name)
    for name in ("INT4", "UINT4", "INT2", "UINT2")
    if name in TensorProto.DataType.keys()  # noqa: SIM118
}
"""Types of codes in a file; int8 holds them."""


def torch_type(kind: int, floating: Any) -> Any:
    """Return the type that numbers of an ONNX type are kept in; `floating` stands for float32."""
    return floating if kind == TensorProto.FLOAT else _TYPES[kind]


def refuses_made(kind: int | None) -> str | None:
    """Return why an operator cannot make numbers of an ONNX type, None if it can."""
    if kind in (None, TensorProto.UNDEFINED, TensorProto.FLOAT, *_TYPES):
        return None
    return f"type {TensorProto.DataType.Name(kind).lower()} is not covered"


def refuses_kept(kind: int | None) -> str | None:
    """Return why numbers of an ONNX type cannot be an operator's input, None if they can."""
    return None if kind in _NARROW else refuses_made(kind)
