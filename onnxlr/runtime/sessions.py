"""The one place that makes ONNX Runtime sessions, with the op library where it can be had."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from onnxlr.errors import LibraryError, LibraryMissingError, ModelError, UsageError
from onnxlr.model.model import proto_bytes
from onnxlr.operators.schema import DOMAIN
from onnxlr.runtime.library import LIBRARY_VARIABLE, get_library_path, register_ops

__all__ = ["offer_kernels", "open_session", "session"]

_logger = logging.getLogger("onnxlr")
_WEIGHTS_ELSEWHERE = (
    "the model in memory has weights in another file, which is found beside a model's file only; "
    "give the path of that file, or load the model with its weights by onnx.load"
)
_FILE_NOT_FOUND = ("xternal data", "GetFileLength")  # of new and old versions
_OTHER_LAYOUT = "attribute layout is"  # how a kernel says that it does not read a node's weights


def session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    providers: Sequence[Any] | None = None,
    options: ort.SessionOptions | None = None,
    **arguments: Any,
) -> ort.InferenceSession:
    """Return an ONNX Runtime session of a model that may have onnxlr's operators.

    They run in the op library's kernels; where there is no library, as the model's own functions of
    standard operators. The logger `onnxlr` is told which of the two.

    Parameters
    ----------
    model
        A file, the bytes of one, or a model in memory. External data is found beside a file only.
    providers
        Execution providers, as ONNX Runtime takes them.
    options
        Session options; the library is registered with them, once.
    arguments
        More arguments of `onnxruntime.InferenceSession`.

    Raises
    ------
    UsageError
        If the model is something else.
    ModelError
        If a model in memory has external data that is not found, or is larger than 2 GB.
    LibraryError
        If the model has onnxlr's operators without functions, and there is no library; if the
        library is too old for the model.
    """
    options = ort.SessionOptions() if options is None else options
    source, problem = _source_of(model), offer_kernels(options)
    return open_session(source, options, problem, None, providers=providers, **arguments)


def open_session(
    source: str | bytes,
    options: ort.SessionOptions,
    problem: LibraryError | None,
    folder: Path | None,
    **arguments: Any,
) -> ort.InferenceSession:
    """Return a session of options that `offer_kernels` has seen.

    Parameters
    ----------
    source
        A file, or the bytes of one.
    options
        Session options.
    problem
        What `offer_kernels` returned.
    folder
        The current folder while the session is made; None leaves that alone. It is where ONNX
        Runtime before 1.20 looks for the external data of a model in memory.

    Raises
    ------
    LibraryError
        If the model has onnxlr's operators without functions, and there is no library; if the
        library is too old for the model.
    """
    try:
        with nullcontext() if folder is None else _inside(folder):
            return ort.InferenceSession(source, options, **arguments)
    except Exception as error:
        explained = _explained(error, problem, isinstance(source, bytes))
        if explained is None:
            raise
        raise explained from error


def _source_of(model: object) -> str | bytes:
    """Return what ONNX Runtime takes."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    if not isinstance(model, onnx.ModelProto):
        raise UsageError(
            f"a session cannot be made of an object of type {type(model).__name__}; expected the "
            "path of a model's file, the bytes of one, or an onnx.ModelProto"
        )
    if any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer):
        raise ModelError(_WEIGHTS_ELSEWHERE)
    if proto_bytes(model) is None:
        raise ModelError(
            "the model in memory takes more than 2 GB, which a session does not take from memory; "
            "save it with its weights in another file, by onnx.save and save_as_external_data, and "
            "give the path"
        )
    return bytes(model.SerializeToString())


def _explained(
    error: Exception, problem: LibraryError | None, in_memory: bool
) -> ModelError | None:
    """Return what to raise instead of ONNX Runtime's error; None if that says all there is.

    `problem` is why there is no library.
    """
    said = " ".join(str(error).split())
    if in_memory and any(sign in said for sign in _FILE_NOT_FOUND):
        return ModelError(f"{_WEIGHTS_ELSEWHERE} ({said})")
    if problem is not None and f"{DOMAIN}:" in said:
        return LibraryError(
            f"the model has operators of the domain '{DOMAIN}' without functions, so that they "
            f"need the op library, and {problem}"
        )
    if problem is None and (f"{DOMAIN}:" in said or _OTHER_LAYOUT in said):
        return LibraryError(
            f"the op library {get_library_path()} is too old for the model, or the model is damaged"
            f" ({said}); install a newer onnxlr, or set {LIBRARY_VARIABLE}=off to run the model by "
            "its own functions, where it has them"
        )
    return None


def offer_kernels(options: ort.SessionOptions, wanted: bool = True) -> LibraryError | None:
    """Register the library and return None; where there are no kernels, log and return why.

    `wanted` is False to leave the library out, so that operators run as functions.
    """
    try:
        if not wanted:
            raise LibraryMissingError("the op library is left out of this run")
        register_ops(options)
    except LibraryError as error:
        expected = isinstance(error, LibraryMissingError)
        level = logging.INFO if expected else logging.WARNING
        _logger.log(level, "onnxlr's operators run as functions of the model: %s", error)
        return error
    _logger.info("onnxlr's operators run in the op library %s", get_library_path())
    return None


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
