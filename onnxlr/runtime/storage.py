"""Arrays in files, between the process that asks and the one that runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.scratch import temporary

__all__ = ["read_arrays", "store_arrays"]

_NAMES = "names.json"
_INSTEAD = "?"
"""Begins what stands for a name that zip cannot hold."""

_LONGEST = 1000
"""Bytes of a name; zip has room for 65,535 with its own."""


def store_arrays(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a `.npz` file that is a temporary one.

    Not `numpy.savez`: that takes names as keyword arguments, so that no tensor could be called
    `file`, and it pickles objects. Names that zip would cut, or has no room for, are in a list.

    Raises
    ------
    ScratchError
        If it cannot be written.
    """
    with temporary(), zipfile.ZipFile(file, "w") as archive:
        entries = {_entry(name, number): name for number, name in enumerate(arrays)}
        for entry, name in entries.items():
            with archive.open(f"{entry}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, arrays[name], allow_pickle=False)
        replaced = {entry: name for entry, name in entries.items() if entry != name}
        if replaced:
            archive.writestr(_NAMES, json.dumps(replaced))


def read_arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a `.npz` file by name."""
    with np.load(file, allow_pickle=False) as arrays:
        names = json.loads(arrays[_NAMES]) if _NAMES in arrays.files else {}
        return {names.get(each, each): arrays[each] for each in arrays.files if each != _NAMES}


def _entry(name: str, number: int) -> str:
    """Return what an array is called in the file: its name, if zip and numpy take it as it is."""
    fits = len(name.encode()) <= _LONGEST and "\0" not in name
    taken = name == _NAMES or name.startswith(_INSTEAD) or name.endswith(".npy")
    return name if fits and not taken else f"{_INSTEAD}{number}"
