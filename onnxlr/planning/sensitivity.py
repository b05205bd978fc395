"""How much a model's outputs suffer when weights are replaced, measured by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16

from onnxlr.calibration import Sources
from onnxlr.model import Model
from onnxlr.runtime import (
    LEVELS,
    ExecutionError,
    open_runner,
    read_arrays,
    run_model,
    store_arrays,
)

__all__ = ["Sensitivity", "measure", "rows_that_count", "store_feeds"]

_RUNS = 4
"""Most held-out runs of the calibration data that every trial is run on."""

_WORST = 1e6
"""Damage of outputs that overflow: no number that damages could be weighed against."""

Array = npt.NDArray[Any]

Files: TypeAlias = "str | Sequence[str]"
"""An `.npz` file, or several with the arrays of one after the other, the later ones counting."""


@dataclass(frozen=True)
class Sensitivity:
    """A task: run a model whose weights are inputs, with some of them replaced in each trial.

    Attributes
    ----------
    model
        File of the model; the weights in question are inputs of its graph.
    weights
        Files with the original under the name of each such input.
    trials
        In order, the files of each trial, with replacements under the names of their inputs.
    feeds
        Files of inputs.
    mask
        Input that is 0 where positions of outputs do not count; None for none.
    """

    model: str
    weights: Files
    trials: Sequence[Files]
    feeds: Sequence[str]
    mask: str | None = None
    function: ClassVar[str] = "onnxlr.planning.sensitivity:measure"


def store_feeds(folder: Path, model: Model, sources: Sources) -> list[str]:
    """Store the held-out inputs that every trial is run on, and return their files."""
    files = []
    for position, feed in enumerate(sources.held_out(model, _RUNS)):
        file = folder / f"feed-{position:06}.npz"
        store_arrays(file, feed)
        files.append(str(file))
    return files


def measure(
    model: str,
    weights: Files,
    trials: Sequence[Files],
    feeds: Sequence[str],
    mask: str | None = None,
) -> dict[str, Any]:
    """Return for each trial the squared relative distance of the float outputs.

    `Σ ‖y − ŷ‖² / ‖y‖²` over the outputs, with the norms over all feeds.

    Raises
    ------
    ExecutionError
        If the model cannot be run.
    """
    try:
        runner = open_runner(model, LEVELS[0])
        originals = _read(weights)
        inputs = [read_arrays(Path(feed)) for feed in feeds]
        expected = [_outputs(run_model(runner, {**originals, **f}), f, mask) for f in inputs]
        damages = []
        for trial in trials:
            changed = {**originals, **_read(trial)}
            found = [_outputs(run_model(runner, {**changed, **f}), f, mask) for f in inputs]
            damages.append(_damage(expected, found))
    except ExecutionError as error:
        raise ExecutionError(f"its sensitivity cannot be measured: {error}") from None
    return {"damages": damages}


def _read(files: Files) -> dict[str, Array]:
    """Return the arrays of all files."""
    found: dict[str, Array] = {}
    for file in [files] if isinstance(files, str) else files:
        found |= read_arrays(Path(file))
    return found


def _outputs(values: Sequence[Any], feed: Mapping[str, Array], mask: str | None) -> list[Array]:
    """Return the outputs that are arrays of floats, at the positions that count."""
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    floats = [array for array in arrays if array.dtype.kind == "f" or array.dtype == bfloat16]
    counted = None if mask is None else feed.get(mask)
    return floats if counted is None else [rows_that_count(a, counted) for a in floats]


def rows_that_count(value: Array, mask: Array) -> Array:
    """Return the entries at positions where a mask is not 0, as one sample.

    A tensor whose first dimensions are not the mask's is returned as it is.
    """
    if not mask.ndim or value.shape[: mask.ndim] != mask.shape or not np.any(mask):
        return value
    kept: Array = value[mask != 0]
    return kept.reshape((1,) * (mask.ndim - 1) + kept.shape)


def _damage(expected: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]]) -> float:
    total = 0.0
    for output in range(len(expected[0])):
        wrong = norm = 0.0
        for one, other in zip(expected, found, strict=True):
            counts = np.isfinite(one[output])  # masks make logits infinite
            reference = np.asarray(one[output], np.float64)[counts]
            difference = np.asarray(other[output], np.float64)[counts] - reference
            wrong += float(np.nan_to_num(np.square(difference), nan=np.inf, posinf=np.inf).sum())
            norm += float(np.square(reference).sum())
        total += min(wrong / norm, _WORST) if norm > 0 else 0.0
    return total
