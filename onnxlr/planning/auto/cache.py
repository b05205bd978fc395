"""Measurements by key, kept in a file from one run to the next."""

from __future__ import annotations

import hashlib
import json
import platform
import sqlite3
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import onnxruntime as ort

from onnxlr.errors import OnnxlrWarning
from onnxlr.runtime import describe_ops
from onnxlr.scratch import alone_in

__all__ = ["Cache", "key_of", "machine_key"]

_VERSION = 1
"""Of what is stored: values of another version are as if they were not there."""

_PATIENCE = 30.0
"""Seconds to wait for another process to finish writing."""

_CPU = Path("/proc/cpuinfo")
_CPU_FIELDS = ("model name", "cpu family", "model", "stepping")
_ARM_FIELDS = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")

_TABLE = (
    "CREATE TABLE IF NOT EXISTS measurements "
    "(version INTEGER, key TEXT, value TEXT, PRIMARY KEY (version, key)) WITHOUT ROWID"
)
_MEANT = "SELECT sql FROM sqlite_master WHERE tbl_name = 'measurements' AND sql IS NOT NULL"
"""What there is of that name: a view could take for ever to read, a trigger do more than asked."""

_READ = "SELECT value FROM measurements WHERE version = ? AND key = ?"
_WRITE = "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?)"


class Cache:
    """Values by key, in a file that several processes may use at once.

    What has been put is in the file, whenever the process ends. A damaged file is set aside and
    begun anew; where nothing can be written, values are kept in memory. Both are warned of.

    Parameters
    ----------
    path
        The file, which is made where it is missing, with its folders; None for memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: dict[str, str] = {}
        self._file: sqlite3.Connection | None = None
        self._writable = path is not None
        if path is not None:
            self._open(path)

    def __enter__(self) -> Cache:  # noqa: PYI034  (Self is of Python 3.11)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what is asked or put afterwards is kept in memory."""
        file, self._file, self._writable = self._file, None, False
        if file is not None:
            with suppress(sqlite3.Error):
                file.close()

    def get(self, key: str) -> Any | None:
        """Return a value as JSON gives it back (tuples are lists); None if there is none."""
        text = self._memory.get(key)
        if text is None and self._file is not None:
            try:
                row = self._file.execute(_READ, (_VERSION, key)).fetchone()
            except (sqlite3.Error, UnicodeDecodeError) as error:
                row = None
                self._recover(error)
            text = row[0] if row else None
        if text is None:
            return None
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError):  # damage that the database does not see
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep a value, in place of an earlier one.

        Raises
        ------
        TypeError
            If JSON cannot hold it.
        """
        text = json.dumps(value)
        for _ in range(2):  # again, if the file was damaged and has been begun anew
            if self._file is None or not self._writable:
                break
            try:
                self._file.execute(_WRITE, (_VERSION, key, text))
            except sqlite3.Error as error:
                self._recover(error)
            else:
                self._memory.pop(key, None)
                return
        self._memory[key] = text

    def _open(self, path: Path) -> None:
        """Open the file, anew if it is damaged; leave it if that cannot be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._file = _connect(path)
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                with alone_in(path.parent):
                    self._file = _begun_anew(path)
        except (OSError, sqlite3.Error) as error:
            self._to_memory(error)

    def _recover(self, error: Exception) -> None:
        """Go on after the file failed: with a new one, or in memory."""
        if not _is_damage(error) or self._path is None:
            self._to_memory(error)
            return
        self.close()
        self._writable = True
        try:
            _set_aside(self._path)
        except OSError as problem:
            self._to_memory(problem)
        else:
            self._open(self._path)

    def _to_memory(self, error: Exception) -> None:
        """Write no more to the file; what can be read of it still is."""
        if not self._writable:  # has been said
            return
        self._writable = False
        warnings.warn(
            f"{self._path}: measurements cannot be kept there ({_reason(error)}), so they last for "
            f"this run only; give a file that can be written (--cache)",
            OnnxlrWarning,
            stacklevel=2,
        )


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file, check it, and make its table."""
    connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    try:
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("it is damaged")
        # Commits append to a log: a process may die at any moment, and readers need not wait.
        with suppress(sqlite3.OperationalError):  # some file systems cannot; sqlite then locks
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_TABLE)
        if connection.execute(_MEANT).fetchall() != [(_TABLE.replace("IF NOT EXISTS ", ""),)]:
            raise sqlite3.DatabaseError("its table is another")
        connection.execute(_READ, (_VERSION, "")).fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _begun_anew(path: Path) -> sqlite3.Connection:
    """Open a file that was found to be damaged, unless another process has begun it anew."""
    try:
        return _connect(path)
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise
    _set_aside(path)
    return _connect(path)


def _is_damage(error: Exception) -> bool:
    """Return whether a file is no database, or a broken one; not so if it is busy or read-only."""
    # Only these two have the base class itself; Python 3.10 tells no codes.
    return type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError)


def _set_aside(path: Path) -> None:
    """Rename a damaged file, with what sqlite keeps beside it."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for ending in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(f"{aside}{ending}")
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
    warnings.warn(
        f"{path}: the file of measurements is damaged; it is kept as {aside.name}, and measuring "
        "begins anew",
        OnnxlrWarning,
        stacklevel=2,
    )


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else None
    return said or str(error) or type(error).__name__


def key_of(*parts: object) -> str:
    """Return a key that stands for some JSON values: SHA-256 of their text, in hexadecimal.

    Raises
    ------
    TypeError
        If one is no JSON value.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def machine_key() -> dict[str, Any]:
    """Return what latencies depend on beside the model, as JSON values.

    The processor, ONNX Runtime's version, and version, layout and instruction set of the op
    library, None where it is not used.
    """
    ops = describe_ops()
    used = ops.problem is None
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "system": platform.system(),
        "onnxruntime": ort.__version__,
        "ops": {"version": ops.version, "layout": ops.layout, "isa": ops.isa} if used else None,
    }


def _processor() -> str:
    """Return the model of the processor: on virtual machines its name alone tells little."""
    told: dict[str, str] = {}
    with suppress(OSError):
        text = _CPU.read_text(encoding="utf-8", errors="replace")
        for line in text.partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            told[name.strip()] = value.strip()
    fields = _CPU_FIELDS if "model name" in told else _ARM_FIELDS
    known = [told[name] for name in fields if name in told]
    return " ".join(known) or platform.processor() or platform.machine()
