"""Observing what the inputs of a model's layers are like on calibration data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration.data import DataSource
from onnxlr.calibration.division import Division, check_holdout, divide
from onnxlr.calibration.notes import layer_notes
from onnxlr.calibration.signature import signature
from onnxlr.calibration.survey import Subject, Survey, batches, observable
from onnxlr.calibration.watching import SPLITS, Watch
from onnxlr.errors import DataError, UsageError
from onnxlr.layers import Layer, layer_keys
from onnxlr.model import Model
from onnxlr.model.saving import copy_model
from onnxlr.progress import Progress, silent
from onnxlr.runtime import read_arrays, run_task
from onnxlr.scratch import scratch
from onnxlr.statistics import LayerStatistics, Moments, Statistics

__all__ = ["MEMORY", "RUN_SAMPLES", "Observation", "Watched", "observe", "opened_file"]

MEMORY = 1 << 30
"""Bytes that accumulators may take, and the tapped tensors of one run."""

RUN_SAMPLES = 8
"""Most samples that are run at once: few, so that there are runs to hold out."""

Arrays = Mapping[str, npt.NDArray[Any]]


def observe(
    model: Model,
    layers: Sequence[Layer],
    data: DataSource,
    *,
    holdout: float | DataSource = 0.2,
    mask: str | None = None,
    isolate: bool = True,
    memory: int = MEMORY,
    batch: int = RUN_SAMPLES,
    progress: Progress = silent,
    keys: Mapping[str, str] | None = None,
) -> Statistics:
    """Run a model on calibration data and sum up what its layers' inputs are like.

    Parameters
    ----------
    layers
        Layers to observe; those that are skipped are left out.
    data
        Inputs, as `load_feeds` takes them.
    holdout
        Fraction of the runs to keep apart, spread evenly over the data, or data of its own.
    mask
        Name of a tensor of the main graph, or input, such as `attention_mask`: rows where it is 0
        do not count. Layers of which it does not have the leading dimensions are seen whole.
    isolate
        Whether the model runs in a child process.
    memory
        Bytes that accumulators may take; the model is run again for the layers beyond.
    batch
        Most samples to run at once where the model leaves that open.
    keys
        Of the layers, where they are not the model's whole list of layers.

    Raises
    ------
    DataError
        If the data does not fit, makes an activation NaN or infinite, or the mask fits no layer.
    UsageError
        If the holdout is no fraction.
    RuntimeFailureError
        If the model cannot be run.
    """
    check_holdout(holdout)
    _check_mask(model, mask)
    if batch < 1:
        raise UsageError(f"runs of {batch} samples were asked for, expected at least 1")
    with scratch("onnxlr-observe-") as folder:
        division = divide(folder, data, holdout, signature(model), batch)
        work = Observation(model, [opened_file(model, folder)], division, mask, isolate, memory)
        result = _Result(model, layers, division, keys)
        subjects = result.subjects(model)
        for watched in work.watch(folder, subjects, progress):
            for index, subject in enumerate(watched.survey.subjects):
                result.add(subject, watched, index)
        return result.statistics(mask)


def opened_file(model: Model, folder: Path) -> Path:
    """Return the file of a model; one that was given as bytes or proto is written into a folder."""
    if model.path is None:
        copy_model(model, folder, "model.onnx")
    return model.path or folder / "model.onnx"


def _check_mask(model: Model, mask: str | None) -> None:
    graph = model.proto.graph
    known = {value.name for value in (*graph.input, *graph.initializer)}
    known |= {name for node in graph.node for name in node.output}
    if mask is not None and (mask not in known or not mask):
        inputs = ", ".join(f"'{value.name}'" for value in graph.input)
        raise DataError(
            f"{model.name}: has no tensor '{mask}' to use as mask; its inputs are {inputs}"
        )


@dataclass(frozen=True)
class Watched:
    """What was summed up of some layers: the survey, the sums, and recipes without mask."""

    survey: Survey
    arrays: Arrays
    unmasked: frozenset[int]
    _means: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def sums(self, subject: int, split: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return the sums of one layer by part, None where the split has no inputs."""
        prefix = f"{self.survey.recipe_of[subject]}.{split}."
        parts = {k.removeprefix(prefix): a for k, a in self.arrays.items() if k.startswith(prefix)}
        return parts if parts and parts["counts"].any() else None

    def mean(self, subject: int, split: str, part: str) -> npt.NDArray[np.float64]:
        """Return sums of products divided by the rows: one array for all layers that share it."""
        prefix = f"{self.survey.recipe_of[subject]}.{split}."
        key = prefix + part
        if key not in self._means:
            self._means[key] = self.arrays[key] / self.arrays[f"{prefix}counts"].sum()
        return self._means[key]


@dataclass(frozen=True)
class Observation:
    """One or two models on the same inputs."""

    model: Model
    files: Sequence[Path]
    division: Division
    mask: str | None
    isolate: bool
    memory: int

    def watch(
        self, folder: Path, subjects: Sequence[Subject], progress: Progress
    ) -> Iterator[Watched]:
        """Run the models, as often as memory asks for, and yield what was summed up.

        Raises
        ------
        DataError
            If an activation is NaN or infinite.
        RuntimeFailureError
            If a model cannot be run.
        """
        splits = len(set(self.division.held))
        pending = list(batches(subjects, self.mask, self.memory, splits))
        done = 0
        progress("observing", 0, len(pending))
        while pending:
            survey = pending.pop(0)
            alone = len(survey.subjects) == 1
            answer = self._run(folder, survey, sys.maxsize if alone else self.memory)
            if not alone and answer["activations"] > self.memory:
                half = len(survey.subjects) // 2
                parts = survey.subjects[:half], survey.subjects[half:]
                pending[:0] = [Survey(part, self.mask) for part in parts]
                continue
            yield Watched(survey, _take(folder / _SUMS), frozenset(answer["unmasked"]))
            done += 1
            progress("observing", done, done + len(pending))

    def _run(self, folder: Path, survey: Survey, memory: int) -> dict[str, Any]:
        task = Watch(
            [str(file) for file in self.files],
            self.division.files,
            self.division.held,
            survey.taps,
            survey.recipes,
            survey.outputs,
            survey.mask,
            str(folder / _SUMS),
            memory,
        )
        answer = run_task(task, self.model.name, self.isolate)
        if answer["not_finite"] is not None:
            tap, run, bad, size = answer["not_finite"]
            layer, what = survey.culprit(tap)
            raise DataError(
                f"{self.model.name}: layer '{layer.name}': its {what} has {bad:,} entries that are "
                f"NaN or infinite of {size:,} in run {run + 1} of the calibration data; expected "
                f"finite numbers (--skip '{layer.name}' leaves it alone)"
            )
        return answer


_SUMS = "sums.npz"


def _take(file: Path) -> Arrays:
    """Return what a child stored, and take it off the disk."""
    arrays = read_arrays(file)
    file.unlink()
    return arrays


class _Result:
    """Statistics in the making."""

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        division: Division,
        keys: Mapping[str, str] | None,
    ) -> None:
        self._model_sha256, self._data = model.sha256, division.description
        self._layers = [layer for layer in layers if layer.skip is None]
        self._keys = layer_keys(model, self._layers) if keys is None else keys
        self._statistics: dict[str, LayerStatistics] = {}
        self._unobserved: dict[str, str] = {}
        self._notes: dict[str, list[str]] = {}
        self._unmasked: list[str] = []

    def subjects(self, model: Model) -> list[Subject]:
        """Return the layers that can be observed, and note why the others cannot."""
        found = []
        for layer in self._layers:
            answer = observable(model.proto, layer)
            if isinstance(answer, Subject):
                found.append(answer)
            else:
                self._unobserved[layer.name] = answer
        return found

    def add(self, subject: Subject, watched: Watched, index: int) -> None:
        """Take in what was summed up of one layer."""
        name = subject.layer.name
        fit, holdout = (_moments(subject, watched, index, split) for split in SPLITS)
        if fit is None:
            reached = "only rows held out" if holdout else "no rows of the calibration data"
            self._unobserved[name] = f"{reached} reached it (branch not taken, or rows masked)"
            return
        if watched.survey.recipe_of[index] in watched.unmasked:
            self._unmasked.append(name)
        self._statistics[self._keys[name]] = LayerStatistics(fit, holdout)
        self._notes[name] = layer_notes(name, fit)

    def statistics(self, mask: str | None) -> Statistics:
        """Return them; raises DataError if the mask fits no layer."""
        data = self._data
        if mask is not None:
            if self._statistics and len(self._unmasked) == len(self._statistics):
                raise DataError(
                    f"the mask '{mask}' fits the data of no layer; expected a tensor of its "
                    "leading dimensions, such as (batch, sequence)"
                )
            data += f"; mask '{mask}'"
            if self._unmasked:
                names = ", ".join(f"'{name}'" for name in self._unmasked)
                data += f" (does not fit {names}: all their positions count)"
        notes = [note for layer in self._layers for note in self._notes.get(layer.name, [])]
        unobserved = {
            layer.name: self._unobserved[layer.name]
            for layer in self._layers
            if layer.name in self._unobserved
        }
        return Statistics(self._model_sha256, data, self._statistics, unobserved, tuple(notes))


def _moments(subject: Subject, watched: Watched, index: int, split: str) -> Moments | None:
    sums = watched.sums(index, split)
    if sums is None:
        return None
    sites, chosen = len(subject.layer.sites), list(subject.sites)

    def spread(values: npt.NDArray[Any], empty: float) -> npt.NDArray[Any]:
        """Give every site of the layer its place, also those that were not observed."""
        full = np.full((sites, *values.shape[1:]), empty, values.dtype)
        full[chosen] = values
        return full

    outputs = watched.survey.outputs_of[index]
    low, high = (watched.arrays[f"outputs.{split}.{end}"][outputs] for end in ("low", "high"))
    counts = sums["counts"]
    means = sums["sums"] / np.maximum(counts, 1)[:, None, None]
    return Moments(
        spread(counts, 0),
        spread(means, 0),
        watched.mean(index, split, "products"),
        spread(sums["low"], np.nan),
        spread(sums["high"], np.nan),
        spread(low, np.nan),
        spread(high, np.nan),
    )
