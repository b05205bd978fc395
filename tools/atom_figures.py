"""Errors of sums of atoms in single layers, beside formats and low rank."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import onnxlr
from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence, View
from onnxlr.layers import Layer, find_layers, layer_keys, read_weight
from onnxlr.methods import Recipe, find_method, fit_best, options_for
from onnxlr.methods.method import Setting
from onnxlr.metrics import unfold_inputs
from onnxlr.model import open_model
from onnxlr.planning.request import Request
from onnxlr.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from onnxlr.methods import Fit
    from onnxlr.statistics import Moments
    from tools.measured_tasks import Task

    Array = npt.NDArray[Any]

__all__ = [
    "KERNELS",
    "MATRICES",
    "METHOD",
    "METRICS",
    "NEAREST",
    "Approximation",
    "AtomError",
    "layer_errors",
    "rounded_in_blocks",
]

METHOD = "sparse_quantized"

METRICS = ("frobenius", "activation")
"""What a layer is fitted in: the weight alone, and the outputs on calibration inputs."""

NEAREST = "nearest 3 bits b32"
"""Name of the row of weights rounded to 3 bits in blocks, a format that the library has not."""

_BLOCK = 32
_BITS = 3
_SCALE_BITS = 16


@dataclass(frozen=True)
class Approximation:
    """What a weight is to become."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    """Format, group size and rounding, as in `Request`."""
    metrics: tuple[str, ...] = METRICS


_CONTROL = {"atoms": 16, "tile": 16, "nonzeros": 8, "value_bits": 4, "dictionary_bits": 0}
_INT4 = {"format": "int4", "group_size": 0}

MATRICES = (
    *(Approximation(f"{METHOD} {bits:g}", METHOD, {"bits": bits}) for bits in (3.0, 3.3, 3.5)),
    Approximation("sparse int4, half zeros", METHOD, _CONTROL),
)
"""Of matrices; the last is sparse whole numbers without a dictionary, with the same feedback."""

KERNELS = (
    *(Approximation(f"{METHOD} {bits:g}", METHOD, {"bits": bits}) for bits in (3.0, 4.0)),
    Approximation("int4", "quantize", {}, {**_INT4, "rounding": "nearest"}, METRICS[:1]),
    Approximation("int4 gptq", "quantize", {}, {**_INT4, "rounding": "gptq"}, METRICS[1:]),
    *(
        Approximation(f"svd {bits:g} bits, {kept}", "svd", {"bits": bits}, {"format": kept})
        for bits in (3.0, 4.0)
        for kept in ("int8", "float32")
    ),
)
"""Of convolutions."""


@dataclass(frozen=True)
class AtomError:
    """A fit of a layer."""

    layer: str
    shape: tuple[int, ...]
    name: str
    metric: str
    """What it was fitted in; `activation` is judged on a part of the calibration inputs, too."""
    bits: float | None = None
    """Stored for each entry of the weight, scales included."""
    error: float | None = None
    """Relative, of the outputs on inputs that the fit has not seen."""
    seconds: float | None = None
    problem: str | None = None
    """Why there is no fit."""


def layer_errors(
    task: Task,
    statistics: Path,
    names: Sequence[str],
    approximations: Sequence[Approximation],
    nearest: bool = False,
) -> Iterator[AtomError]:
    """Yield fits of layers, judged on the task's held-out inputs.

    The layers' inputs are those of the original model. A bias correction counts where the fit in
    metric `activation` has taken one.

    Parameters
    ----------
    task
        The model and its inputs.
    statistics
        Of the calibration inputs.
    names
        Of layers.
    approximations
        What to make of each.
    nearest
        Whether matrices are rounded to 3 bits in blocks, too.

    Raises
    ------
    ValueError
        If the model has no such layer, or its inputs were not observed.
    """
    model = open_model(task.model)
    layers = {layer.name: layer for layer in find_layers(model)}
    keys = layer_keys(model, list(layers.values()))
    if missing := [name for name in names if name not in layers]:
        raise ValueError(f"the model has no layer {', '.join(missing)}")
    known = Statistics.load(statistics)
    unseen = onnxlr.observe(task.model, list(task.held_out), holdout=0.0, mask=task.mask)
    for name in names:
        own, other = (found.of(keys[name]) for found in (known, unseen))
        if own is None or other is None:
            raise ValueError(f"the inputs of {name} were not observed")
        fits = _Fits(layers[name], read_weight(model, layers[name]), own, other.fit)
        if nearest:
            yield fits.nearest()
        for approximation in approximations:
            for metric in approximation.metrics:
                yield fits.fitted(approximation, metric)


class _Fits:
    """Fits a layer and judges the result."""

    def __init__(self, layer: Layer, weight: Array, own: Any, unseen: Moments) -> None:
        self._layer, self._weight = layer, weight
        self._evidence = {
            METRICS[0]: Evidence(),
            METRICS[1]: Evidence(own.fit, own.holdout),
        }
        self._view = View.of(unseen, unfold_inputs(weight.astype(np.float64), layer.groups))

    def fitted(self, wanted: Approximation, metric: str) -> AtomError:
        """Return a fit as `onnxlr.rewrite` makes it, guards included."""
        row = AtomError(self._layer.name, self._weight.shape, wanted.name, metric)
        request = Request(wanted.method, options_for(wanted.method, wanted.options), **wanted.form)
        start = time.perf_counter()
        try:
            fit = self._fit(request, self._evidence[metric])
        except UsageError as error:
            return replace(row, problem=str(error))
        seconds = time.perf_counter() - start
        bits = 8 * fit.chain.cost.bytes / self._weight.size
        error = self._error(fit.chain.reconstruct(), fit.corrections)
        return replace(row, bits=bits, error=error, seconds=seconds)

    def _fit(self, request: Request, evidence: Evidence) -> Fit:
        setting = Setting.for_layer(self._layer, request.encoding, request.seed)
        recipe: Recipe = request.recipe(evidence.default_metric)
        method = find_method(request.method)
        return fit_best(method, self._weight, request.options, setting, evidence, recipe)

    def nearest(self) -> AtomError:
        """Return the weight rounded to the nearest of few numbers in blocks."""
        start = time.perf_counter()
        rounded, bits = rounded_in_blocks(self._weight)
        seconds = time.perf_counter() - start
        shape, error = self._weight.shape, self._error(rounded, None)
        return AtomError(self._layer.name, shape, NEAREST, METRICS[0], bits, error, seconds)

    def _error(self, found: Array, corrections: Array | None) -> float:
        parts = unfold_inputs(np.asarray(found, np.float64), self._layer.groups)
        return self._view.error(parts, corrections)


def rounded_in_blocks(weight: Array, bits: int = _BITS, block: int = _BLOCK) -> tuple[Array, float]:
    """Return a matrix `(inputs, outputs)` rounded in blocks of inputs, and its bits for an entry.

    Each block of an output has a float16 scale and a zero point of `bits` bits.
    """
    inputs, outputs = weight.shape
    if inputs % block:
        raise ValueError(f"{inputs} inputs are no whole blocks of {block}")
    blocks = weight.astype(np.float64).reshape(-1, block, outputs)
    least, most = (np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0))
    scale = ((most - least) / (2**bits - 1)).astype(np.float16).astype(np.float64)
    scale = np.where(scale > 0, scale, 1.0)[:, None]
    zero = np.rint(-least[:, None] / scale)
    codes = np.clip(np.rint(blocks / scale) + zero, 0, 2**bits - 1)
    rounded = ((codes - zero) * scale).reshape(inputs, outputs)
    return rounded, bits + (bits + _SCALE_BITS) / block
