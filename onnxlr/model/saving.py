"""Saving: an output appears whole or not at all, and is never the input."""

from __future__ import annotations

import filecmp
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from onnxlr.errors import OutputError
from onnxlr.model.data_file import SMALL, DataFile
from onnxlr.model.external import extent_of
from onnxlr.model.model import proto_bytes, tensors_of
from onnxlr.model.tensors import is_external
from onnxlr.scratch import LOCK, alone_in, scratch, undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxlr.model.model import Model

__all__ = [
    "check_output",
    "copy_model",
    "data_file",
    "is_too_big",
    "model_bytes",
    "staging",
    "write_model",
    "write_text",
]

_PROTO_LIMIT = 1_900_000_000
"""Above this many bytes weights go to a file beside the model: a proto can hold 2 GB."""

_STAGED = ".onnxlr-"
"""Begins the names of folders that outputs are built in."""


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
    Nor does it where other processes write the same output. A folder that a killed process left
    behind is removed first.
    """
    try:
        with scratch(_STAGED, output.absolute().parent) as folder:
            yield folder
            if (folder / output.name).exists():
                _move(folder, output.absolute())
    except OSError as error:
        if _is_elsewhere(error, output.absolute().parent):
            raise
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error


def _is_elsewhere(error: OSError, place: Path) -> bool:
    """Whether an error is about a file that is not in a folder; a full disk names none."""
    named = error.filename if error.filename2 is None else error.filename2  # where a copy goes
    return isinstance(named, str | os.PathLike) and not Path(named).is_relative_to(place)


def _move(folder: Path, output: Path) -> None:
    """Move files in place, all of them at once as far as others and interruptions go."""
    files = sorted(_files(folder), key=lambda file: (file == folder / output.name, file))
    for file in files:  # which takes long where they are large
        _sync(file)
    with alone_in(output.parent):
        undisturbed(lambda: _place(files, folder, output))


def _place(files: Sequence[Path], folder: Path, output: Path) -> None:
    """Move files in order; the last is the model."""
    if len(files) > 1:
        output.unlink(missing_ok=True)
    for file in files:
        target = output.parent / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    _sync(output.parent)


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.is_file() and p != folder / LOCK)


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


def model_bytes(folder: Path) -> int:
    """Return the bytes of the files that were built in a folder."""
    return sum(file.stat().st_size for file in _files(folder))


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
    made = model.data
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    too_big = is_too_big(proto, made.size if made else 0)
    external = made is not None and made.is_needed
    external |= any(is_external(t) for t in tensors_of(proto) if not (made and made.holds(t)))
    if not external and not too_big:
        for tensor in tensors_of(proto):
            if made and made.holds(tensor):
                _move_in(tensor, made.read(tensor))
        (folder / name).write_bytes(proto.SerializeToString())
        if made:
            made.close()
            made.path.unlink(missing_ok=True)
        return
    with made or data_file(model, folder, name) as data:
        for tensor in tensors_of(proto):
            if data is made and data.holds(tensor):
                continue
            if is_external(tensor):
                data.copy(tensor, extent_of(tensor, model.directory))
            elif _may_move(tensor, model, too_big):
                data.move(tensor)
    (folder / name).write_bytes(proto.SerializeToString())


def is_too_big(proto: onnx.ModelProto, more: int = 0) -> bool:
    """Return whether a model, with some bytes more, has to have its weights in another file."""
    inside = proto_bytes(proto)
    return inside is None or inside + more >= _PROTO_LIMIT


def data_file(model: Model, folder: Path, name: str) -> DataFile:
    """Return the data file of a model that is to be written into `folder`.

    It has another name than data which `model` refers to, and than a folder that is there.
    """
    sources = [model.directory / location for location in model.external_files()]
    location, number = f"{name}.data", 1
    while _is_taken(folder.parent / location, sources):
        number += 1
        location = f"{name}.{number}.data"
    return DataFile(folder / location, is_needed=bool(sources))


def _is_taken(path: Path, sources: Sequence[Path]) -> bool:
    """Return whether a file that moves to a path would meet a folder, or one of some files."""
    if not path.exists():
        return False
    return path.is_dir() or any(each.exists() and path.samefile(each) for each in sources)


def _may_move(tensor: onnx.TensorProto, model: Model, too_big: bool) -> bool:
    if len(tensor.raw_data) < SMALL:
        return False
    is_index = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return tensor.name in model.added or (too_big and not is_index)


def _move_in(tensor: onnx.TensorProto, raw: bytes) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = raw
