"""Errors and times of ternary approximations of single matrices."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import onnxlr
from onnxlr.evidence import Evidence, View
from onnxlr.layers import Layer, find_layers, layer_keys, read_weight
from onnxlr.methods import find_method, fit_best, options_for
from onnxlr.methods.method import Setting
from onnxlr.model import open_model
from onnxlr.planning.request import Request
from onnxlr.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from onnxlr.stages import Chain
    from onnxlr.statistics import Moments
    from tools.measured_files import Bench

__all__ = [
    "APPROXIMATIONS",
    "LAYERS",
    "REFERENCE",
    "FitTime",
    "GaussianError",
    "LayerError",
    "gaussian_errors",
    "layer_errors",
    "time_fit",
]

FITS = ("alternating", "published")

REFERENCE: dict[str, dict[float, float]] = {
    "alternating": {1: 0.511, 2: 0.254, 3: 0.126, 4: 0.0625},
    "published": {1: 0.684, 2: 0.476, 3: 0.337, 4: 0.238},
}
"""Relative errors of 384² and 768² Gaussian matrices to compare with, by fit and trits a weight."""

LAYERS = (
    "encoder.layer.2.attention.self.query",
    "encoder.layer.2.intermediate.dense",
    "encoder.layer.2.output.dense",
)
"""A square matrix, one to more outputs, and one from more inputs, in the middle of MiniLM."""


@dataclass(frozen=True)
class GaussianError:
    """A fit of a matrix of independent normal entries, which no structure helps."""

    size: int
    fit: str
    trits: float
    """For each entry, as asked."""
    error: float
    """Relative, Frobenius."""
    seconds: float


@dataclass(frozen=True)
class LayerError:
    """A fit of a layer of the model on calibration text."""

    layer: str
    shape: tuple[int, ...]
    name: str
    bits: float
    """Stored for each entry, scales included."""
    error: float
    """Relative, of the outputs on text that the fit has not seen."""
    seconds: float


@dataclass(frozen=True)
class FitTime:
    """Wall-clock time of fits beside `numpy.linalg.svd` of the same matrix."""

    size: int
    trits: float
    error: float
    fit: list[float]
    """Seconds of each."""
    svd: list[float]
    """Seconds of each: one before the first fit, and one after every fit."""
    threads: str

    @property
    def ratios(self) -> list[float]:
        """Each fit's time over the mean of the decompositions on either side of it."""
        around = zip(self.svd, self.svd[1:], strict=False)
        return [own / ((a + b) / 2) for own, (a, b) in zip(self.fit, around, strict=True)]


def gaussian_errors(
    sizes: Sequence[int], trits: Sequence[float], fits: Sequence[str] = FITS
) -> Iterator[GaussianError]:
    """Yield fits of square Gaussian matrices.

    Parameters
    ----------
    sizes, trits, fits
        Every combination is fitted.
    """
    for size in sizes:
        weight = _gaussian(size)
        for fit in fits:
            for ratio in trits:
                seconds, chain = _timed(_decompose(weight, ratio, fit))
                yield GaussianError(size, fit, ratio, _relative(weight, chain), seconds)


def time_fit(size: int, trits: float, rounds: int) -> FitTime:
    """Time fits of a square Gaussian float32 matrix between decompositions of it.

    Parameters
    ----------
    size, trits
        Of the matrix, and for each of its entries.
    rounds
        Number of fits.
    """
    weight = _gaussian(size)
    fits: list[float] = []
    svds = [_timed(lambda: np.linalg.svd(weight))[0]]
    for _ in range(rounds):
        seconds, chain = _timed(_decompose(weight, trits, "alternating"))
        fits.append(seconds)
        svds.append(_timed(lambda: np.linalg.svd(weight))[0])
    return FitTime(size, trits, _relative(weight, chain), fits, svds, _threads())


@dataclass(frozen=True)
class Approximation:
    """What a layer's weight is to become."""

    name: str
    method: str
    options: dict[str, Any]
    form: dict[str, Any]
    """Format, group size and rounding, as in `Request`."""


APPROXIMATIONS = (
    *(Approximation(f"ternary_svd {r}", "ternary_svd", {"ratio": float(r)}, {}) for r in (2, 3, 4)),
    *(Approximation(f"ternary ×{t}", "ternary", {"terms": t}, {}) for t in (1, 2, 3)),
    Approximation(
        "int4 b32 gptq",
        "quantize",
        {},
        {"format": "int4", "group_size": 32, "rounding": "gptq"},
    ),
)


def layer_errors(
    bench: Bench,
    names: Sequence[str] = LAYERS,
    approximations: Sequence[Approximation] = APPROXIMATIONS,
) -> Iterator[LayerError]:
    """Yield fits of layers, judged on the task's held-out inputs.

    The layers' inputs are those of the original model. A bias correction counts where the fit has
    taken one; data is not rounded.

    Parameters
    ----------
    bench
        With statistics observed.
    names
        Of layers.
    approximations
        What to make of each.
    """
    model = open_model(bench.task.model)
    layers = find_layers(model)
    keys = layer_keys(model, layers)
    task, known = bench.task, Statistics.load(bench.statistics)
    unseen = onnxlr.observe(task.model, list(task.held_out), holdout=0.0, mask=task.mask)
    for layer in layers:
        if layer.name not in names:
            continue
        own, other = (found.of(keys[layer.name]) for found in (known, unseen))
        if own is None or other is None:
            raise ValueError(f"the inputs of {layer.name} were not observed")
        evidence, weight = Evidence(own.fit, own.holdout), read_weight(model, layer)
        for approximation in approximations:
            yield _fit_layer(layer, weight, approximation, evidence, other.fit)


def _fit_layer(
    layer: Layer,
    weight: npt.NDArray[Any],
    wanted: Approximation,
    evidence: Evidence,
    unseen: Moments,
) -> LayerError:
    method = find_method(wanted.method)
    options = options_for(wanted.method, wanted.options)
    request = Request(wanted.method, options, **wanted.form)
    setting = Setting.for_layer(layer, request.encoding, request.seed)
    recipe = request.recipe(evidence.default_metric)
    seconds, fit = _timed(lambda: fit_best(method, weight, options, setting, evidence, recipe))
    view = View.of(unseen, weight.astype(np.float64)[None])
    error = view.error(fit.chain.reconstruct()[None], fit.corrections)
    bits = 8 * fit.chain.cost.bytes / weight.size
    return LayerError(layer.name, weight.shape, wanted.name, bits, error, seconds)


def _gaussian(size: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(size).standard_normal((size, size), dtype=np.float32)


def _decompose(weight: npt.NDArray[np.float32], ratio: float, fit: str) -> Callable[[], Chain]:
    return lambda: onnxlr.decompose(weight, "ternary_svd", ratio=float(ratio), fit=fit)


def _relative(weight: npt.NDArray[np.float32], chain: Chain) -> float:
    return float(np.linalg.norm(weight - chain.reconstruct()) / np.linalg.norm(weight))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _threads() -> str:
    """Say how many threads numpy's products may have."""
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    asked = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
    return f"{asked or processors} of {processors} processors"
