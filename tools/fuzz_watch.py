"""Notes every write that Python makes outside a folder: opened files, moved and removed ones."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["Watch"]

_WRITES = {
    "os.rename": slice(0, 2),
    "os.remove": slice(0, 1),
    "os.mkdir": slice(0, 1),
    "os.rmdir": slice(0, 1),
    "os.link": slice(1, 2),
    "os.symlink": slice(1, 2),
}
"""Audit events, and which of their arguments are paths that change."""

_allowed: list[Path] = []
_seen: list[str] = []
_hooked: list[bool] = []


class Watch:
    """Notes what is written, by Python, outside a folder and those of temporary files."""

    def __init__(self, folder: Path, written: list[str]) -> None:
        self._folder, self._written = folder, written

    def __enter__(self) -> None:
        if not _hooked:
            sys.addaudithook(_heed)  # stays as long as the process does
            _hooked.append(True)
        _seen.clear()
        _allowed[:] = [self._folder.resolve()]

    def __exit__(self, *_: object) -> None:
        _allowed.clear()
        self._written += _seen


def _heed(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    paths: Iterable[Any] = ()
    if event == "open" and _writes(arguments):
        paths = arguments[:1]
    elif event in _WRITES and arguments[-1] in (-1, None):  # else it is relative to a folder
        paths = arguments[_WRITES[event]]
    names = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes)]
    _seen.extend(f"{event} {name}" for name in names if not _is_within(name))


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = (*arguments, None, None, 0)[:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _is_within(path: str) -> bool:
    with suppress(OSError, ValueError):
        found = Path(os.path.realpath(path))
        temporary = Path(tempfile.gettempdir()).resolve()
        own = any(part.startswith(("onnxlr-", "tmp")) for part in found.parts)
        if found.is_relative_to(temporary) and own and not found.is_relative_to(_allowed[0].parent):
            return True  # a folder of temporary files of its own
        return found.is_relative_to(_allowed[0]) or str(found) == os.devnull or "pycache" in path
    return True
