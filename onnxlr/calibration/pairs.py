"""Observing the same layers in a model and in its rewritten form, for fitting in sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxlr.calibration.data import DataSource
from onnxlr.calibration.division import check_holdout, divide
from onnxlr.calibration.observation import MEMORY, RUN_SAMPLES, Observation, Watched
from onnxlr.calibration.signature import signature
from onnxlr.calibration.survey import Subject, observable
from onnxlr.calibration.watching import SPLITS
from onnxlr.errors import UsageError
from onnxlr.layers import Layer
from onnxlr.model import Model
from onnxlr.progress import Progress, silent
from onnxlr.scratch import scratch
from onnxlr.statistics import PairMoments

__all__ = ["observe_pairs"]


def observe_pairs(
    model: Model,
    original_file: Path,
    rewritten_file: Path,
    layers: Sequence[Layer],
    data: DataSource,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    holdout: float | DataSource = 0.2,
    mask: str | None = None,
    isolate: bool = True,
    memory: int = MEMORY,
    batch: int = RUN_SAMPLES,
    progress: Progress = silent,
) -> dict[str, tuple[PairMoments, PairMoments | None]]:
    """Run a model and its rewritten form side by side and compare the inputs of layers.

    Parameters
    ----------
    model
        The opened original.
    original_file, rewritten_file
        The files to run. The rewritten model has the original's subgraphs.
    layers
        Layers of the original; those that cannot be observed are left out of the result.
    names
        By layer, the names of its sites' data in the rewritten model; as in the original for
        layers that are not there.

    Other parameters are those of `observe`.

    Returns
    -------
    dict
        By the layer's name, moments of the rows to fit to, and of those held out (None for none).

    Raises
    ------
    DataError
        If the data does not fit, or makes an activation NaN or infinite.
    UsageError
        If the holdout is no fraction, or `names` has another number of names than a layer sites.
    RuntimeFailureError
        If one of the models cannot be run.
    """
    check_holdout(holdout)
    subjects = _subjects(model, layers, names or {})
    found: dict[str, tuple[PairMoments, PairMoments | None]] = {}
    with scratch("onnxlr-observe-") as folder:
        division = divide(folder, data, holdout, signature(model), batch)
        files = [original_file, rewritten_file]
        work = Observation(model, files, division, mask, isolate, memory)
        for watched in work.watch(folder, subjects, progress):
            for index, subject in enumerate(watched.survey.subjects):
                fit, held = (_moments(watched, index, split) for split in SPLITS)
                if fit is not None:
                    found[subject.layer.name] = fit, held
    return found


def _subjects(
    model: Model, layers: Sequence[Layer], names: Mapping[str, Sequence[str]]
) -> list[Subject]:
    subjects = []
    for layer in layers:
        own = names.get(layer.name, [site.data for site in layer.sites])
        if len(own) != len(layer.sites):
            raise UsageError(
                f"layer '{layer.name}' has {len(layer.sites)} sites, but {len(own)} names of their "
                "data in the rewritten model were given"
            )
        answer = None if layer.skip else observable(model.proto, layer, own)
        if isinstance(answer, Subject):
            subjects.append(answer)
    return subjects


def _moments(watched: Watched, index: int, split: str) -> PairMoments | None:
    sums = watched.sums(index, split)
    if sums is None:
        return None
    count = int(sums["counts"].sum())
    return PairMoments(
        count,
        watched.mean(index, split, "products"),
        watched.mean(index, split, "cross"),
        watched.mean(index, split, "target"),
        sums["sums"].sum(axis=0) / count,
        sums["original_sums"].sum(axis=0) / count,
    )
