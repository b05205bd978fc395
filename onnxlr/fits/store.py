"""Fits in a folder, by what they depend on: a run that was interrupted goes on from them.

An entry is an uncompressed `.npz` of numpy: plain arrays, and the structure as JSON. It appears
whole or not at all. One that cannot be read, whatever the reason, is as if it were not there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr import stages
from onnxlr.archives import arrays_of
from onnxlr.errors import DataError, OnnxlrWarning, UsageError
from onnxlr.fits.flat import flatten, unflatten
from onnxlr.methods import METHODS, Fit, Recipe
from onnxlr.methods.atoms import Form
from onnxlr.numbers import Encoded, Format
from onnxlr.numbers.atoms import Atoms, Coefficients
from onnxlr.scratch import scratch

__all__ = ["FitStore"]

_TEXT = "structure"
_ENDING = ".npz"

_OF_DAMAGE = (ValueError, TypeError, LookupError, AttributeError)
"""What a structure leads to that does not fit together."""


def _read(path: Path) -> Fit | None:
    """Return the fit of an entry, None if it is one of something else."""
    arrays = arrays_of(path)
    if not isinstance(arrays, dict):
        return None
    found = unflatten(arrays.pop(_TEXT).tobytes().decode(), arrays, _CLASSES)
    return found if isinstance(found, Fit) else None


def _stands_for(fit: Fit, shape: Sequence[int]) -> bool:
    """Return whether a fit, whatever its key says, is one of a weight of such a shape."""
    with np.errstate(all="ignore"):
        dense = fit.chain.reconstruct()
    return dense.shape == tuple(shape) and bool(np.isfinite(dense).all())


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    """Yield a class and all that derive from it."""
    yield kind
    for each in kind.__subclasses__():
        yield from _below(each)


_CLASSES = (
    *_below(stages.Chain),  # methods note beside the stages what they settled on
    *(stages.Linear, stages.Convolution, stages.Lookup, stages.Scale, stages.Fold),
    *(stages.ModeProduct, stages.KhatriRao, stages.Sum),
    *(stages.RecombinedLinear, stages.RecombinedConvolution),
    *(Fit, Recipe, Encoded, Format, Atoms, Coefficients, Form),
    *(method.options for method in METHODS.values()),
)
"""What a fit is made of."""


@dataclass
class FitStore:
    """Fits by key.

    Attributes
    ----------
    folder
        Where they are kept; it is made with the first one.
    """

    folder: Path
    _writable: bool = True

    def prepare(self) -> None:
        """Try to write; where that cannot be, warn and keep nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with scratch(_PARTIAL, self.folder):
                pass
        except OSError as error:
            self._give_up(error)

    def get(self, key: str, shape: Sequence[int]) -> Fit | None:
        """Return a fit of a weight of that shape, None if there is none that can be read."""
        path = self._path(key)
        try:
            if not path.is_file():
                return None
        except OSError:  # nobody may look into the folder
            return None
        try:
            fit = _read(path)
            if fit is not None and not _stands_for(fit, shape):
                fit = None
        except (DataError, UsageError, RecursionError, *_OF_DAMAGE):
            fit = None
        if fit is not None:
            return fit
        warnings.warn(
            f"{path}: this entry of the cache is damaged and not used; the layer is fitted anew",
            OnnxlrWarning,
            stacklevel=3,
        )
        return None

    def put(self, key: str, fit: Fit) -> None:
        """Keep a fit; where that cannot be, warn once and go on."""
        if not self._writable:
            return
        text, arrays = flatten(fit)
        arrays[_TEXT] = np.frombuffer(text.encode(), np.uint8)
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, arrays)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writable = False
        warnings.warn(
            f"{self.folder}: fits cannot be kept there ({error.strerror or error}), so that a run "
            "that is interrupted begins anew; give another folder (--cache)",
            OnnxlrWarning,
            stacklevel=3,
        )

    def _write(self, path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Write an entry elsewhere in the store and move it to its place."""
        with scratch(_PARTIAL, self.folder) as folder:
            partial = folder / "entry"
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_ENDING}"


_PARTIAL = ".onnxlr-fit-"
"""Begins the names of folders that entries are written in; what killed processes left of them is
removed by the next that writes."""
