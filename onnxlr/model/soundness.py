"""What ONNX's checker does not look at: depth, text, and what tensors claim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import Message

from onnxlr.errors import ModelError
from onnxlr.model.claims import check_claims
from onnxlr.model.external import extent_of
from onnxlr.model.tensors import is_external

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["TOO_DEEP", "check_messages", "check_tensors"]

_MOST_LEVELS = 100
"""Messages within each other that protobuf reads; a graph within a graph takes three."""

TOO_DEEP = f"its graphs or types are nested more than {_MOST_LEVELS} messages deep"

_VALUES = {"raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"}
_WITHOUT_VALUES = [f for f in onnx.TensorProto.DESCRIPTOR.fields if f.name not in _VALUES]
"""Fields of a tensor that can hold text; listing the others would copy the values of each."""


def check_messages(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Check that messages are not nested deeper than a file can be, and that all text is UTF-8.

    And that only nodes of functions have attributes that are a function's parameters.

    Neither protobuf nor ONNX's checker minds text, and Python would stumble over it much later. A
    proto that was made in memory may be nested so deep that protobuf itself, which is recursive,
    would end the process with it: this is not.

    Returns
    -------
    list
        Every tensor, wherever it is.

    Raises
    ------
    ModelError
        If they are, some is not, or others have.
    """
    tensors = []
    pending: list[tuple[Message, int, bool]] = [(proto, 1, False)]
    while pending:
        message, level, in_function = pending.pop()
        if level > _MOST_LEVELS:
            raise ModelError(f"{TOO_DEEP}, which no file can be")
        if isinstance(message, onnx.TensorProto):
            tensors.append(message)
        elif isinstance(message, onnx.AttributeProto) and message.ref_attr_name and not in_function:
            raise ModelError(
                f"attribute '{message.name}' is the parameter '{message.ref_attr_name}' of a "
                "function, but its node is in none"
            )
        in_function |= isinstance(message, onnx.FunctionProto)
        inner = [(each, level + 1, in_function) for each in _inner_messages(message)]
        pending.extend(reversed(inner))
    return tensors


def _inner_messages(message: Message) -> Iterable[Message]:
    """Yield the messages in a message whose own text is UTF-8."""
    kind = message.DESCRIPTOR.name
    try:
        fields = _fields(message)
    except UnicodeDecodeError:  # what some versions of protobuf do where others return bytes
        raise ModelError(f"a {kind} holds undecodable text, expected UTF-8") from None
    for field, value in fields:
        if field.type == field.TYPE_MESSAGE:
            yield from [value] if isinstance(value, Message) else value
        elif field.type == field.TYPE_STRING:
            entries = [value] if isinstance(value, str | bytes) else value
            if not all(isinstance(entry, str) for entry in entries):
                raise ModelError(f"'{field.name}' of a {kind} is undecodable text, expected UTF-8")


def _fields(message: Message) -> list[tuple[Any, Any]]:
    if isinstance(message, onnx.TensorProto):
        return [(field, getattr(message, field.name)) for field in _WITHOUT_VALUES]
    return list(message.ListFields())


def check_tensors(tensors: Iterable[onnx.TensorProto], directory: Path) -> None:
    """Check that tensors have the values that their types and shapes claim.

    Raises
    ------
    ModelError
        If one has not; or if its external data is not in a file within the model's folder.
    """
    for tensor in tensors:
        if is_external(tensor):
            extent_of(tensor, directory)
        else:
            check_claims(tensor)
