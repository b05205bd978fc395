"""Errors of tensor decompositions of convolutions on photographs, beside those of svd."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

import onnxlr
from onnxlr.errors import OnnxlrError
from onnxlr.evidence import View
from onnxlr.layers import Layer, find_layers, layer_keys, read_weight
from onnxlr.methods import METHODS
from onnxlr.metrics import unfold_inputs
from onnxlr.model import open_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = [
    "KERNELS",
    "MATRICES",
    "METRICS",
    "Approximation",
    "LayerError",
    "choose",
    "chosen_layers",
    "layer_errors",
    "present",
]

METRICS = ("frobenius", "activation")


@dataclass(frozen=True)
class Approximation:
    """What a weight is to become."""

    name: str
    method: str
    options: Mapping[str, Any]


KERNELS = (
    Approximation("svd spatial", "svd", {"form": "spatial"}),
    Approximation("svd channel", "svd", {"form": "channel"}),
    Approximation("cp joint", "cp", {"form": "joint"}),
    Approximation("cp separable", "cp", {"form": "separable"}),
    Approximation("tucker channels", "tucker", {"form": "channels"}),
    Approximation("tucker full", "tucker", {"form": "full"}),
    Approximation("tensor_train", "tensor_train", {}),
    Approximation("tensor_ring", "tensor_ring", {}),
    Approximation("semi_tucker t=2", "semi_tucker", {"t": 2}),
    Approximation("semi_tensor_train t=2", "semi_tensor_train", {"t": 2}),
    Approximation("semi_tensor_ring t=2", "semi_tensor_ring", {"t": 2}),
    Approximation("kronecker", "kronecker", {}),
)
"""Of convolutions."""

MATRICES = (
    Approximation("svd", "svd", {}),
    *(Approximation(name, name, {}) for name in ("cp", "tucker", "tensor_train", "tensor_ring")),
    Approximation("semi_tucker t=2", "semi_tucker", {"t": 2}),
    Approximation("semi_tensor_train t=2", "semi_tensor_train", {"t": 2}),
    Approximation("semi_tensor_ring t=2", "semi_tensor_ring", {"t": 2}),
    Approximation("kronecker", "kronecker", {}),
)
"""Of matrices, whose sides are split into modes of nearly equal sizes."""


def choose(known: Iterable[Approximation], patterns: Sequence[str]) -> list[Approximation]:
    """Return those whose names match one of the patterns; all if there are no patterns."""
    return [
        each
        for each in known
        if not patterns or any(fnmatchcase(each.name, pattern) for pattern in patterns)
    ]


def present(wanted: Iterable[Approximation]) -> list[Approximation]:
    """Return those whose method is there."""
    return [each for each in wanted if each.method in METHODS]


@dataclass(frozen=True)
class LayerError:
    """A fit of a layer on calibration photographs."""

    layer: str
    shape: tuple[int, ...]
    name: str
    metric: str
    """What it was fitted in; `frobenius` knows nothing of the data."""
    ratio: float | None = None
    """Stored numbers for each entry of the weight."""
    error: float | None = None
    """Relative, of the outputs on photographs that the fit has not seen."""
    weight_error: float | None = None
    """Relative, of the weight."""
    seconds: float | None = None
    problem: str | None = None
    """Why there is no fit."""


def layer_errors(
    model: Path,
    calibration: Sequence[Mapping[str, Array]],
    held_out: Sequence[Mapping[str, Array]],
    names: Sequence[str],
    approximations: Sequence[Approximation] = KERNELS,
    ratio: float = 0.5,
) -> Iterator[LayerError]:
    """Yield fits of convolutions, each in all of `METRICS`.

    Their inputs are those of the original model; there are no bias corrections.

    Parameters
    ----------
    model
        The file.
    calibration, held_out
        Inputs to fit to, and others to judge by.
    names
        Of layers.
    approximations
        What to make of each.
    ratio
        Of stored numbers to entries of the weight, at most.

    Raises
    ------
    ValueError
        If the model has no such layer, or its inputs were not seen.
    """
    opened = open_model(model)
    layers = find_layers(opened)
    keys = layer_keys(opened, layers)
    own, other = (onnxlr.observe(model, list(d), holdout=0.0) for d in (calibration, held_out))
    for layer in chosen_layers(layers, names):
        seen, unseen = (found.of(keys[layer.name]) for found in (own, other))
        if seen is None or unseen is None:
            raise ValueError(f"the inputs of {layer.name} were not observed")
        weight = read_weight(opened, layer)
        view = View.of(unseen.fit, unfold_inputs(weight, layer.groups))
        for wanted in approximations:
            for metric in METRICS:
                covariance = seen.fit.covariance if metric == "activation" else None
                yield _fitted(layer, weight, wanted, ratio, covariance, view)


def chosen_layers(layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
    """Return layers by their names, in that order.

    Raises
    ------
    ValueError
        If there is none of a name.
    """
    by_name = {layer.name: layer for layer in layers}
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(f"the model has no layer {', '.join(missing)}")
    return [by_name[name] for name in names]


def _fitted(
    layer: Layer,
    weight: Array,
    wanted: Approximation,
    ratio: float,
    covariance: Array | None,
    view: View,
) -> LayerError:
    metric = METRICS[0] if covariance is None else METRICS[1]
    start = time.perf_counter()
    try:
        chain = onnxlr.decompose(
            weight,
            wanted.method,
            covariance=covariance,
            groups=layer.groups,
            ratio=ratio,
            **wanted.options,
        )
    except OnnxlrError as error:
        return LayerError(layer.name, weight.shape, wanted.name, metric, problem=str(error))
    seconds = time.perf_counter() - start
    found = chain.reconstruct()
    return LayerError(
        layer.name,
        weight.shape,
        wanted.name,
        metric,
        chain.cost.parameters / weight.size,
        view.error(unfold_inputs(found, layer.groups)),
        float(np.linalg.norm(found - weight) / np.linalg.norm(weight)),
        seconds,
    )
