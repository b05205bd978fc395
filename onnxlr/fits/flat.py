"""Dataclasses of arrays as JSON and plain arrays, and back: what is read cannot run anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

__all__ = ["digest", "flatten", "unflatten"]

_FOREIGN = ("bfloat16", "int4", "uint4", "int2", "uint2")
"""Types of numpy's that are not its own: files of numpy know them as bare bytes."""


def flatten(value: Any) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """Return a tree of dataclasses, tuples, lists, arrays and JSON values as text and arrays.

    What occurs in several places of the tree is one object again when it is read.

    Raises
    ------
    TypeError
        If it holds anything else.
    """
    writing = _Writing()
    text = json.dumps(writing.value(value), separators=(",", ":"))
    return text, writing.arrays


def unflatten(
    text: str, arrays: Mapping[str, npt.NDArray[Any]], classes: Iterable[type[Any]]
) -> Any:
    """Return the tree of a text and arrays.

    Parameters
    ----------
    classes
        Those that may be in it, told by their names.

    Raises
    ------
    ValueError, TypeError, KeyError
        If it is none, or holds other classes.
    """
    return _Reading(arrays, {kind.__name__: kind for kind in classes}).value(json.loads(text))


def digest(value: Any) -> str:
    """Return a hash of a tree: SHA-256 of its text and arrays, in hexadecimal.

    Raises
    ------
    TypeError
        As `flatten` does.
    """
    text, arrays = flatten(value)
    found = hashlib.sha256(text.encode())
    for name, array in arrays.items():
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        if array.size:
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


class _Writing:
    def __init__(self) -> None:
        self.arrays: dict[str, npt.NDArray[Any]] = {}
        self._known: dict[int, int] = {}
        self._kept: list[Any] = []

    def value(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic) and value.dtype.kind in "biuf":
            return value.item()
        if isinstance(value, np.dtype):
            return {"dtype": value.name}
        if isinstance(value, tuple | list):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.value(entry) for entry in value]}
        if id(value) in self._known:
            return {"same": self._known[id(value)]}
        number = self._known[id(value)] = len(self._kept)
        self._kept.append(value)  # so that its id stays its own
        if isinstance(value, np.ndarray):
            return {"array": number, "dtype": self._array(str(number), value)}
        if is_dataclass(value) and not isinstance(value, type):
            own = {f.name: self.value(getattr(value, f.name)) for f in fields(value) if f.init}
            return {"class": type(value).__name__, "number": number, "fields": own}
        raise TypeError(f"a {type(value).__name__} cannot be kept")

    def _array(self, key: str, array: npt.NDArray[Any]) -> str:
        """Keep an array and return the name of its type."""
        name = str(array.dtype.name)
        if name in _FOREIGN:
            array = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
        elif array.dtype.kind not in "biuf":
            raise TypeError(f"an array of {name} cannot be kept")
        self.arrays[key] = array
        return name


class _Reading:
    def __init__(
        self, arrays: Mapping[str, npt.NDArray[Any]], classes: Mapping[str, type[Any]]
    ) -> None:
        self._arrays, self._classes = arrays, classes
        self._known: dict[int, Any] = {}

    def value(self, entry: Any) -> Any:
        if not isinstance(entry, dict):
            if isinstance(entry, list):
                raise ValueError("a bare list")
            return entry
        if "array" in entry:
            return self._array(entry["array"], entry["dtype"])
        if "class" in entry:
            return self._object(entry)
        if "same" in entry:
            return self._known[entry["same"]]
        if "dtype" in entry:
            return _dtype(entry["dtype"])
        kind, entries = next(iter(entry.items()))
        return {"tuple": tuple, "list": list}[kind](self._all(entries))

    def _all(self, entries: Sequence[Any]) -> list[Any]:
        return [self.value(entry) for entry in entries]

    def _array(self, number: int, name: str) -> npt.NDArray[Any]:
        array = self._arrays[str(number)]
        if name in _FOREIGN:
            array = array.view(_dtype(name))
        elif array.dtype.name != name:
            raise ValueError(f"an array of {array.dtype.name}, expected {name}")
        self._known[number] = array
        return array

    def _object(self, entry: Mapping[str, Any]) -> Any:
        own = {name: self.value(value) for name, value in entry["fields"].items()}
        found = self._classes[entry["class"]](**own)
        self._known[entry["number"]] = found
        return found


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if name in _FOREIGN else name)
