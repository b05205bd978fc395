"""Saving: an output appears whole or not at all, and is never the input."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import onnx
from onnx.external_data_helper import set_external_data

from onnxlr.errors import OutputError
from onnxlr.model.model import tensors_of
from onnxlr.model.tensors import is_external, read_raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxlr.model.model import Model

__all__ = ["check_output", "copy_model", "staging", "write_model", "write_text"]

_PROTO_LIMIT = 1_900_000_000
"""Above this many bytes weights go to a file beside the model: a proto can hold 2 GB."""

_ALIGNMENT = 4096
_EXTERNAL_FROM = 1024
"""Smaller tensors stay in the model file: they are shapes and scalars that tools look at."""


def check_output(output: Path, *inputs: Path | None) -> None:
    """Refuse an output path before any work is done.

    Raises
    ------
    OutputError
        If it is one of the inputs, a folder, or in a folder that cannot be written.
    """
    folder = output.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{output}: the folder {folder} does not exist")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder, expected the name of a file to write")
    for path in inputs:
        if path is not None and output.exists() and path.exists() and output.samefile(path):
            raise OutputError(f"{output}: is the input; inputs are never modified, give another -o")
    if not os.access(folder, os.W_OK) or (output.exists() and not os.access(output, os.W_OK)):
        raise OutputError(f"{output}: cannot be written (permission denied)")


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Give a fresh folder beside `output` to build files in; move them in place at the end.

    Files move when the block ends without an exception and only if a file of the output's own name
    is among them; the model moves last, so that it never stands beside data it does not belong to.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxlr-", dir=output.absolute().parent) as name:
            folder = Path(name)
            yield folder
            if (folder / output.name).exists():
                _move(folder, output.absolute())
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error


def _move(folder: Path, output: Path) -> None:
    others = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / output.name)
    if others:
        output.unlink(missing_ok=True)
    for file in (*others, folder / output.name):
        target = output.parent / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync(file)
        file.replace(target)
    _sync(output.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    check_output(path)
    with staging(path) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")


def copy_model(model: Model, folder: Path, name: str) -> None:
    """Copy a model byte for byte, with the external data it refers to, into `folder`."""
    if model.path is None:
        (folder / name).write_bytes(model.proto.SerializeToString())
        return
    shutil.copyfile(model.path, folder / name)
    if folder.parent.samefile(model.directory):
        return  # the staged file moves beside the very data it refers to
    for location in model.external_files():
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.directory / location, folder / location)


def write_model(model: Model, folder: Path, name: str) -> None:
    """Write a changed model into `folder`.

    A model with external data, or one too big for a single file, keeps its large tensors in
    `<name>.data`; the proto in memory is left as it was.
    """
    external = any(is_external(tensor) for tensor in tensors_of(model.proto))
    if not external and model.proto.ByteSize() < _PROTO_LIMIT:
        (folder / name).write_bytes(model.proto.SerializeToString())
        return
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    with (folder / f"{name}.data").open("wb") as stream:
        for tensor in tensors_of(proto):
            if is_external(tensor) or len(tensor.raw_data) >= _EXTERNAL_FROM:
                _move_out(tensor, model, stream, f"{name}.data")
    (folder / name).write_bytes(proto.SerializeToString())


def _move_out(tensor: onnx.TensorProto, model: Model, stream: BinaryIO, location: str) -> None:
    raw = read_raw(tensor, model.directory)
    stream.seek(-(-stream.tell() // _ALIGNMENT) * _ALIGNMENT)
    offset = stream.tell()
    stream.write(raw)
    tensor.ClearField("external_data")
    tensor.raw_data = b""  # set_external_data refuses a tensor without raw data
    set_external_data(tensor, location, offset, len(raw))
    tensor.ClearField("raw_data")
