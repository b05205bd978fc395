"""How much the model's outputs suffer from an error of each layer's, measured end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy.typing as npt

from onnxlr.layers import Layer, read_weight
from onnxlr.model import Model
from onnxlr.model.saving import write_model
from onnxlr.planning.opened import open_weights
from onnxlr.planning.sensitivity import Sensitivity
from onnxlr.progress import Progress
from onnxlr.runtime import run_task, store_arrays
from onnxlr.scratch import scratch

__all__ = ["Trial", "measure_damages", "sensitivities"]


@dataclass(frozen=True)
class Trial:
    """A layer with another weight.

    Attributes
    ----------
    layer
        The layer.
    weight
        Returns canonical values to put in the weight's place.
    error
        Relative error of the layer's own outputs with them.
    """

    layer: Layer
    weight: Callable[[], npt.NDArray[Any]]
    error: float


def measure_damages(
    model: Model,
    reopen: Callable[[], Model],
    trials: Sequence[Trial],
    feeds: Sequence[str],
    mask: str | None,
    isolate: bool,
    progress: Progress,
) -> dict[str, float]:
    """Return by layer the squared relative distance of the model's outputs with its trial alone.

    Layers in functions are missing.

    Parameters
    ----------
    feeds
        Files of inputs.
    mask
        Input that is 0 where positions do not count; None for none.

    Raises
    ------
    RuntimeFailureError
        If the model cannot be run.
    """
    with scratch("onnxlr-sensitivity-") as folder:
        opened, inputs = open_weights(reopen(), [trial.layer for trial in trials])
        write_model(opened, folder, "opened.onnx")
        originals: dict[str, npt.NDArray[Any]] = {}
        files: list[str] = []
        seen = [trial for trial in trials if trial.layer.name in inputs]
        for position, trial in enumerate(seen):
            progress("preparing trials", position, len(seen))
            weight = inputs[trial.layer.name]
            originals |= weight.arranged(read_weight(model, trial.layer))
            files.append(str(folder / f"trial-{position:06}.npz"))
            store_arrays(Path(files[-1]), weight.arranged(trial.weight()))
        progress("preparing trials", len(seen), len(seen))
        store_arrays(folder / "weights.npz", originals)
        words = f"measuring sensitivity, {len(seen)} layers"
        progress(words, 0, 1)
        places = str(folder / "opened.onnx"), str(folder / "weights.npz")
        task = Sensitivity(*places, files, feeds, mask)
        damages = run_task(task, model.name, isolate)["damages"]
        progress(words, 1, 1)
    return {trial.layer.name: damage for trial, damage in zip(seen, damages, strict=True)}


def sensitivities(trials: Sequence[Trial], damages: Mapping[str, float]) -> dict[str, float]:
    """Return by layer the damage to the model's outputs for a relative error of 1 of its own.

    Damages are squares, and so is what they are divided by. A layer that could not be measured is
    taken to be as sensitive as the median of the others.
    """
    found = {
        trial.layer.name: damages[trial.layer.name] / trial.error**2
        for trial in trials
        if trial.layer.name in damages and trial.error > 0
    }
    usual = median(found.values()) if found else 1.0
    return {trial.layer.name: found.get(trial.layer.name, usual) for trial in trials}
