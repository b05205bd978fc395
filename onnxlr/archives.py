"""Arrays out of numpy's files, which may lie: no header is believed before it is checked."""

from __future__ import annotations

import stat
import zipfile
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import DataError

__all__ = ["array_in", "arrays_of", "check_regular", "check_size"]

Array = npt.NDArray[Any]

_MAGIC = (b"PK", b"\x93NUMPY")
"""How a `.npz` and a `.npy` file begin."""

_ALWAYS_FINE = 1 << 30
_MOST_FOLD = 500
"""What data may unpack to, in bytes or as a multiple of the file: nothing but zeros makes more."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""By version of the format; the third has names that are not Latin, which no plain array has."""


def arrays_of(path: Path) -> Array | dict[str, Array]:
    """Return the array of a `.npy` file, or those of a `.npz` file by name.

    Raises
    ------
    DataError
        If it cannot be read, holds Python objects, or claims more than it has.
    """
    check_regular(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
            if not start.startswith(_MAGIC):
                raise DataError(f"{path}: is not a file that numpy wrote")
            stream.seek(0)
            if start.startswith(_MAGIC[1]):
                return _read_array(stream, path.stat().st_size)
            with zipfile.ZipFile(stream) as archive:
                check_size(archive, path)
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                return {name.removesuffix(".npy"): array_in(archive, name) for name in names}
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  (numpy, zipfile and zlib raise what the bytes lead to)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}") from None


def check_regular(path: Path) -> None:
    """Refuse pipes and devices, which may never begin or never end.

    Raises
    ------
    DataError
        If the path is one; what there is not, or a folder, is for whoever opens it to say.
    """
    with suppress(OSError):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{path}: is no regular file, expected one that numpy wrote")


def check_size(archive: zipfile.ZipFile, path: str | Path) -> None:
    """Refuse an archive that unpacks to very much more than it is.

    Raises
    ------
    DataError
        If it does. What an entry says of its size is all that is ever unpacked of it.
    """
    unpacked = sum(entry.file_size for entry in archive.infolist())
    packed = Path(path).stat().st_size
    if unpacked > max(_ALWAYS_FINE, _MOST_FOLD * packed):
        raise DataError(
            f"{path}: unpacks to {unpacked:,} bytes out of {packed:,}, expected at most "
            f"{_MOST_FOLD} times as many; save it without compression if it is what you mean"
        )


def array_in(archive: zipfile.ZipFile, name: str) -> Array:
    """Return the array of one entry, `<name>.npy`.

    Raises
    ------
    ValueError
        If it is none, holds Python objects, or claims another shape than it has numbers for; zip
        and its compressions raise errors of their own.
    """
    with archive.open(name) as stream:
        return _read_array(stream, archive.getinfo(name).file_size, f"array '{name[:-4]}' ")


def _read_array(stream: IO[bytes], size: int, what: str = "") -> Array:
    """Return the array in a stream of `size` bytes, once its header is found to be true."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"{what}is of version {version[0]} of the format, expected 1 or 2")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise ValueError(f"{what}holds Python objects (pickles), which are never loaded")
    entries = prod(int(size) for size in shape)
    claimed = entries * dtype.itemsize
    if claimed != size - stream.tell() or (not dtype.itemsize and entries):
        raise ValueError(
            f"{what}has {size - stream.tell():,} bytes of numbers, its shape {list(shape)} of "
            f"{dtype} takes {claimed:,}"
        )
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
