"""Blind changes: of bytes, of JSON values, of any field of any message, of what fields can hold."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import onnx
from google.protobuf.message import Message

__all__ = [
    "INTEGERS",
    "OPERATORS",
    "TEXTS",
    "all_of",
    "any_field",
    "change_bytes",
    "change_values",
    "copied",
    "set_field",
]

INTEGERS = (0, 1, -1, 2, 3, 7, 8, 64, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, -(2**63))
TEXTS = (
    *("", "x", "W", ".", "../outside", "/etc/passwd", "a\0b", "é\u202e\u0007", "n" * 3000),
    "a text\nof two lines",
)
OPERATORS = (
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather", "Constant", "Identity", "Transpose"),
    *("Reshape", "Cast", "Squeeze", "Unsqueeze", "Flatten", "Mul", "DequantizeLinear", "If"),
    *("Loop", "LSTM", "MatMulInteger", "Concat", "Shape", "Add", "ConstantOfShape", "Relu"),
)
_MOST_WALKED = 20_000


def change_bytes(content: bytes, random: Random) -> bytes:
    """Return bytes of which some are changed, left out, put in, or the end is missing."""
    damaged = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not damaged:
            break
        at = random.randrange(len(damaged))
        kind = random.randrange(6)
        if kind < 3:
            damaged[at] = random.randrange(256)
        elif kind == 3:
            del damaged[at : at + random.choice((1, 2, 8, 100))]
        elif kind == 4:
            damaged[at:at] = random.randbytes(random.choice((1, 2, 8)))
        elif random.random() < 0.2:
            del damaged[at:]
    return bytes(damaged)


def change_values(values: Any, random: Random) -> Any:
    """Return JSON values of which one, at any depth, is another, gone, or under another name."""
    if isinstance(values, dict) and values and random.random() < 0.9:
        key = random.choice(list(values))
        kind = random.randrange(8)
        if kind == 0:
            return {name: value for name, value in values.items() if name != key}
        if kind == 1:
            return values | {random.choice(TEXTS): values[key]}
        return values | {key: change_values(values[key], random)}
    if isinstance(values, list) and values and random.random() < 0.8:
        at = random.randrange(len(values))
        return [*values[:at], change_values(values[at], random), *values[at + 1 :]]
    others = (None, True, "", -1, 0, 1, 2**70, 1e308, float("nan"), [], {}, [[]], {"a": 1})
    return random.choice((*others, *TEXTS, *OPERATORS[:3], "svd", "int8", "channel"))


def _messages(message: Message, left: list[int]) -> Iterator[Message]:
    left[0] -= 1
    if left[0] < 0:
        return
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in [value] if isinstance(value, Message) else value:
                yield from _messages(inner, left)


def all_of(model: onnx.ModelProto, kind: type[Any]) -> list[Any]:
    """Return the messages of a kind, at any depth."""
    return [m for m in _messages(model, [_MOST_WALKED]) if isinstance(m, kind)]


def any_field(model: onnx.ModelProto, random: Random) -> None:
    """Change one field of any message: set, clear, repeat, reorder."""
    message = random.choice(list(_messages(model, [_MOST_WALKED])))
    _change_field(message, random.choice(message.DESCRIPTOR.fields), random)


def set_field(model: onnx.ModelProto, random: Random) -> None:
    """Change one field that is set, of any message."""
    message = random.choice([m for m in _messages(model, [_MOST_WALKED]) if m.ListFields()])
    _change_field(message, random.choice(message.ListFields())[0], random)


def _change_field(message: Message, field: Any, random: Random) -> None:
    value = getattr(message, field.name)
    if hasattr(value, "append") or hasattr(value, "add"):
        _change_list(value, field, random)
    elif random.random() < 0.2:
        message.ClearField(field.name)
    elif isinstance(value, Message):
        value.SetInParent()
    else:
        setattr(message, field.name, _scalar(field, random))


def _change_list(values: Any, field: Any, random: Random) -> None:
    kind = random.randrange(5)
    if kind == 0:
        del values[random.randrange(len(values))]
    elif kind == 1:
        del values[:]
    elif kind == 2 and field.type == field.TYPE_MESSAGE:
        values.add().CopyFrom(random.choice(list(values)))
    elif kind == 2:
        values.append(random.choice(list(values)))
    elif kind == 3 and len(values) > 1:
        first, second = random.sample(range(len(values)), 2)
        kept = [copied(value) for value in values]
        kept[first], kept[second] = kept[second], kept[first]
        del values[:]
        values.extend(kept)
    elif field.type == field.TYPE_MESSAGE:
        values.add()
    elif values and random.random() < 0.7:
        values[random.randrange(len(values))] = _scalar(field, random)
    else:
        values.append(_scalar(field, random))


def copied(value: Any) -> Any:
    """Return a message's copy; a number or text as it is."""
    if not isinstance(value, Message):
        return value
    copy = type(value)()
    copy.CopyFrom(value)
    return copy


def _scalar(field: Any, random: Random) -> Any:
    if field.type == field.TYPE_STRING:
        return random.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return random.choice((b"", b"\xff\xfe", bytes(8), random.randbytes(64)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return random.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), 0.5))
    if field.type == field.TYPE_ENUM:
        return random.randrange(-1, 30)
    if field.type in (field.TYPE_INT32, field.TYPE_UINT64):
        return random.choice(INTEGERS) % 2**31
    return random.choice(INTEGERS)
