"""Folders for this process alone, which the next one removes where this one was killed.

A folder is locked as long as it is used. The system gives a lock up however its process ended, so
that a folder which can be locked by another belongs to nobody: its process was killed, or the
machine went down.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where folders of killed processes stay until they are old
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Scratch", "scratch"]

LOCK = ".onnxlr-lock"
"""Name of the file in a folder that is locked."""

_OLD = 7 * 86400.0
"""Seconds after which a folder without a lock is nobody's: those of other versions have none."""


class Scratch:
    """A fresh folder; those that killed processes left are removed when it is made.

    Parameters
    ----------
    prefix
        Of the folder's name. Left-over folders are told by it.
    place
        The folder to make it in; the system's for temporary files if not given.

    Attributes
    ----------
    path
        The folder.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, prefix: str, place: Path | None = None) -> None:
        around = Path(tempfile.gettempdir()) if place is None else place
        _remove_left_over(prefix, around)
        self._folder = tempfile.TemporaryDirectory(
            prefix=prefix, dir=around, ignore_cleanup_errors=True
        )
        self.path = Path(self._folder.name)
        self._lock: int | None = _locked(self.path)

    def remove(self) -> None:
        """Remove it; may be called again, as after an interruption."""
        self._folder.cleanup()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


@contextmanager
def scratch(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """Give a folder as `Scratch` makes it, which is removed at the end."""
    folder = Scratch(prefix, place)
    try:
        yield folder.path
    finally:
        folder.remove()


def _locked(folder: Path) -> int:
    """Lock a folder and return the descriptor; others see no lock before it is held."""
    early = folder / f"{LOCK}.early"
    lock = os.open(early, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if fcntl is not None:
            with suppress(OSError):  # some file systems know no locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(early, folder / LOCK)  # noqa: PTH104
    except BaseException:
        os.close(lock)
        raise
    return lock


def _remove_left_over(prefix: str, place: Path) -> None:
    """Remove folders that nobody uses any more; whatever cannot be removed stays."""
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    _remove_if_left(Path(entry.path))


def _remove_if_left(folder: Path) -> None:
    known = folder.lstat()
    if not stat.S_ISDIR(known.st_mode) or (hasattr(os, "getuid") and known.st_uid != os.getuid()):
        return
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        if time.time() - known.st_mtime > _OLD:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        if fcntl is None:
            is_free = time.time() - known.st_mtime > _OLD
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError if it is held
            is_free = True
        if is_free:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
