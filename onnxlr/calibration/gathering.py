"""Gathers what is known of a model's layers, from wherever it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxlr.calibration.data import Batches, DataSource, check_files
from onnxlr.calibration.division import check_holdout, fitted, held_out
from onnxlr.calibration.importance import Importance, ImportanceSource, load_importance
from onnxlr.calibration.observation import RUN_SAMPLES, observe
from onnxlr.calibration.signature import InputSpec, signature
from onnxlr.errors import UsageError
from onnxlr.evidence import Knowledge
from onnxlr.layers import Layer, layer_keys
from onnxlr.model import Model
from onnxlr.progress import Progress, silent
from onnxlr.statistics import Statistics

__all__ = ["HOLDOUT", "Sources", "gather"]

_COMPARED = 8
"""Most held-out runs that models are compared on where no other data is given."""

HOLDOUT = 0.2
"""Part of the calibration data that is kept apart to judge by."""


@dataclass(frozen=True)
class Sources:
    """Where knowledge comes from.

    Attributes
    ----------
    calibration, holdout, mask
        As in `observe`; None for no calibration data.
    statistics
        Statistics made before, or their file; calibration data beside them is only run for what
        statistics cannot tell (global allocation, sequential fitting).
    importance
        As in `load_importance`.
    """

    calibration: DataSource | None = None
    holdout: float | DataSource = HOLDOUT
    mask: str | None = None
    statistics: Statistics | str | Path | None = None
    importance: ImportanceSource | None = None

    def __post_init__(self) -> None:
        for name in ("calibration", "holdout"):  # they are read more than once
            value = getattr(self, name)
            if isinstance(value, Iterator):
                object.__setattr__(self, name, list(value))

    @property
    def knows_inputs(self) -> bool:
        """Whether there is something to know the layers' inputs by."""
        return self.calibration is not None or self.statistics is not None

    def held_out(self, model: Model, most: int = _COMPARED, samples: int = RUN_SAMPLES) -> Batches:
        """Return the first held-out runs of the calibration data, to compare models on.

        Parameters
        ----------
        most
            Runs.
        samples
            Most samples of a run.
        """
        return held_out(*self._divided(model), samples, most)

    def fitted(self, model: Model, most: int = _COMPARED) -> Batches:
        """Return the first runs of the calibration data that are not held out."""
        return fitted(*self._divided(model), RUN_SAMPLES, most)

    def _divided(self, model: Model) -> tuple[DataSource, float | DataSource, list[InputSpec]]:
        if self.calibration is None:
            raise ValueError("there is no calibration data")
        return self.calibration, self.holdout, signature(model)

    def check(self) -> None:
        """Refuse sources that contradict each other, or mean nothing; raises UsageError."""
        check_holdout(self.holdout)
        if self.calibration is not None:
            return
        if self.mask is not None:
            raise UsageError(f"mask '{self.mask}' is for calibration data, and there is none")
        if self.holdout != HOLDOUT:
            raise UsageError(f"holdout {self.holdout} is of calibration data, and there is none")

    def check_files(self, model: Model) -> None:
        """Refuse, before any work, data of which the first does not fit; raises DataError."""
        for source in (self.calibration, self.holdout):
            if not isinstance(source, int | float):
                check_files(source, signature(model))


def gather(
    model: Model,
    layers: Sequence[Layer],
    sources: Sources,
    isolate: bool = True,
    progress: Progress = silent,
    meant: Sequence[Layer] | None = None,
) -> Knowledge:
    """Return what is known of a model's layers; of those that are meant, if some are.

    Raises
    ------
    UsageError, DataError
        If sources contradict each other, cannot be read, or are of another model.
    ModelError
        If the model cannot be run, or a weight not be read.
    """
    sources.check()
    meant = layers if meant is None else meant
    # Of all layers, whichever are meant: keys tell those of equal weight apart by their order.
    keys = layer_keys(model, layers, meant) if sources.knows_inputs else {}
    statistics = None
    if sources.statistics is not None:
        given = sources.statistics
        statistics = given if isinstance(given, Statistics) else Statistics.load(given)
        statistics.check(model.name, keys)
    elif sources.calibration is not None:
        statistics = observe(
            model,
            meant,
            sources.calibration,
            holdout=sources.holdout,
            mask=sources.mask,
            isolate=isolate,
            progress=progress,
            keys=keys,
        )
    importance = Importance()
    if sources.importance is not None:
        importance = load_importance(sources.importance, layers)
    return Knowledge(statistics, keys, importance.entries, importance.gradients, importance.inputs)
