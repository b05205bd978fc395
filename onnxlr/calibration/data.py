"""Input data from `.npz` and `.npy` files, folders of them, and Python functions."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxlr.calibration.signature import Feeds, InputSpec, check_feeds
from onnxlr.errors import DataError

__all__ = ["DataSource", "load_feeds"]

DataSource = str | Path | Iterable[Mapping[str, Any]] | Mapping[str, Any]
"""A path, `module:function`, one set of inputs, or several."""

BATCH = 32
"""Most samples that are run at once out of one array."""


def load_feeds(source: DataSource, specs: Sequence[InputSpec]) -> Iterator[Feeds]:
    """Yield inputs that fit a model.

    Parameters
    ----------
    source
        A `.npz` file with an array under each input's name, a `.npy` file for a model of one input,
        a folder of such files (taken in the order of their names), `module:function` that yields
        mappings of input names to arrays, or such mappings themselves. An array with more samples
        along its first axis than the model takes at once is split.

    Raises
    ------
    DataError
        If the data cannot be read, is empty, or does not fit.
    """
    found = False
    for name, arrays in _mappings(source, specs):
        for part in _split(arrays, specs):
            found = True
            yield check_feeds(part, specs, name)
    if not found:
        raise DataError(f"{_label(source)}: holds no inputs")


def _label(source: DataSource) -> str:
    return str(source) if isinstance(source, str | Path) else "the given data"


def _mappings(
    source: DataSource, specs: Sequence[InputSpec]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, Mapping):
        yield "the given data", source
    elif not isinstance(source, str | Path):
        for position, arrays in enumerate(source):
            yield from _from_item(arrays, f"the given data, item {position}")
    elif Path(source).is_dir():
        for file in sorted(Path(source).iterdir()):
            if file.suffix in (".npz", ".npy"):
                yield str(file), _read_file(file, specs)
    elif Path(source).exists():
        yield str(source), _read_file(Path(source), specs)
    elif isinstance(source, str) and _is_function(source):
        for position, arrays in enumerate(_call(source)):
            yield from _from_item(arrays, f"{source}, item {position}")
    else:
        raise DataError(
            f"{source}: no such file or folder (expected .npz, .npy, a folder of them, "
            "or module:function)"
        )


def _from_item(arrays: object, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(arrays, Mapping):
        raise DataError(
            f"{name}: found {type(arrays).__name__}, expected a mapping of input names to arrays"
        )
    yield name, arrays


def _read_file(path: Path, specs: Sequence[InputSpec]) -> Mapping[str, Any]:
    if path.suffix not in (".npz", ".npy"):
        raise DataError(f"{path}: expected a .npz or .npy file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _single(loaded, path, specs)
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds Python objects (pickles), which are never loaded"
        raise DataError(f"{path}: cannot be read: {reason}") from None


def _single(array: np.ndarray, path: Path, specs: Sequence[InputSpec]) -> Mapping[str, Any]:
    if len(specs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise DataError(
            f"{path}: a .npy file is for models of one input, this one has {len(specs)} ({names}); "
            "use .npz"
        )
    return {specs[0].name: array}


def _is_function(source: str) -> bool:
    module, separator, function = source.partition(":")
    return bool(separator) and function.isidentifier() and module.replace(".", "").isidentifier()


def _call(source: str) -> Iterable[Any]:
    """Call `module:function`, found like Python finds modules, the current folder first."""
    module_name, _, function_name = source.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(f"{source}: module '{module_name}' cannot be imported: {error}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"{source}: module '{module_name}' has no function '{function_name}'")
    try:
        yield from function()
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source}: failed with {type(error).__name__}: {error}") from error


def _split(arrays: Mapping[str, Any], specs: Sequence[InputSpec]) -> Iterator[Mapping[str, Any]]:
    """Cut arrays along the first axis where all inputs have the same number of samples there.

    A model with a fixed first dimension gets that many at a time, any other at most `BATCH`.
    """
    wanted = {spec.name: np.asarray(arrays[spec.name]) for spec in specs if spec.name in arrays}
    sizes = {array.shape[0] if array.ndim else None for array in wanted.values()}
    firsts = {spec.dims[0] if spec.dims else None for spec in specs}
    fixed = {dim for dim in firsts if isinstance(dim, int)}
    size = sizes.pop() if len(sizes) == 1 else None
    if not size or len(fixed) > 1 or (fixed and len(firsts) > 1) or len(wanted) < len(specs):
        yield arrays
        return
    step = fixed.pop() if fixed else BATCH
    if size <= step or (fixed and size % step) or step < 1 or (step != BATCH and size % step):
        yield arrays
        return
    for start in range(0, size, step):
        yield {name: array[start : start + step] for name, array in wanted.items()}
