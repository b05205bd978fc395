"""The one place that makes ONNX Runtime sessions, with the op library where it can be had."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import onnxruntime as ort

from onnxlr.errors import LibraryError, LibraryMissingError
from onnxlr.runtime.library import DOMAIN, get_library_path, register_ops

__all__ = ["open_session", "session"]

_logger = logging.getLogger("onnxlr")


def session(
    model: str | os.PathLike[str] | bytes,
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
        A file, or the bytes of one.
    providers
        Execution providers, as ONNX Runtime takes them.
    options
        Session options; the library is registered with them, once.
    arguments
        More arguments of `onnxruntime.InferenceSession`.

    Raises
    ------
    LibraryError
        If the model has onnxlr's operators without functions, and there is no library.
    """
    options = ort.SessionOptions() if options is None else options
    source = model if isinstance(model, bytes) else os.fspath(model)
    return open_session(source, options, None, providers=providers, **arguments)


def open_session(
    source: str | bytes, options: ort.SessionOptions, folder: Path | None, **arguments: Any
) -> ort.InferenceSession:
    """Return a session that is made while `folder` is the current one; None leaves that alone.

    It is where ONNX Runtime before 1.20 looks for the external data of a model in memory.

    Raises
    ------
    LibraryError
        If the model has onnxlr's operators without functions, and there is no library.
    """
    problem = _register(options)
    try:
        with nullcontext() if folder is None else _inside(folder):
            return ort.InferenceSession(source, options, **arguments)
    except Exception as error:
        if problem is None or f"{DOMAIN}:" not in str(error):
            raise
        raise LibraryError(
            f"the model has operators of the domain '{DOMAIN}' without functions, so that they "
            f"need the op library, and {problem}"
        ) from error


def _register(options: ort.SessionOptions) -> LibraryError | None:
    """Register the library and return None; where that fails, log and return why."""
    try:
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
