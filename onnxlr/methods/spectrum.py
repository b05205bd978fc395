"""The singular values of a weight in a metric, and factors of any rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg
from tensorly.tenalg.svd import svd_flip

from onnxlr.metrics import Weighing

__all__ = ["Spectrum"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """Singular value decomposition `L W R = U diag(s) Vᵀ` of one weight or a stack of them.

    Attributes
    ----------
    left
        `L⁻¹ U`, shape `(*batch, inputs, k)` with k the smaller side.
    values
        Singular values, descending, shape `(*batch, k)`.
    right
        `Vᵀ R⁻¹`, shape `(*batch, k, outputs)`.
    """

    left: Matrix
    values: Matrix
    right: Matrix

    @classmethod
    def of(cls, weight: npt.NDArray[Any], weighings: Sequence[Weighing]) -> Spectrum:
        """Decompose a weight of shape `(*batch, inputs, outputs)`, in float64."""
        *batch, inputs, outputs = weight.shape
        parts = [
            _decompose(matrix.astype(np.float64), weighing)
            for matrix, weighing in zip(weight.reshape(-1, inputs, outputs), weighings, strict=True)
        ]
        left, values, right = (np.stack(part) for part in zip(*parts, strict=True))
        return cls(
            left.reshape(*batch, inputs, -1),
            values.reshape(*batch, -1),
            right.reshape(*batch, -1, outputs),
        )

    @property
    def full_rank(self) -> int:
        """The smaller side of the weight."""
        return int(self.values.shape[-1])

    def energies(self) -> Matrix:
        """Return the share of the squared singular values in the first 1, 2, … of them.

        A stack counts as one: its matrices share the rank. A weight of zeros has all its energy in
        any of them.
        """
        squares = np.square(self.values).reshape(-1, self.full_rank).sum(axis=0)
        total = squares.sum()
        return np.cumsum(squares) / total if total > 0 else np.ones(self.full_rank)

    def errors(self) -> Matrix:
        """Return the relative error of ranks 1, 2, … up to the full rank."""
        squares = np.square(self.values).reshape(-1, self.full_rank).sum(axis=0)
        total = squares.sum()
        if not total > 0:
            return np.zeros(self.full_rank)
        behind = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)
        return np.asarray(np.sqrt(behind / total))

    def factors(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return the first `rank` singular vectors on both sides, the values on the left."""
        left = self.left[..., :, :rank] * self.values[..., None, :rank]
        return left, self.right[..., :rank, :]


def _decompose(matrix: Matrix, weighing: Weighing) -> tuple[Matrix, Matrix, Matrix]:
    """Decompose by the eigenvectors of the smaller Gram matrix.

    The larger factor is the weight projected on the eigenvectors, so that any rank is an exact
    orthogonal projection, and the full rank the weight itself, whatever the small eigenvalues lost.
    It takes a fraction of the time and memory of a full decomposition of a large matrix.
    """
    weight = weighing.weigh(matrix)
    inputs, outputs = weight.shape
    if outputs <= inputs:
        _, vectors = linalg.eigh(weight.T @ weight)
        right = vectors[:, ::-1].T
        left = weight @ right.T
        values = np.linalg.norm(left, axis=0)
        left = left / np.where(values > 0, values, 1.0)
    else:
        _, vectors = linalg.eigh(weight @ weight.T)
        left = vectors[:, ::-1]
        right = left.T @ weight
        values = np.linalg.norm(right, axis=1)
        right = right / np.where(values > 0, values, 1.0)[:, None]
    order = np.argsort(-values, kind="stable")
    left, right = weighing.restore(*svd_flip(left[:, order], right[order]))
    return left, values[order], right
