"""Temporary files, in folders of one process alone, which the next removes where it was killed.

A folder is locked as long as it is used. The system gives a lock up however its process ended, so
that a folder which can be locked by another belongs to nobody: its process was killed, or the
machine went down.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar

from onnxlr.errors import ScratchError

if TYPE_CHECKING:
    from types import TracebackType

try:
    import fcntl
except ImportError:  # not on Windows, where folders of killed processes stay until they are old
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Scratch", "alone_in", "is_full", "scratch", "temporary", "undisturbed"]

LOCK = ".onnxlr-lock"
"""Name of the file in a folder that is locked."""

_OLD = 7 * 86400.0
"""Seconds after which a folder without a lock is nobody's: those of other versions have none."""

_YOUNG = 60.0
"""Seconds in which an empty folder without a lock may be one that is being made, or removed."""

_START = 1.0
"""Seconds in which a thread begins, if it was started at all before an interruption."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says where a disk takes no more: full, over a quota, too large, read-only."""


class Scratch:
    """A fresh folder; those that killed processes left are removed when it is made.

    A context manager: at the end it is removed, and a full disk of temporary files is said.

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
    ScratchError
        If it cannot be made among the system's temporary files.
    OSError
        If it cannot be made in the place that was given.
    """

    def __init__(self, prefix: str, place: Path | None = None) -> None:
        self._is_temporary = place is None
        try:
            around = Path(tempfile.gettempdir()) if place is None else place
            _remove_left_over(prefix, around)
            make = partial(tempfile.TemporaryDirectory, ignore_cleanup_errors=True)
            self._folder = undisturbed(lambda: make(prefix=prefix, dir=around))
            self.path = Path(self._folder.name)
            # Closed as the folder goes away, by whichever way that comes about.
            self._lock = weakref.finalize(self, os.close, _locked(self.path))
        except OSError as error:
            if self._is_temporary:
                raise ScratchError(error.strerror or str(error)) from error
            raise

    def __enter__(self) -> Scratch:  # noqa: PYI034  (Self is of Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()
        if isinstance(error, OSError) and self._is_about_this(error):
            raise ScratchError(error.strerror or str(error)) from error

    def _is_about_this(self, error: OSError) -> bool:
        """Return whether an error says that the disk of temporary files takes no more."""
        if not self._is_temporary or not is_full(error):
            return False
        named = [n for n in (error.filename, error.filename2) if isinstance(n, str | os.PathLike)]
        return not named or any(Path(name).is_relative_to(self.path) for name in named)

    def remove(self) -> None:
        """Remove it; may be called again."""
        undisturbed(self._remove)

    def _remove(self) -> None:
        _empty(self.path)
        self._folder.cleanup()
        self._lock()


@contextmanager
def scratch(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """Give a folder as `Scratch` makes it, which is removed at the end.

    Raises
    ------
    ScratchError
        If it is one among the system's temporary files, and what is done with it meets a full disk
        there.
    """
    with Scratch(prefix, place) as folder:
        yield folder.path


@contextmanager
def temporary() -> Iterator[None]:
    """Write a temporary file.

    Raises
    ------
    ScratchError
        If that cannot be.
    """
    try:
        yield
    except OSError as error:
        raise ScratchError(error.strerror or str(error)) from error


Result = TypeVar("Result")


def undisturbed(work: Callable[[], Result]) -> Result:
    """Do what must not be cut in two; an interruption is heard when it is done.

    Python hears signals in the main thread alone, so that another does the work.
    """
    found: list[Result] = []
    failed: list[BaseException] = []
    begun, done = Event(), Event()

    def do() -> None:
        begun.set()
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001  (raised where it belongs)
            failed.append(error)
        finally:
            done.set()

    try:
        Thread(target=do).start()
        done.wait()  # joining a thread twice does not wait again in Python 3.11
    except RuntimeError:  # Python ends, and begins no more threads
        return work()
    except BaseException:
        if begun.wait(_START):
            done.wait()
        raise
    if failed:
        raise failed[0]
    return found[0]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is here with the same folder, as far as its disk knows locks."""
    lock = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if lock is not None:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def is_full(error: OSError) -> bool:
    """Return whether an error says that a disk takes no more."""
    return error.errno in _FULL


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


def _empty(folder: Path) -> None:
    """Remove all that is in a folder but its lock: what is left of it then can still be told."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != LOCK:
                with suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108


def _remove_if_left(folder: Path) -> None:
    known = folder.lstat()
    if not stat.S_ISDIR(known.st_mode) or (hasattr(os, "getuid") and known.st_uid != os.getuid()):
        return
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        age = time.time() - known.st_mtime
        if age > _OLD:
            shutil.rmtree(folder, ignore_errors=True)
        elif age > _YOUNG:
            folder.rmdir()  # which cannot be where something is in it
        return
    try:
        if fcntl is None:
            is_free = time.time() - known.st_mtime > _OLD
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError if it is held
            is_free = True
        if is_free:
            _empty(folder)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
