"""Input data from `.npz` and `.npy` files, folders of them, and Python functions."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.archives import arrays_of
from onnxlr.calibration.signature import Feeds, InputSpec, check_feeds, check_names
from onnxlr.errors import DataError

__all__ = [
    "Batches",
    "DataSource",
    "check_files",
    "is_function",
    "label_of",
    "load_feeds",
    "load_function",
    "read_arrays_of",
]

DataSource = str | Path | Iterable[Mapping[str, Any]] | Mapping[str, Any]
"""A path, `module:function`, one set of inputs, or several."""


class Batches(list[Mapping[str, Any]]):
    """Inputs, with what messages call them, and whether layers were fitted to them."""

    def __init__(
        self, feeds: Iterable[Mapping[str, Any]], label: str, *, are_fitted: bool = False
    ) -> None:
        super().__init__(feeds)
        self.label = label
        self.are_fitted = are_fitted


BATCH = 32
"""Most samples that are run at once out of one array, unless told otherwise."""


def load_feeds(
    source: DataSource,
    specs: Sequence[InputSpec],
    batch: int = BATCH,
    beside: bool = False,
) -> Iterator[Feeds]:
    """Yield inputs that fit a model.

    An array may hold more samples along its first axis than the model takes at once. Inputs are cut
    into runs if they all have the same number of samples and the model states the same first
    dimension for all of them: a fixed one gives runs of exactly that many samples, an open one runs
    of at most `batch`. All other inputs are one run, as they are.

    Parameters
    ----------
    source
        A `.npz` file with an array under each input's name, a `.npy` file for a model of one input,
        a folder of such files (taken in the order of their names), `module:function` that yields
        mappings of input names to arrays, or such mappings themselves.
    specs
        The model's inputs.
    batch
        Most samples of a run.
    beside
        Whether what the model does not take is yielded too (labels, for instance).

    Raises
    ------
    DataError
        If the data cannot be read, is empty, or does not fit.
    """
    found = False
    for name, mapping in _mappings(source, specs):
        arrays = _arrays(mapping, specs, name, beside)
        for part in _split(arrays, specs, name, batch):
            found = True
            checked = check_feeds(part, specs, name)
            yield {**part, **checked} if beside else checked
    if not found:
        raise DataError(f"{label_of(source)}: holds no inputs")


def check_files(source: DataSource | None, specs: Sequence[InputSpec]) -> None:
    """Refuse, before any work, data that there is not and files whose first inputs do not fit.

    Functions are found, and not called.

    Raises
    ------
    DataError
        As `load_feeds` does.
    """
    if not isinstance(source, str | Path):
        return
    if not _files(source) and is_function(str(source)):
        load_function(str(source))
    else:
        next(load_feeds(source, specs))


def label_of(source: DataSource) -> str:
    """Return what messages call some data."""
    if isinstance(source, Batches):
        return source.label
    return str(source) if isinstance(source, str | Path) else "the given data"


def _mappings(
    source: DataSource, specs: Sequence[InputSpec]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, Mapping):
        yield "the given data", source
    elif not isinstance(source, str | Path):
        for position, arrays in enumerate(source):
            yield from _from_item(arrays, f"the given data, item {position}")
    elif files := _files(source):
        for file in files:
            yield str(file), _read_file(file, specs)
    elif isinstance(source, str) and is_function(source):
        for position, arrays in enumerate(_call(source)):
            yield from _from_item(arrays, f"{source}, item {position}")
    else:
        raise DataError(
            f"{source}: no such file or folder (expected .npz, .npy, a folder of them, "
            "or module:function)"
        )


def _files(source: str | Path) -> list[Path]:
    """Return the data files that a path means, none if there is nothing at it."""
    if not str(source):
        raise DataError("the name of the data is empty, expected a file, folder or module:function")
    path = Path(source)
    try:
        if not path.is_dir():
            return [path] if path.exists() else []
        files = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from None
    if not files:
        raise DataError(f"{source}: the folder holds no .npz or .npy files")
    return files


def _from_item(arrays: object, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(arrays, Mapping):
        raise DataError(
            f"{name}: found {type(arrays).__name__}, expected a mapping of input names to arrays"
        )
    yield name, arrays


def _read_file(path: Path, specs: Sequence[InputSpec]) -> Mapping[str, Any]:
    if path.suffix not in (".npz", ".npy"):
        raise DataError(f"{path}: expected a .npz or .npy file")
    loaded = arrays_of(path)
    return _single(loaded, path, specs) if isinstance(loaded, np.ndarray) else loaded


def read_arrays_of(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    """Return the arrays of a `.npz` file by name.

    Raises
    ------
    DataError
        If it cannot be read, or holds one array without a name.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file (expected a .npz file)")
    loaded = arrays_of(path)
    if isinstance(loaded, np.ndarray):
        raise DataError(f"{path}: holds one array without a name, expected a .npz file")
    return loaded


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _single(array: np.ndarray, path: Path, specs: Sequence[InputSpec]) -> Mapping[str, Any]:
    if len(specs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise DataError(
            f"{path}: a .npy file is for models of one input, this one has {len(specs)} ({names}); "
            "use .npz"
        )
    return {specs[0].name: array}


def is_function(source: str) -> bool:
    """Return whether a text has the form `module:function`."""
    module, separator, function = source.partition(":")
    return bool(separator) and function.isidentifier() and module.replace(".", "").isidentifier()


def load_function(source: str) -> Callable[..., Any]:
    """Return `module:function`, found like Python finds modules, the current folder first.

    Raises
    ------
    DataError
        If it cannot be imported, or is no function.
    """
    if not is_function(source):
        raise DataError(f"{source}: expected module:function")
    module_name, _, function_name = source.partition(":")
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise DataError(
            f"{source}: module '{module_name}' cannot be imported: {_line(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"{source}: module '{module_name}' has no function '{function_name}'")
    return function  # type: ignore[no-any-return]  # callable(…) leaves Any


def _call(source: str) -> Iterable[Any]:
    """Yield what `module:function` returns."""
    function = load_function(source)
    try:
        made = function()
        if not isinstance(made, Iterable):
            raise DataError(
                f"{source}: returned {type(made).__name__}, expected mappings of input names to "
                "arrays"
            )
        yield from ((made,) if isinstance(made, Mapping) else made)
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{source}: failed with {type(error).__name__}: {_line(error)}") from error


def _arrays(
    mapping: Mapping[str, Any], specs: Sequence[InputSpec], name: str, beside: bool
) -> Feeds:
    """Return a mapping's values as arrays, without those that nothing takes."""
    check_names(mapping, specs, name)
    taken = list(mapping) if beside else [spec.name for spec in specs]
    return {key: _array(mapping[key], f"{name}: input '{key}'") for key in taken}


def _array(value: Any, where: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:
        raise DataError(f"{where} is no array: {_line(error)}") from error


def _split(arrays: Feeds, specs: Sequence[InputSpec], name: str, batch: int) -> Iterator[Feeds]:
    """Cut arrays into runs by the rules of `load_feeds`."""
    sizes = {array.shape[:1] for array in arrays.values()}
    firsts = {spec.dims[:1] if spec.dims is not None else (None,) for spec in specs}
    if len(sizes) != 1 or len(firsts) != 1 or () in sizes | firsts:
        yield arrays
        return
    ((size,),), ((first,),) = sizes, firsts
    if size == 0:
        raise DataError(f"{name}: the arrays hold no samples: their first dimension is 0")
    step = first if isinstance(first, int) and first > 0 else batch
    if step == first and size % step:
        yield arrays  # does not fit, which check_feeds words
        return
    for start in range(0, size, step):
        yield {key: array[start : start + step] for key, array in arrays.items()}
