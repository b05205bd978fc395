"""How much a model's outputs suffer when weights are replaced, measured by running it."""

from __future__ import annotations

from collections.abc import Sequence
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

__all__ = ["Sensitivity", "measure", "store_feeds"]

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
    """

    model: str
    weights: Files
    trials: Sequence[Files]
    feeds: Sequence[str]
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
    model: str, weights: Files, trials: Sequence[Files], feeds: Sequence[str]
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
        expected = [_floats(run_model(runner, {**originals, **feed})) for feed in inputs]
        damages = []
        for trial in trials:
            changed = {**originals, **_read(trial)}
            found = [_floats(run_model(runner, {**changed, **feed})) for feed in inputs]
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


def _floats(outputs: Sequence[Any]) -> list[Array]:
    """Return the outputs that are arrays of floats."""
    arrays = [output for output in outputs if isinstance(output, np.ndarray)]
    return [array for array in arrays if array.dtype.kind == "f" or array.dtype == bfloat16]


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
