"""The file of statistics: JSON, in which each array stands by its hash, and the arrays."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxlr.archives import array_in, check_regular, check_size
from onnxlr.errors import DataError
from onnxlr.model.saving import check_output, staging

__all__ = ["describe", "load", "save"]

_CONTENTS = "statistics.json"
_TRIANGLE = ".triangle.npy"
"""End of the names of arrays of which only the upper triangles are kept."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""The date of every entry of a file, so that the same content is the same bytes."""

Array = npt.NDArray[Any]
Made = TypeVar("Made")

Put = Callable[[Array], str]
"""Takes an array and returns what stands for it in JSON: the hash of its content."""

Get = Callable[[str], Array]
"""Returns the array that such a hash stands for."""


def describe(contents: Callable[[Put], Made]) -> Made:
    """Return JSON values that hold arrays, without keeping the arrays."""
    return contents(_hashed(lambda _key, _array: None))


def save(path: str | Path, contents: Callable[[Put], object]) -> None:
    """Write JSON values and the arrays in them, whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    output = Path(path)
    check_output(output)
    with staging(output) as folder, zipfile.ZipFile(folder / output.name, "w") as archive:
        stored = set[str]()

        def store(key: str, array: Array) -> None:
            if key not in stored:  # layers that share their data share the array
                stored.add(key)
                name = f"{key}.npy"
                if _is_symmetric(array):
                    name, array = f"{key}{_TRIANGLE}", _triangle(array)
                with archive.open(_entry(name), "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)

        values = contents(_hashed(store))
        archive.writestr(_entry(_CONTENTS), json.dumps(values, indent=1))


def load(path: str | Path, build: Callable[[Mapping[str, Any], Get], Made]) -> Made:
    """Return what `build` makes of the JSON values and arrays of a file that `save` wrote.

    Raises
    ------
    DataError
        If it cannot be read, or is something else.
    """
    check_regular(Path(path))
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(archive, path)
            if _CONTENTS not in archive.namelist():
                raise DataError(f"{path}: is not a statistics file (it has no {_CONTENTS})")
            return build(json.loads(archive.read(_CONTENTS)), _reader(archive))
    except FileNotFoundError:
        raise DataError(f"{path}: no such statistics file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: is not a statistics file, or damaged ({error})") from None
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  (numpy and zlib raise what the bytes lead to)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: is a damaged statistics file: {reason}") from None


def _hashed(store: Callable[[str, Array], None]) -> Put:
    """Return what hashes each array once and hands it to `store`."""
    seen: dict[int, str] = {}

    def put(array: Array) -> str:
        if id(array) not in seen:
            seen[id(array)] = _hash(array)
            store(seen[id(array)], array)
        return seen[id(array)]

    return put


def _reader(archive: zipfile.ZipFile) -> Get:
    known: dict[str, Array] = {}
    names = set(archive.namelist())

    def get(key: str) -> Array:
        if key not in known:
            is_half = f"{key}{_TRIANGLE}" in names
            array = array_in(archive, f"{key}{_TRIANGLE if is_half else '.npy'}")
            known[key] = _from_triangle(array) if is_half else array
            if _hash(known[key]) != key:
                raise ValueError(f"array {key[:12]}… has other numbers than when it was written")
        return known[key]

    return get


def _is_symmetric(array: Array) -> bool:
    square = array.ndim == 3 and array.shape[1] == array.shape[2] > 1
    return square and np.array_equal(array, array.swapaxes(1, 2))


def _triangle(array: Array) -> Array:
    """Return the upper triangles of symmetric matrices, `(groups, n (n + 1) / 2)`."""
    return np.stack([matrix[np.triu_indices(len(matrix))] for matrix in array])


def _from_triangle(halves: Array) -> Array:
    """Return the symmetric matrices of upper triangles."""
    size = int((np.sqrt(8 * halves.shape[1] + 1) - 1) / 2)
    whole = np.empty((len(halves), size, size), halves.dtype)
    rows, columns = np.triu_indices(size)
    whole[:, rows, columns] = halves
    whole[:, columns, rows] = halves
    return whole


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, _DATE)


def _hash(array: Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
