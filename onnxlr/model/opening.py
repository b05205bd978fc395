"""Opening a model file: what is not a valid model is refused with one sentence."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import shape_inference

from onnxlr.errors import ModelError, UsageError
from onnxlr.model.model import Model

__all__ = ["open_model"]

_CHECKER_LIMIT = 2**31 - 1


def open_model(source: str | Path | bytes | onnx.ModelProto, check: bool = True) -> Model:
    """Open a model for reading; the source is never modified.

    Parameters
    ----------
    source
        A path, the bytes of a model file, or a proto (which is copied).
    check
        Whether to run ONNX's checker; not needed a second time.

    Raises
    ------
    UsageError
        If there is no such file.
    ModelError
        If the file is empty, truncated, not an ONNX model, fails ONNX's own checker, or holds text
        that is not UTF-8.
    """
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        model = Model(proto, None)
    elif isinstance(source, bytes):
        model = Model(_parse(source, "the given bytes"), None, source)
    else:
        path = Path(source)
        model = Model(_parse(_read(path), str(path)), path)
    if check:
        _check(model)
        try:
            _check_text(model.proto)
        except UnicodeError as error:
            raise ModelError(f"{model.name}: {error}, expected UTF-8") from None
    return model


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder, expected an ONNX model file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(content: bytes, name: str) -> onnx.ModelProto:
    if not content:
        raise ModelError(f"{name}: the file is empty, expected an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError:
        raise ModelError(
            f"{name}: not an ONNX model, or a truncated one "
            f"({len(content):,} bytes that protobuf cannot decode)"
        ) from None
    if not proto.HasField("graph") or proto.ir_version == 0:
        missing = "no graph" if not proto.HasField("graph") else "no IR version"
        raise ModelError(f"{name}: not an ONNX model: {missing} in it")
    return proto


def _check_text(message: Message) -> None:
    """Raise UnicodeError for text that is not UTF-8.

    Neither protobuf nor the checker minds, and Python would stumble over it much later.
    """
    if isinstance(message, onnx.TensorProto):
        message = onnx.TensorProto(name=message.name, doc_string=message.doc_string)
    try:
        fields = message.ListFields()
    except UnicodeDecodeError:  # what some versions of protobuf do where others return bytes
        raise UnicodeError(f"a {message.DESCRIPTOR.name} holds undecodable text") from None
    for field, value in fields:
        entries = [value] if isinstance(value, Message | str | bytes) else value
        if field.type == field.TYPE_MESSAGE:
            for entry in entries:
                _check_text(entry)
        elif field.type == field.TYPE_STRING and not all(isinstance(e, str) for e in entries):
            kind = message.DESCRIPTOR.name
            raise UnicodeError(f"'{field.name}' of a {kind} is undecodable text")


def _is_utf8(path: Path) -> bool:
    """Return whether a path can be handed to ONNX's checker, which takes only such ones."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(model: Model) -> None:
    """Run ONNX's checker; above the 2 GB that a proto can be, it has to read the file itself."""
    try:
        if model.path is not None and _is_utf8(model.path):
            onnx.checker.check_model(str(model.path))
        elif model.proto.ByteSize() < _CHECKER_LIMIT:
            onnx.checker.check_model(model.proto)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{model.name}: fails ONNX's checker: {reason}") from None
    except (ValueError, RuntimeError, shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{model.name}: ONNX's checker cannot read it: {reason}") from None
