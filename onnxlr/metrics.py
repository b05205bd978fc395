"""What the error of an approximation is measured in: an axis of its own, for every method.

An error is `Σ_g ‖L_g (W_g − Ŵ_g) R‖²` for matrices `W_g` of shape `(inputs, outputs)`, one for each
matrix of a stack or group of a convolution, or `Σ I ∘ (W − Ŵ)²` for an importance `I`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.errors import UsageError, check_known

__all__ = [
    "METRICS",
    "SHRINKAGE",
    "SOLVERS",
    "Activation",
    "Fisher",
    "FisherRows",
    "Frobenius",
    "Kfac",
    "Metric",
    "relative_error",
    "unfold_inputs",
]

Matrix = npt.NDArray[np.float64]

METRICS = ("frobenius", "activation", "fisher-rows", "fisher", "kfac")
"""All metrics; `activation` and `kfac` need statistics, the Fisher ones importance."""

SOLVERS = ("als", "em", "adam-sgd")
"""How an element-wise importance is minimised in; there is no closed form."""

SHRINKAGE = 0.02
"""How far a covariance is moved towards its mean diagonal: keeps directions that few calibration
rows never showed from counting for nothing."""


class Metric(ABC):
    """Measures the error of an approximation of one layer's weight.

    Attributes
    ----------
    name
        One of `METRICS`.
    covariance
        Of the inputs, `(groups, inputs, inputs)`; None where it does not matter.
    output_covariance
        Of output gradients, `(outputs, outputs)`; None where it does not matter.
    importance
        Of every entry, in the weight's shape; None where it does not matter.
    """

    name: str
    covariance: Matrix | None = None
    output_covariance: Matrix | None = None
    importance: Matrix | None = None

    @abstractmethod
    def squared(self, difference: Matrix, groups: int | None) -> float:
        """Return the squared error of a difference in the weight's shape."""

    def expect(self, weight: npt.NDArray[Any], groups: int | None) -> None:
        """Check that the metric is one of such a weight.

        Raises
        ------
        UsageError
            If its covariances or importance are of other inputs or outputs.
        """
        parts = unfold_inputs(weight, groups)
        inputs, outputs = parts.shape[1], parts.shape[2] * (groups or 1)
        if self.covariance is not None and self.covariance.shape != (groups or 1, inputs, inputs):
            count, size, _ = self.covariance.shape
            raise UsageError(
                f"covariance is for {size} inputs{_of_groups(count)}, the weight has "
                f"{inputs}{_of_groups(groups or 1)}"
            )
        if self.output_covariance is not None and len(self.output_covariance) != outputs:
            raise UsageError(
                f"output covariance is for {len(self.output_covariance)} outputs, the weight has "
                f"{outputs}"
            )
        if self.importance is not None and self.importance.shape != weight.shape:
            raise UsageError(
                f"importance has shape {self.importance.shape}, the weight {weight.shape}"
            )


class Frobenius(Metric):
    """Every entry counts alike."""

    name = "frobenius"

    def squared(self, difference: Matrix, groups: int | None) -> float:  # noqa: ARG002
        """Return the sum of squares."""
        return float(np.vdot(difference, difference))


class Activation(Metric):
    """Error of the layer's outputs, on inputs of a known covariance.

    `‖X (W − Ŵ)‖_F² = n · tr((W − Ŵ)ᵀ C (W − Ŵ))`. Source: SVD-LLM (Wang et al., ICLR 2025).
    """

    name = "activation"

    def __init__(self, covariance: npt.ArrayLike, shrinkage: float = SHRINKAGE) -> None:
        """Take the covariance `E[x xᵀ]` of the inputs.

        Parameters
        ----------
        covariance
            Shape `(inputs, inputs)`, or `(groups, inputs, inputs)` with the patches of a
            convolution's groups for inputs. Symmetric, positive semidefinite.
        shrinkage
            How far to move it towards its mean diagonal, 0 … 1.

        Raises
        ------
        UsageError
            If it is not finite and square, or is zero.
        """
        self.covariance = _shrunk(covariance, shrinkage, "covariance")

    def squared(self, difference: Matrix, groups: int | None) -> float:
        """Return the mean squared norm of the outputs' error."""
        return quadratic(unfold_inputs(difference, groups), self.covariance)


class FisherRows(Metric):
    """Rows weighted by their summed Fisher information.

    Source: FWSVD (Hsu et al., ICLR 2022): `D = diag(√max(Σ_j I_ij, ε))`.
    """

    name = "fisher-rows"

    def __init__(self, importance: npt.ArrayLike) -> None:
        """Take the importance of every entry, in the weight's shape, none negative.

        Raises
        ------
        UsageError
            If it is negative, not finite, or zero everywhere.
        """
        self.importance = _checked(importance)

    def squared(self, difference: Matrix, groups: int | None) -> float:
        """Return the squared error with each row weighted."""
        rows = row_importance(unfold_inputs(self.importance, groups))
        return float(np.sum(rows[..., None] * np.square(unfold_inputs(difference, groups))))


class Fisher(Metric):
    """Every entry weighted by its Fisher information.

    Source: Hua et al., Numerical Optimizations for Weighted Low-rank Estimation on Language Model
    (EMNLP 2022).
    """

    name = "fisher"

    def __init__(self, importance: npt.ArrayLike, solver: str = "als") -> None:
        """Take the importance of every entry as `FisherRows` does, and one of `SOLVERS`.

        Raises
        ------
        UsageError
            If the importance cannot be used, or the solver is unknown.
        """
        check_known("solver", solver, SOLVERS)
        self.importance = _checked(importance)
        self.solver = solver

    def squared(self, difference: Matrix, groups: int | None) -> float:  # noqa: ARG002
        """Return the sum of weighted squares."""
        return float(np.sum(np.asarray(self.importance) * np.square(difference)))


class Kfac(Metric):
    """Error weighted on both sides: by the covariance of inputs and of output gradients.

    Source: KFAC (Martens and Grosse, ICML 2015): the Fisher information of a layer is near
    `C ⊗ G`, so that the loss grows by `tr(G Dᵀ C D)` for a difference `D`.
    """

    name = "kfac"

    def __init__(
        self,
        covariance: npt.ArrayLike,
        output_covariance: npt.ArrayLike,
        shrinkage: float = SHRINKAGE,
    ) -> None:
        """Take `E[x xᵀ]` as `Activation` does, and `E[g gᵀ]` of shape `(outputs, outputs)`.

        Raises
        ------
        UsageError
            If one of them is not finite and square, or is zero.
        """
        self.covariance = _shrunk(covariance, shrinkage, "covariance")
        gradients = _shrunk(output_covariance, shrinkage, "output covariance")
        self.output_covariance = gradients[0]

    def squared(self, difference: Matrix, groups: int | None) -> float:
        """Return the weighted squared error."""
        parts = unfold_inputs(difference, groups)
        outputs = np.asarray(self.output_covariance)
        width = parts.shape[-1]
        blocks = [
            outputs[i * width : (i + 1) * width][:, i * width : (i + 1) * width]
            for i in range(len(outputs) // width)
        ]
        both = np.stack(blocks)
        return float(np.sum((np.asarray(self.covariance) @ parts) * (parts @ both)))


def _of_groups(count: int) -> str:
    return f" in each of {count} groups" if count > 1 else ""


def relative_error(
    metric: Metric, weight: Matrix, approximation: Matrix, groups: int | None
) -> float:
    """Return the root of the squared error of an approximation over that of nothing at all."""
    total = metric.squared(weight, groups)
    wrong = metric.squared(approximation - weight, groups)
    return float(np.sqrt(max(wrong, 0.0) / total)) if total > 0 else 0.0


def unfold_inputs(weight: npt.NDArray[Any] | None, groups: int | None) -> Matrix:
    """Return matrices `(parts, inputs, outputs)`: of a stack, or of a kernel's groups.

    A kernel's inputs are patches in the order `(inputs/groups, *kernel)`.
    """
    if weight is None:
        raise ValueError("nothing to unfold")
    if groups is None:
        return np.asarray(weight, np.float64).reshape(-1, *weight.shape[-2:])
    parts = np.asarray(weight, np.float64).reshape(groups, weight.shape[0] // groups, -1)
    return np.asarray(parts.swapaxes(1, 2))


def quadratic(parts: Matrix, covariance: Matrix | None) -> float:
    """Return `Σ tr(Pᵀ C P)` of matrices `(parts, inputs, outputs)`."""
    return float(np.sum((np.asarray(covariance) @ parts) * parts))


def row_importance(parts: Matrix) -> Matrix:
    """Return the importance of each row, `(parts, inputs)`, raised where it is next to nothing."""
    rows = parts.sum(axis=-1)
    return np.asarray(np.maximum(rows, 1e-8 * rows.mean()))


@dataclass(frozen=True)
class Weighing:
    """`L W R` of one matrix, and back.

    Attributes
    ----------
    left
        Upper triangular, `(inputs, inputs)`, or a diagonal `(inputs,)`; None for the identity.
    right
        Lower triangular, `(outputs, outputs)`; None for the identity.
    """

    left: Matrix | None = None
    right: Matrix | None = None

    @classmethod
    def of(cls, rows: Matrix | None, columns: Matrix | None = None) -> Weighing:
        """Return the weighing by covariances of both sides; a vector is a diagonal one.

        For any `T Tᵀ = C` the squared error `tr(Dᵀ C D)` is `‖Tᵀ D‖²`: Cholesky factors do, and
        take a fraction of the time of symmetric roots.
        """
        if rows is not None and rows.ndim == 1:
            return cls(np.sqrt(rows))
        left = None if rows is None else _cholesky(rows).T
        return cls(left, None if columns is None else _cholesky(columns))

    @property
    def is_identity(self) -> bool:
        """Whether every entry counts alike."""
        return self.left is None and self.right is None

    def weigh(self, weight: Matrix) -> Matrix:
        """Return `L W R`."""
        if self.left is None:
            weighed = weight
        elif self.left.ndim == 1:
            weighed = self.left[:, None] * weight
        else:
            weighed = self.left @ weight
        return weighed if self.right is None else weighed @ self.right

    def restore(self, left: Matrix, right: Matrix) -> tuple[Matrix, Matrix]:
        """Return factors of `W` out of factors of `L W R`: `L⁻¹ left` and `right R⁻¹`."""
        first = left
        if self.left is not None and self.left.ndim == 1:
            first = left / self.left[:, None]
        elif self.left is not None:
            first = linalg.solve_triangular(self.left, left, lower=False)
        if self.right is None:
            return first, right
        return first, linalg.solve_triangular(self.right, right.T, lower=True, trans="T").T


def _cholesky(covariance: Matrix) -> Matrix:
    """Return the lower Cholesky factor of a covariance, which may be singular."""
    scale = float(np.trace(covariance)) / len(covariance)
    jitter = np.finfo(np.float64).eps * scale * len(covariance)
    raised = covariance + jitter * np.eye(len(covariance))
    try:
        return np.asarray(linalg.cholesky(raised, lower=True))
    except linalg.LinAlgError:
        raise UsageError(
            "a covariance has negative eigenvalues, as none of data has: calibrate again, or shrink"
            " it further"
        ) from None


def _shrunk(covariance: npt.ArrayLike, shrinkage: float, what: str) -> Matrix:
    matrix = np.asarray(covariance, np.float64)
    if matrix.ndim not in (2, 3) or matrix.shape[-2] != matrix.shape[-1]:
        raise UsageError(f"{what} has shape {matrix.shape}, expected a square matrix")
    if not np.isfinite(matrix).all():
        raise UsageError(f"{what} has NaN or infinite entries, expected finite numbers")
    matrix = matrix.reshape(-1, *matrix.shape[-2:])
    scales = np.trace(matrix, axis1=1, axis2=2) / matrix.shape[-1]
    if not scales.max(initial=0.0) > 0:
        raise UsageError(f"{what} has no positive diagonal: the inputs it describes are zero")
    # A group that saw only zeros among others that did not counts for next to nothing.
    scales = np.maximum(scales, 1e-12 * scales.max())[:, None, None]
    symmetric = (matrix + matrix.swapaxes(1, 2)) / 2
    return np.asarray((1 - shrinkage) * symmetric + shrinkage * scales * np.eye(matrix.shape[-1]))


def _checked(importance: npt.ArrayLike) -> Matrix:
    values = np.asarray(importance, np.float64)
    if values.ndim < 2 or not np.isfinite(values).all() or (values < 0).any():
        raise UsageError("importance must have at least 2 dimensions, finite and none negative")
    if not values.any():
        raise UsageError("importance is zero everywhere")
    return values
