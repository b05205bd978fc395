"""What is known about one layer beside its weight, as metrics and as a judge of approximations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.layers import Layer
from onnxlr.metrics import (
    METRICS,
    Activation,
    Fisher,
    FisherRows,
    Frobenius,
    Kfac,
    Metric,
    unfold_inputs,
)
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
    """

    covariance: Matrix
    seen: Matrix
    total: float
    means: Matrix
    targets: Matrix
    shares: Matrix

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

    def target(self, parts: Matrix) -> Matrix:
        """Return the weight that gives the original outputs best on the inputs there now are.

        `Ĉ⁻¹ E[x̂ xᵀ] W`, damped towards `W` itself.
        """
        size = self.covariance.shape[-1]
        scale = np.trace(self.covariance, axis1=1, axis2=2)[:, None, None] / size
        damping = _DAMPING * np.maximum(scale, np.finfo(np.float64).tiny)
        left = self.covariance + damping * np.eye(size)
        return np.asarray(np.linalg.solve(left, self.seen + damping * parts))


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
    """

    fit: Moments | PairMoments | None = None
    holdout: Moments | PairMoments | None = None
    importance: npt.NDArray[Any] | None = None
    output_covariance: npt.NDArray[Any] | None = None

    @property
    def is_sequential(self) -> bool:
        """Whether the inputs are those behind layers that were rewritten."""
        return isinstance(self.fit, PairMoments)

    @property
    def default_metric(self) -> str:
        """`activation` where the inputs are known."""
        return "frobenius" if self.fit is None else "activation"

    def metric(self, name: str, centred: bool = False, solver: str | None = None) -> Metric:
        """Return a metric of this layer.

        Parameters
        ----------
        name
            One of `METRICS`.
        centred
            Whether the mean of the inputs does not count, as a bias correction makes up for it.
        solver
            Of metric `fisher`.

        Raises
        ------
        UsageError
            If what the metric needs is not known of this layer.
        """
        if name not in METRICS:
            raise UsageError(f"metric '{name}' is unknown, expected one of {', '.join(METRICS)}")
        if solver is not None and name != "fisher":
            raise UsageError(f"solver '{solver}' is for metric fisher, not {name}")
        if name == "frobenius":
            return Frobenius()
        if name in ("fisher-rows", "fisher"):
            if self.importance is None:
                raise UsageError(f"metric {name} needs the importance of its entries")
            rows = name == "fisher-rows"
            return FisherRows(self.importance) if rows else Fisher(self.importance, solver or "als")
        if self.fit is None:
            raise UsageError(f"metric {name} needs statistics of its inputs")
        covariance = self.fit.centred if centred else self.fit.covariance
        if name == "activation":
            return Activation(covariance)
        if self.output_covariance is None:
            raise UsageError("metric kfac needs the covariance of its output's gradients")
        return Kfac(covariance, self.output_covariance)

    def views(
        self, weight: npt.NDArray[Any], groups: int | None
    ) -> tuple[View | None, View | None]:
        """Return what the inputs to fit to, and those to judge by, say of a weight."""
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
    importance, output_covariance
        By the layer's name, as in `Evidence`.
    """

    statistics: Statistics | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    importance: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    output_covariance: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    def of(self, layer: Layer) -> Evidence:
        """Return what is known of a layer."""
        found = self.statistics.of(self.keys[layer.name]) if self.statistics else None
        importance = self.importance.get(layer.name)
        gradients = self.output_covariance.get(layer.name)
        if found is None:
            return Evidence(None, None, importance, gradients)
        return Evidence(
            found.fit,
            found.holdout,
            found.importance if importance is None else importance,
            found.output_covariance if gradients is None else gradients,
        )

    def why_unobserved(self, layer: Layer) -> str | None:
        """Return why a layer's inputs are not known."""
        if self.statistics is None:
            return "there are no statistics (give --calibration or --statistics)"
        return self.statistics.unobserved.get(layer.name)


UNKNOWN = Knowledge()
"""Nothing but the weights."""
