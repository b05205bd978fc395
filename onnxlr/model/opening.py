"""Opening a model file: what is not a valid model is refused with one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import shape_inference

from onnxlr.errors import ModelError, UsageError
from onnxlr.model.growth import check_functions
from onnxlr.model.model import Model, proto_bytes
from onnxlr.model.soundness import TOO_DEEP, check_messages, check_tensors

__all__ = ["open_model"]

_LARGEST_MESSAGE = 2**31 - 1
"""Bytes that protobuf reads and writes; ONNX's checker takes no larger one from memory."""


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
        If the file is empty, truncated, too large, not an ONNX model, fails ONNX's own checker, is
        nested too deep, holds text that is not UTF-8, or tensors without the values they claim.
    """
    if isinstance(source, onnx.ModelProto):
        if proto_bytes(source) is None:
            raise ModelError(
                "the given model: takes more than 2 GB, which protobuf cannot write; save it with "
                "its weights in another file (onnx.save, save_as_external_data) and give the path"
            )
        if check:
            _check_contents(source, None)  # before protobuf's copying, which is recursive
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        model = Model(proto, None)
    elif isinstance(source, bytes):
        model = Model(_parse(source, "the given bytes"), None, source)
    else:
        path = Path(source)
        model = Model(_parse(_read(path), str(path)), path)
    if check:
        if not isinstance(source, onnx.ModelProto):
            _check_contents(model.proto, model.path)
        _check(model)
    return model


def _check_contents(proto: onnx.ModelProto, path: Path | None) -> None:
    try:
        tensors = check_messages(proto)
        check_functions(proto)
        check_tensors(tensors, path.parent if path else Path())
    except ModelError as error:
        raise ModelError(f"{path or 'the given model'}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UsageError(f"{path}: is no regular file, expected an ONNX model file")
        size = path.stat().st_size
        if size > _LARGEST_MESSAGE:  # before memory is taken for it
            raise ModelError(
                f"{path}: has {size:,} bytes, an ONNX model file has 2 GB at most: larger models "
                "keep their weights in files beside it"
            )
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
    except DecodeError as error:
        if re.search(
            "depth|nest|recurs", str(error), re.IGNORECASE
        ):  # versions word it differently
            raise ModelError(f"{name}: {TOO_DEEP}, which protobuf does not read") from None
        raise ModelError(
            f"{name}: not an ONNX model, or a truncated one "
            f"({len(content):,} bytes that protobuf cannot decode)"
        ) from None
    if not proto.HasField("graph") or proto.ir_version == 0:
        missing = "no graph" if not proto.HasField("graph") else "no IR version"
        raise ModelError(f"{name}: not an ONNX model: {missing} in it")
    return proto


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
        elif model.proto.ByteSize() < _LARGEST_MESSAGE:
            onnx.checker.check_model(model.proto)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{model.name}: fails ONNX's checker: {reason}") from None
    except (ValueError, RuntimeError, LookupError, shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{model.name}: ONNX's checker cannot read it: {reason}") from None
