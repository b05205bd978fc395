"""Where external data lies: a regular file within the model's folder, and a part that it has."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

from onnxlr.errors import ModelError
from onnxlr.model.claims import claimed_bytes, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import TensorProto

__all__ = ["Extent", "extent_of"]

_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
"""What a file has at most: Python's `int` would take signs, underscores and a book's digits."""


@dataclass(frozen=True)
class Extent:
    """A part of a file.

    Attributes
    ----------
    path
        The file.
    offset, length
        In bytes; the file has `length` bytes from `offset` on.
    """

    path: Path
    offset: int
    length: int


def extent_of(tensor: TensorProto, directory: Path) -> Extent:
    """Return where a tensor's external data lies; nothing of it is read.

    Parameters
    ----------
    tensor
        A tensor whose `data_location` is external.
    directory
        The model's folder.

    Raises
    ------
    ModelError
        If the location is absolute or leaves the model's folder, by its name or by a symbolic link;
        if there is no regular file; if offset or length are no numbers, are stated twice, lie
        beyond the file, or are not what type and shape take.
    """
    entries = _entries(tensor)
    path = _file(tensor, entries.get("location", ""), directory)
    size = path.stat().st_size
    offset = _number(tensor, entries, "offset")
    stated = _number(tensor, entries, "length")  # 0 is as good as not stated, as readers have it
    expected = claimed_bytes(tensor)
    if expected is not None and stated not in (0, expected):
        raise _unreadable(
            tensor, f"it states {stated:,} bytes of external data, its shape takes {expected:,}"
        )
    length = stated or (max(size - offset, 0) if expected is None else expected)
    if offset + length > size:
        raise _unreadable(
            tensor,
            f"its data is bytes {offset:,} to {offset + length:,} of '{entries['location']}', "
            f"which has {size:,}; expected the whole file beside the model",
        )
    return Extent(path, offset, length)


def _unreadable(tensor: TensorProto, reason: str) -> ModelError:
    return ModelError(f"{describe(tensor)} cannot be read: {reason}")


def _entries(tensor: TensorProto) -> Mapping[str, str]:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:  # readers differ in which they believe
            raise _unreadable(tensor, f"its external data states '{entry.key}' twice")
        entries[entry.key] = entry.value
    return entries


def _number(tensor: TensorProto, entries: Mapping[str, str], key: str) -> int:
    text = entries.get(key, "0")
    if not _NUMBER.fullmatch(text):
        raise _unreadable(
            tensor, f"the {key} of its external data is '{text[:40]}', expected a number of bytes"
        )
    return int(text)


def _file(tensor: TensorProto, location: str, directory: Path) -> Path:
    """Return the regular file at a location within the model's folder."""
    if not location or "\0" in location:
        raise _unreadable(tensor, "its external data names no file")
    if Path(location).is_absolute() or PureWindowsPath(location).anchor:
        raise _unreadable(
            tensor, f"its data is at the absolute path '{location}', expected one within the folder"
        )
    outside = _unreadable(
        tensor,
        f"its data file '{location}' leads out of the model's folder, expected it within",
    )
    if Path(os.path.normpath(location)).parts[:1] == ("..",):
        raise outside  # even if it comes back in: a copy of the folder has another name
    try:
        path = directory / location
        if _wanders(directory, Path(location)):
            path = path.resolve(strict=True)
            if not path.is_relative_to(directory.resolve(strict=True)):
                raise outside
        mode = path.lstat().st_mode
    except (OSError, RuntimeError, UnicodeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or "cannot be followed"
        raise _unreadable(tensor, f"its data file '{location}': {reason}") from None
    if not stat.S_ISREG(mode):  # a pipe would wait for ever, a device never end
        raise _unreadable(tensor, f"its data file '{location}' is no regular file")
    return path


def _wanders(directory: Path, location: Path) -> bool:
    """Return whether a location may lead elsewhere than its name says: by `..` or a link.

    Models have one file and many tensors: resolving whole paths would take longer than reading.
    """
    if ".." in location.parts:
        return True
    steps = (directory / step for step in (*location.parents, location))
    return any(step.is_symlink() for step in steps if step != directory)
