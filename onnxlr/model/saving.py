"""Saving: an output appears whole or not at all, and is never the input."""

from __future__ import annotations

import filecmp
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
"""Smaller tensors that are new stay in the model file: scalars that tools look at."""


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
    try:
        exists = output.exists()
    except OSError as error:  # a name that is too long, for instance
        raise OutputError(f"{output}: cannot be written: {error.strerror}") from None
    if output.is_dir():
        raise OutputError(f"{output}: is a folder, expected the name of a file to write")
    if exists and not output.is_file():
        raise OutputError(f"{output}: exists and is no regular file")
    for path in inputs:
        if path is not None and exists and path.exists() and output.samefile(path):
            raise OutputError(f"{output}: is the input; inputs are never modified, give another -o")
    if not os.access(folder, os.W_OK) or (exists and not os.access(output, os.W_OK)):
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
        content = model.content or model.proto.SerializeToString()
        (folder / name).write_bytes(content)
        return
    shutil.copyfile(model.path, folder / name)
    if folder.parent.samefile(model.directory):
        return  # the staged file moves beside the very data it refers to
    for location in model.external_files():
        source, target = model.directory / location, folder.parent / location
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            raise OutputError(
                f"{target}: exists and is not the data that {model.name} refers to by this name; "
                "expected a folder without such a file"
            )
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / location)


def write_model(model: Model, folder: Path, name: str) -> None:
    """Write a changed model into `folder`.

    A model with external data, or one too big for a single file, gets a `<name>.data` beside it;
    the proto in memory is left as it was. What lies in the model's own file stays there as long as
    it fits: ONNX Runtime cannot read, for instance, the shape of a Reshape out of another file.
    """
    external = any(is_external(tensor) for tensor in tensors_of(model.proto))
    too_big = model.proto.ByteSize() >= _PROTO_LIMIT
    if not external and not too_big:
        (folder / name).write_bytes(model.proto.SerializeToString())
        return
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    location = _data_name(model, folder, name)
    with (folder / location).open("wb") as stream:
        for tensor in tensors_of(proto):
            if is_external(tensor) or _may_move(tensor, model, too_big):
                _move_out(tensor, model, stream, location)
    (folder / name).write_bytes(proto.SerializeToString())


def _data_name(model: Model, folder: Path, name: str) -> str:
    """Return the name of the data file, another than that of data which `model` refers to."""
    sources = [model.directory / location for location in model.external_files()]
    location, number = f"{name}.data", 1
    while any(_is_same(folder.parent / location, source) for source in sources):
        number += 1
        location = f"{name}.{number}.data"
    return location


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _may_move(tensor: onnx.TensorProto, model: Model, too_big: bool) -> bool:
    if len(tensor.raw_data) < _EXTERNAL_FROM:
        return False
    is_index = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return tensor.name in model.added or (too_big and not is_index)


def _move_out(tensor: onnx.TensorProto, model: Model, stream: BinaryIO, location: str) -> None:
    raw = read_raw(tensor, model.directory)
    stream.seek(-(-stream.tell() // _ALIGNMENT) * _ALIGNMENT)
    offset = stream.tell()
    stream.write(raw)
    tensor.ClearField("external_data")
    tensor.raw_data = b""  # set_external_data refuses a tensor without raw data
    set_external_data(tensor, location, offset, len(raw))
    tensor.ClearField("raw_data")
