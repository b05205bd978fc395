"""Types of flags whose values are known: what is none is refused, and shells complete the rest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from onnxlr.lowering import ACTIVATIONS
from onnxlr.lowering.targets import TARGETS
from onnxlr.methods import METHODS
from onnxlr.metrics import METRICS, SOLVERS
from onnxlr.numbers import FORMATS, GROUP_SIZES, ROUNDINGS
from onnxlr.planning.asking import AUTO
from onnxlr.planning.auto.goal import AIMS, MEASURES
from onnxlr.planning.request import ALLOCATIONS

__all__ = [
    "Activations",
    "Allocation",
    "AnyMethod",
    "DataName",
    "Device",
    "FormatName",
    "GoalName",
    "GroupSize",
    "Loss",
    "Measure",
    "MetricName",
    "RoundingName",
    "SolverName",
    "TargetName",
    "one_of",
]

DataName: TypeAlias = str | Path
"""A file, a folder, or `module:function`: shells complete the first two."""


def one_of(known: Iterable[Any]) -> Any:
    """Return the type of a few values; where others do as well, it is `one_of(…) | str`."""
    return Literal[tuple(dict.fromkeys(known))]


if TYPE_CHECKING:  # which knows no types that are made of values
    Activations: TypeAlias = str
    Allocation: TypeAlias = str
    AnyMethod: TypeAlias = str
    Device: TypeAlias = str
    FormatName: TypeAlias = str
    GoalName: TypeAlias = str
    GroupSize: TypeAlias = int
    Loss: TypeAlias = str
    Measure: TypeAlias = str
    MetricName: TypeAlias = str
    RoundingName: TypeAlias = str
    SolverName: TypeAlias = str
    TargetName: TypeAlias = str
else:
    Activations = one_of(ACTIVATIONS)
    Allocation = one_of(ALLOCATIONS)
    AnyMethod = one_of((AUTO, *METHODS))
    Device = one_of(("cpu", "cuda")) | str
    FormatName = one_of(FORMATS)
    GoalName = one_of(AIMS)
    GroupSize = one_of(GROUP_SIZES)
    Loss = one_of(("distill",)) | str
    Measure = one_of(MEASURES) | str
    MetricName = one_of(METRICS)
    RoundingName = one_of(ROUNDINGS)
    SolverName = one_of(SOLVERS)
    TargetName = one_of(TARGETS)
