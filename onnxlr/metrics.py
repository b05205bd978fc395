"""What the error of an approximation is measured in: an axis of its own, for every method.

Every metric here weights the rows of the weight: the error is ``‖T (W − Ŵ)‖_F``, where `T` is the
identity, a diagonal, or a square root of the covariance of the layer's inputs.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.errors import UsageError

__all__ = ["Activation", "FisherRows", "Frobenius", "Metric", "choose_metric"]

Matrix = npt.NDArray[np.float64]


class Metric(Protocol):
    """Weights the rows of a weight of shape `(inputs, outputs)`."""

    name: str

    def weigh(self, weight: Matrix) -> Matrix:
        """Return `T @ weight`."""

    def restore(self, weighed: Matrix) -> Matrix:
        """Return `T⁻¹ @ weighed`."""


class Frobenius:
    """Every entry counts alike."""

    name = "frobenius"

    def weigh(self, weight: Matrix) -> Matrix:
        """Return the weight as it is."""
        return weight

    def restore(self, weighed: Matrix) -> Matrix:
        """Return the weight as it is."""
        return weighed


class Activation:
    """Error of the layer's output on inputs of a given covariance.

    `‖X (W − Ŵ)‖_F² = ‖Tᵀ… (W − Ŵ)‖_F²` for any square root `T` of the covariance; the symmetric one
    is used. Source: SVD-LLM (Wang et al., ICLR 2025), whose whitening matrix this is.
    """

    name = "activation"

    def __init__(self, covariance: npt.NDArray[Any], shrinkage: float = 0.02) -> None:
        """Take the uncentred covariance `E[x xᵀ]` of the inputs, shape `(inputs, inputs)`.

        Parameters
        ----------
        covariance
            Symmetric, positive semidefinite.
        shrinkage
            How far to move it towards its mean diagonal (0 … 1): keeps directions that few
            calibration rows never showed from counting for nothing.

        Raises
        ------
        UsageError
            If it is not a finite square matrix or is zero.
        """
        matrix = np.asarray(covariance, np.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise UsageError(f"covariance has shape {matrix.shape}, expected a square matrix")
        if not np.isfinite(matrix).all():
            raise UsageError("covariance has NaN or infinite entries, expected finite numbers")
        scale = float(np.trace(matrix)) / len(matrix)
        if scale <= 0:
            raise UsageError(
                "covariance has no positive diagonal: the inputs it describes are zero"
            )
        shrunk = (1 - shrinkage) * (matrix + matrix.T) / 2 + shrinkage * scale * np.eye(len(matrix))
        values, vectors = linalg.eigh(shrunk)
        roots = np.sqrt(np.maximum(values, np.finfo(np.float64).eps * scale))
        self._root = (vectors * roots) @ vectors.T
        self._inverse = (vectors / roots) @ vectors.T

    def weigh(self, weight: Matrix) -> Matrix:
        """Return `C^½ @ weight`."""
        _expect_rows(weight, len(self._root), "covariance")
        return np.asarray(self._root @ weight)

    def restore(self, weighed: Matrix) -> Matrix:
        """Return `C^−½ @ weighed`."""
        return np.asarray(self._inverse @ weighed)


class FisherRows:
    """Rows weighted by their summed Fisher information.

    Source: FWSVD (Hsu et al., ICLR 2022): `D = diag(√max(Σ_j I_ij, ε))`.
    """

    name = "fisher-rows"

    def __init__(self, importance: npt.NDArray[Any]) -> None:
        """Take the importance of every entry, shape `(inputs, outputs)`, not negative.

        Raises
        ------
        UsageError
            If it is negative, not finite, or zero everywhere.
        """
        values = np.asarray(importance, np.float64)
        if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any():
            raise UsageError("importance must be a matrix of finite numbers, none negative")
        rows = values.sum(axis=1)
        if not rows.any():
            raise UsageError("importance is zero everywhere")
        self._diagonal = np.sqrt(np.maximum(rows, 1e-8 * rows.mean()))[:, None]

    def weigh(self, weight: Matrix) -> Matrix:
        """Return `D @ weight`."""
        _expect_rows(weight, len(self._diagonal), "importance")
        return np.asarray(weight * self._diagonal)

    def restore(self, weighed: Matrix) -> Matrix:
        """Return `D⁻¹ @ weighed`."""
        return np.asarray(weighed / self._diagonal)


def _expect_rows(weight: Matrix, rows: int, what: str) -> None:
    if weight.shape[-2] != rows:
        raise UsageError(f"{what} is for {rows} inputs, the weight has {weight.shape[-2]}")


def choose_metric(
    covariance: npt.NDArray[Any] | None = None, importance: npt.NDArray[Any] | None = None
) -> Metric:
    """Return the metric that what is known allows: `frobenius` where nothing is.

    Raises
    ------
    UsageError
        If both are given: they are two different metrics.
    """
    if covariance is not None and importance is not None:
        raise UsageError("give either covariance or importance: they are two different metrics")
    if covariance is not None:
        return Activation(covariance)
    if importance is not None:
        return FisherRows(importance)
    return Frobenius()
