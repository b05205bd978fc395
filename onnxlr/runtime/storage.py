"""Arrays in files, between the process that asks and the one that runs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.scratch import temporary

__all__ = ["read_arrays", "store_arrays"]


def store_arrays(file: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a `.npz` file that is a temporary one.

    Not `numpy.savez`: that takes names as keyword arguments, so that no tensor could be called
    `file`, and it pickles objects.

    Raises
    ------
    ScratchError
        If it cannot be written.
    """
    with temporary(), zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def read_arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a `.npz` file by name."""
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
