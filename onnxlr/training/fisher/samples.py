"""Samples one by one: what a gradient is taken of before it is squared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration import DataSource, InputSpec, label_of, load_feeds
from onnxlr.errors import UsageError

__all__ = ["Samples", "read_samples"]

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Samples:
    """Runs of one sample each, as far as the data can be cut.

    Attributes
    ----------
    runs
        Arrays by name: the model's inputs, and what lies beside them.
    uncut
        Runs that may hold several samples: the first dimensions of their inputs differ, so that
        they were not cut, or the model asks for so many at once. Each counts as one sample.
    description
        Where they come from and how many they are.
    """

    runs: tuple[Arrays, ...]
    uncut: int
    description: str


def read_samples(
    source: DataSource, specs: Sequence[InputSpec], most: int | None = None
) -> Samples:
    """Read data and cut it into samples, as `load_feeds` cuts runs.

    Parameters
    ----------
    source
        As `load_feeds` takes it; arrays that the model has no input for are kept for the loss.
    specs
        The model's inputs.
    most
        Samples to read; all if not given.

    Raises
    ------
    DataError
        If the data cannot be read, is empty, or does not fit.
    UsageError
        If not even one sample is asked for.
    """
    if most is not None and most < 1:
        raise UsageError(f"{most} samples were asked for, expected at least 1")
    runs = tuple(islice(load_feeds(source, specs, batch=1, beside=True), most))
    uncut = sum(_may_be_several(run, specs) for run in runs)
    count = f"{len(runs)} sample{'s' if len(runs) != 1 else ''}"
    return Samples(runs, uncut, f"{label_of(source)}: {count}")


def _may_be_several(run: Arrays, specs: Sequence[InputSpec]) -> bool:
    """Return whether an open first dimension, or the first one of all inputs, is more than 1."""
    sizes = {spec.name: np.shape(run[spec.name])[:1] for spec in specs}
    open_sizes = {sizes[s.name] for s in specs if not s.dims or not isinstance(s.dims[0], int)}
    shared = set(sizes.values()) if len(set(sizes.values())) == 1 else set()
    return any(size > (1,) for size in open_sizes | shared)
