"""What is known about one layer beside its weight, as metrics and as a judge of approximations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import DataError, UsageError, check_known
from onnxlr.layers import Layer
from onnxlr.metrics import (
    METRICS,
    SHRINKAGE,
    Activation,
    Fisher,
    FisherRows,
    Frobenius,
    Kfac,
    Metric,
    unfold_inputs,
)
from onnxlr.model.claims import shape_text
from onnxlr.statistics import Moments, PairMoments, Statistics

__all__ = ["UNKNOWN", "Evidence", "Knowledge", "View"]

Matrix = npt.NDArray[np.float64]

_DAMPING = 0.02
"""Part of the mean diagonal that a covariance is damped by before it is inverted."""


@dataclass(frozen=True)
class View:
    """What some inputs say of a layer, and of any approximation of its weight.

    The layer is to give `x W` although it is fed `x̂`, which is `x` unless layers before it were
    rewritten. Everything is kept as moments, so that no inputs are.

    Attributes
    ----------
    covariance
        `E[x̂ x̂ᵀ]`, `(groups, inputs, inputs)`.
    seen
        `E[x̂ xᵀ] W`, `(parts, inputs, outputs)` with parts as `unfold_inputs` makes them.
    total
        `E‖x W‖²`.
    means
        `E[x̂]` at each site, `(sites, groups, inputs)`.
    targets
        `E[x] W` at each site, `(sites, parts, outputs)`.
    shares
        Part of the rows that each site saw, `(sites,)`.
    weight
        `W` itself, `(parts, inputs, outputs)`.
    count
        Rows seen.
    """

    covariance: Matrix
    seen: Matrix
    total: float
    means: Matrix
    targets: Matrix
    shares: Matrix
    weight: Matrix
    count: int

    @classmethod
    def of(cls, moments: Moments, parts: Matrix) -> View:
        """Return what moments of the inputs say of a weight `(parts, inputs, outputs)`."""
        seen = moments.covariance @ parts
        return cls(
            moments.covariance,
            seen,
            float(np.sum(seen * parts)),
            moments.means,
            np.einsum(
                "sgi,gio->sgo", np.broadcast_to(moments.means, _sites(moments, parts)), parts
            ),
            moments.counts / max(moments.count, 1),
            parts,
            moments.count,
        )

    @classmethod
    def of_pairs(cls, pairs: PairMoments, parts: Matrix) -> View:
        """Return what moments of original inputs and of those behind rewritten layers say."""
        return cls(
            pairs.covariance,
            pairs.cross @ parts,
            float(np.sum((pairs.target @ parts) * parts)),
            pairs.mean[None],
            np.einsum("gi,gio->go", pairs.original_mean, parts)[None],
            np.ones(1),
            parts,
            pairs.count,
        )

    def corrections(self, parts: Matrix) -> Matrix:
        """Return the bias `E[x] W − E[x̂] Ŵ` that each site lacks, `(sites, outputs)`."""
        found = np.einsum("sgi,gio->sgo", self.means, parts)
        return np.asarray((self.targets - found).reshape(len(self.means), -1))

    def error(self, parts: Matrix, corrections: Matrix | None = None) -> float:
        """Return the relative error of the outputs of an approximation `(parts, inputs, outputs)`.

        `√(E‖x̂ Ŵ + b − x W‖² / E‖x W‖²)`, with a bias `b` for each site if given.
        """
        squared = self.total + np.sum((self.covariance @ parts - 2 * self.seen) * parts)
        if corrections is not None:
            lacking = self.corrections(parts)
            terms = np.sum(corrections * (corrections - 2 * lacking), axis=1)
            squared += float(self.shares @ terms)
        return float(np.sqrt(max(float(squared), 0.0) / self.total)) if self.total > 0 else 0.0

    def doubt(
        self, one: Matrix, other: Matrix, corrections: tuple[Matrix | None, Matrix | None]
    ) -> float:
        """Return the standard error of the difference of two approximations' squared errors.

        Relative to `E‖x W‖²`. The difference is `xᵀ M x` with `M = D₁ D₁ᵀ − D₂ D₂ᵀ` and `D = Ŵ − W`
        (a bias is one more row of D, for an input of 1); for Gaussian inputs its variance is
        `2 tr((M C)²) − 2 (μᵀ M μ)²`. Rows are taken to be independent.
        """
        if not self.total > 0:
            return 0.0
        mean = np.tensordot(self.shares, self.means, 1)
        first, second = (
            _with_bias(parts - self.weight, bias)
            for parts, bias in zip((one, other), corrections, strict=True)
        )
        covariance = _with_one(self.covariance, mean)
        seen, seen_other = covariance @ first, covariance @ second
        cross = (first.swapaxes(1, 2) @ seen, second.swapaxes(1, 2) @ seen_other)
        mixed = first.swapaxes(1, 2) @ seen_other
        total = np.sum(np.square(cross[0])) + np.sum(np.square(cross[1]))
        total -= 2 * np.sum(np.square(mixed))
        middle = np.concatenate([mean, np.ones((len(mean), 1))], axis=1)
        lengths = [
            np.square(np.einsum("gi,gio->go", np.broadcast_to(middle, d.shape[:2]), d)).sum(axis=1)
            for d in (first, second)
        ]
        total -= np.sum(np.square(lengths[0] - lengths[1]))
        return float(np.sqrt(max(2 * float(total) / max(self.count, 1), 0.0)) / self.total)

    def target(self, parts: Matrix) -> Matrix:
        """Return the weight that gives the original outputs best on the inputs there now are.

        `Ĉ⁻¹ E[x̂ xᵀ] W`, damped towards `W` itself.
        """
        size = self.covariance.shape[-1]
        scale = np.trace(self.covariance, axis1=1, axis2=2)[:, None, None] / size
        damping = _DAMPING * np.maximum(scale, np.finfo(np.float64).tiny)
        left = self.covariance + damping * np.eye(size)
        return np.asarray(np.linalg.solve(left, self.seen + damping * parts))


def _with_bias(difference: Matrix, bias: Matrix | None) -> Matrix:
    """Return `(parts, inputs + 1, outputs)`: a bias, the mean over sites, is one more row."""
    row = np.zeros((difference.shape[0], 1, difference.shape[2]))
    if bias is not None:
        row = bias.mean(axis=0).reshape(row.shape)
    return np.concatenate([difference, row], axis=1)


def _with_one(covariance: Matrix, mean: Matrix) -> Matrix:
    """Return the covariance of the inputs and of one more that is always 1."""
    above = np.concatenate([covariance, mean[:, :, None]], axis=2)
    below = np.concatenate([mean, np.ones((len(mean), 1))], axis=1)[:, None, :]
    return np.concatenate([above, below], axis=1)


def _sites(moments: Moments, parts: Matrix) -> tuple[int, int, int]:
    return (len(moments.means), len(parts), parts.shape[1])


@dataclass(frozen=True)
class Evidence:
    """What is known about one layer.

    Attributes
    ----------
    fit, holdout
        Moments of inputs to fit to, and of others to judge by; None where there are none.
    importance
        Importance of each entry, in the weight's shape; None if not known.
    output_covariance
        `E[g gᵀ]` of the output's gradients, `(outputs, outputs)`; None if not known.
    input_covariance
        `E[x xᵀ]` that came with that of the gradients, `(groups, inputs, inputs)`: what metric
        kfac takes where there are no moments; None if not known.
    """

    fit: Moments | PairMoments | None = None
    holdout: Moments | PairMoments | None = None
    importance: npt.NDArray[Any] | None = None
    output_covariance: npt.NDArray[Any] | None = None
    input_covariance: npt.NDArray[Any] | None = None
    _metrics: dict[tuple[object, ...], Metric] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def is_sequential(self) -> bool:
        """Whether the inputs are those behind layers that were rewritten."""
        return isinstance(self.fit, PairMoments)

    @property
    def default_metric(self) -> str:
        """`activation` where the inputs are known."""
        return "frobenius" if self.fit is None else "activation"

    def oracle_shrinkage(self) -> float:
        """Return how far to shrink the covariance as its number of rows says.

        Oracle approximating shrinkage (Chen et al., IEEE Transactions on Signal Processing 2010),
        the largest over the groups.
        """
        if self.fit is None:
            return 0.0
        size, count = self.fit.covariance.shape[-1], self.fit.count
        squares = np.square(self.fit.covariance).sum(axis=(1, 2))
        traces = np.square(np.trace(self.fit.covariance, axis1=1, axis2=2))
        above = (1 - 2 / size) * squares + traces
        below = (count + 1 - 2 / size) * (squares - traces / size)
        return float(np.where(below > 0, np.minimum(above / np.maximum(below, 1e-300), 1), 1).max())

    def metric(
        self,
        name: str,
        centred: bool = False,
        solver: str | None = None,
        shrinkage: float | None = None,
    ) -> Metric:
        """Return a metric of this layer.

        Parameters
        ----------
        name
            One of `METRICS`.
        centred
            Whether the mean of the inputs does not count, as a bias correction makes up for it.
        solver
            Of metric `fisher`.
        shrinkage
            Of metric `activation`; `SHRINKAGE` if not given.

        Raises
        ------
        UsageError
            If what the metric needs is not known of this layer.
        """
        check_known("metric", name, METRICS)
        if solver is not None and name != "fisher":
            raise UsageError(f"solver '{solver}' is for metric fisher, not {name}")
        if name == "frobenius":
            return Frobenius()
        if name in ("fisher-rows", "fisher"):
            if self.importance is None:
                raise UsageError(f"metric {name} needs the importance of its entries")
            rows = name == "fisher-rows"
            return FisherRows(self.importance) if rows else Fisher(self.importance, solver or "als")
        key = (name, centred, shrinkage)
        if key not in self._metrics:
            self._metrics[key] = self._by_inputs(name, centred, shrinkage)
        return self._metrics[key]

    def _by_inputs(self, name: str, centred: bool, shrinkage: float | None) -> Metric:
        """Return a metric that knows the inputs; raises UsageError where they are not known."""
        covariance = self.input_covariance if name == "kfac" else None
        if self.fit is not None:
            covariance = self.fit.centred if centred else self.fit.covariance
        if covariance is None:
            raise UsageError(f"metric {name} needs statistics of its inputs")
        if name == "activation":
            return Activation(covariance, SHRINKAGE if shrinkage is None else shrinkage)
        if self.output_covariance is None:
            raise UsageError("metric kfac needs the covariance of its output's gradients")
        return Kfac(covariance, self.output_covariance)

    def views(
        self, weight: npt.NDArray[Any], groups: int | None
    ) -> tuple[View | None, View | None]:
        """Return what the inputs to fit to, and those to judge by, say of a weight."""
        if self.fit is None and self.holdout is None:
            return None, None
        parts = unfold_inputs(weight, groups)
        return _view(self.fit, parts), _view(self.holdout, parts)


def _view(moments: Moments | PairMoments | None, parts: Matrix) -> View | None:
    if moments is None:
        return None
    if isinstance(moments, PairMoments):
        return View.of_pairs(moments, parts)
    return View.of(moments, parts)


@dataclass(frozen=True)
class Knowledge:
    """What is known of a model's layers.

    Attributes
    ----------
    statistics
        Of the layers' inputs; None without calibration.
    keys
        Content hash of each layer's weight, by the layer's name.
    importance, output_covariance, input_covariance
        By the layer's name, as in `Evidence`.
    """

    statistics: Statistics | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    importance: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    output_covariance: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    input_covariance: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def of(self, layer: Layer) -> Evidence:
        """Return what is known of a layer.

        Raises
        ------
        DataError
            If the statistics are of other inputs than a layer of this weight has.
        """
        key = self.keys.get(layer.name)
        found = self.statistics.of(key) if self.statistics and key else None
        for moments in (found.fit, found.holdout) if found is not None else ():
            _check_sizes(moments, layer)
        return Evidence(
            None if found is None else found.fit,
            None if found is None else found.holdout,
            self.importance.get(layer.name),
            self.output_covariance.get(layer.name),
            self.input_covariance.get(layer.name),
        )

    def why_unobserved(self, layer: Layer) -> str | None:
        """Return why a layer's inputs are not known."""
        if self.statistics is None:
            return "there are no statistics (give --calibration or --statistics)"
        return self.statistics.unobserved.get(layer.name)


def _check_sizes(moments: Moments | None, layer: Layer) -> None:
    """Refuse moments that are none of a layer's inputs, whatever their key says."""
    if moments is None or layer.shape is None:
        return
    groups = layer.groups or 1
    inputs = layer.shape[-2] if layer.groups is None else prod(layer.shape[1:])
    if moments.means.shape != (len(layer.sites), groups, inputs):
        raise DataError(
            f"the statistics of layer '{layer.name}' are of {shape_text(moments.means.shape)} "
            f"(sites, groups, inputs), expected {len(layer.sites)}×{groups}×{inputs}; "
            "calibrate again"
        )


UNKNOWN = Knowledge()
"""Nothing but the weights."""
