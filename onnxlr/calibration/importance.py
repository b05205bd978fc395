"""Importance of weights' entries, from a file or arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.calibration.data import read_arrays_of
from onnxlr.errors import DataError
from onnxlr.layers import Layer
from onnxlr.statistics import check_covariance

__all__ = ["Importance", "ImportanceSource", "load_importance"]

ImportanceSource = str | Path | Mapping[str, Any]
"""A `.npz` file, or arrays by name."""

_GRADIENTS = "/output_covariance"
"""End of the name under which the covariance of a weight's output gradients is."""

_INPUTS = "/input_covariance"
"""End of the name under which the covariance of a weight's inputs is."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Importance:
    """By the layer's name.

    Attributes
    ----------
    entries
        Importance of each entry, in the canonical shape of the layer's weight.
    gradients
        `E[g gᵀ]` of the gradients at the layer's output, `(outputs, outputs)`.
    inputs
        `E[x xᵀ]` of the layer's inputs, `(groups, inputs, inputs)`, one group for matrices.
    """

    entries: Mapping[str, Array] = field(default_factory=dict)
    gradients: Mapping[str, Array] = field(default_factory=dict)
    inputs: Mapping[str, Array] = field(default_factory=dict)


def load_importance(source: ImportanceSource, layers: Sequence[Layer]) -> Importance:
    """Return the importance of layers' weights.

    Parameters
    ----------
    source
        An array under the name of each weight (of all that have that name, in different
        branches), in the shape it is stored in; and under
        `<name>/output_covariance` the covariance of the gradients at the output, under
        `<name>/input_covariance` that of the inputs (of each group, for a convolution of several).
        Weights that are not named have no importance.

    Raises
    ------
    DataError
        If a name is no weight's, or a shape is another, or entries are negative or not finite.
    """
    label = str(source) if isinstance(source, str | Path) else "the importance"
    arrays = source if isinstance(source, Mapping) else read_arrays_of(Path(source))
    by_weight: dict[str, list[Layer]] = {}  # branches may call different weights alike
    for layer in layers:
        if layer.weight is not None and layer.sites:
            by_weight.setdefault(layer.weight.name, []).append(layer)
    entries, gradients, inputs = {}, {}, {}
    for name, value in arrays.items():
        owner = name.removesuffix(_GRADIENTS).removesuffix(_INPUTS)
        if owner not in by_weight:
            raise DataError(f"{label}: '{owner}' is no weight of a layer{_hint(owner, by_weight)}")
        where = f"{label}: '{name}'"
        for layer in by_weight[owner]:
            if name == owner + _GRADIENTS:
                gradients[layer.name] = _gradients(np.asarray(value), layer, where)
            elif name == owner + _INPUTS:
                inputs[layer.name] = _inputs(np.asarray(value), layer, where)
            else:
                entries[layer.name] = _entries(np.asarray(value), layer, where)
    if not arrays:
        raise DataError(f"{label}: holds no arrays")
    return Importance(entries, gradients, inputs)


def _hint(name: str, known: Mapping[str, Sequence[Layer]]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else " (onnxlr inspect --json lists them)"


def _entries(values: Array, layer: Layer, where: str) -> Array:
    if layer.weight is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    expected = tuple(layer.weight.tensor.dims)
    if values.shape != expected:
        raise DataError(
            f"{where} has shape {list(values.shape)}, expected {list(expected)}, as the weight has"
        )
    _check(values, where)
    if (values < 0).any():
        raise DataError(
            f"{where} has {int((values < 0).sum()):,} negative entries; importance is a mean of "
            "squares, none can be negative"
        )
    if not values.any():
        raise DataError(f"{where} is zero everywhere: nothing would count")
    site = layer.sites[0]
    moved = values.astype(np.float64).reshape(-1)[site.operand.positions()]
    return site.canonical(moved)


def _gradients(values: Array, layer: Layer, where: str) -> Array:
    if layer.shape is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    outputs = layer.shape[0] if layer.groups is not None else layer.shape[-1]
    if values.shape != (outputs, outputs):
        raise DataError(
            f"{where} has shape {list(values.shape)}, expected [{outputs}, {outputs}]: the "
            "covariance of the layer's outputs"
        )
    return _covariance(values, where)


def _inputs(values: Array, layer: Layer, where: str) -> Array:
    if layer.shape is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    inputs = layer.shape[-2] if layer.groups is None else prod(layer.shape[1:])
    groups = layer.groups or 1
    shapes = [(groups, inputs, inputs), *([(inputs, inputs)] if groups == 1 else [])]
    if values.shape not in shapes:
        raise DataError(
            f"{where} has shape {list(values.shape)}, expected {list(shapes[-1])}: the covariance "
            f"of the layer's inputs{' in each group' if groups > 1 else ''}"
        )
    return _covariance(values, where).reshape(shapes[0])


def _covariance(values: Array, where: str) -> Array:
    _check(values, where)
    try:
        check_covariance(values)
    except ValueError as error:
        raise DataError(f"{where} is none: {error}") from None
    return values.astype(np.float64)


def _check(values: Array, where: str) -> None:
    if values.dtype.kind not in "fiu":
        raise DataError(f"{where} has dtype {values.dtype}, expected numbers")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise DataError(f"{where} has {bad:,} entries that are NaN or infinite")
