"""Low rank by singular value decomposition, in any metric that weights rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg
from tensorly.tenalg.svd import svd_flip

from onnxlr.errors import UsageError
from onnxlr.methods.budget import Budget
from onnxlr.methods.method import Options, Setting
from onnxlr.metrics import Metric
from onnxlr.numbers import Format
from onnxlr.stages import Chain, Linear, Scale, simplify

__all__ = ["Spectrum", "Svd"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """Singular value decomposition `T W = U diag(s) Vᵀ` of one weight or a stack of them.

    Attributes
    ----------
    left
        `T⁻¹ U`, shape `(*batch, inputs, k)` with k the smaller side.
    values
        Singular values, descending, shape `(*batch, k)`.
    right
        `Vᵀ`, shape `(*batch, k, outputs)`; orthonormal rows.
    """

    left: Matrix
    values: Matrix
    right: Matrix

    @classmethod
    def of(cls, weight: npt.NDArray[Any], metric: Metric) -> Spectrum:
        """Decompose a weight of shape `(*batch, inputs, outputs)`, in float64."""
        *batch, inputs, outputs = weight.shape
        parts = [
            _decompose(metric.weigh(matrix.astype(np.float64)), metric)
            for matrix in weight.reshape(-1, inputs, outputs)
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

    def chain(self, rank: int) -> Chain:
        """Return the chain of the first `rank` singular vectors, the values in the left factor."""
        left, right = self.left[..., :, :rank], self.right[..., :rank, :]
        stages = (Linear.of(left), Scale(self.values[..., :rank]), Linear.of(right))
        return simplify(Chain(stages))


def _decompose(weight: Matrix, metric: Metric) -> tuple[Matrix, Matrix, Matrix]:
    """Decompose by the eigenvectors of the smaller Gram matrix.

    The larger factor is the weight projected on the eigenvectors, so that any rank is an exact
    orthogonal projection, and the full rank the weight itself, whatever the small eigenvalues lost.
    It takes a fraction of the time and memory of a full decomposition of a large matrix.
    """
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
    left, right = svd_flip(left[:, order], right[order])
    return metric.restore(left), values[order], right


class Svd:
    """Truncated singular value decomposition: the best approximation of a rank in the metric.

    `W ≈ U_r diag(s_r) V_rᵀ` (Eckart and Young 1936); under a metric `T`, `T⁻¹` of the truncated
    decomposition of `T W`.
    """

    name = "svd"
    options: type[Options] = Budget

    def factorize(self, weight: npt.NDArray[Any], options: Budget, setting: Setting) -> Chain:
        """Return two factors `(*batch, inputs, rank)` and `(*batch, rank, outputs)`.

        Raises
        ------
        UsageError
            If the format's own rounding error is above the `max_error` asked, or the budget does
            not reach rank 1.
        """
        spectrum = Spectrum.of(weight, setting.metric)
        rank = _rank(spectrum, options, setting.format, weight)
        if setting.format.is_float or not options.limits_error:
            return spectrum.chain(rank).encoded(setting.format, setting.compute)
        return _within_error(spectrum, rank, options, setting, weight)

    def settle(self, options: Budget, chain: Chain) -> Budget:  # noqa: ARG002
        """Return the rank the chain has."""
        return Budget(rank=chain.stages[0].shape[-1])


def _rank(spectrum: Spectrum, options: Budget, format: Format, weight: npt.NDArray[Any]) -> int:
    *_, inputs, outputs = weight.shape
    if options.rank is not None:
        return min(options.rank, spectrum.full_rank)
    if options.ratio is not None:
        rank = int(options.ratio * inputs * outputs / (inputs + outputs) + 1e-9)
    elif options.bits is not None:
        rank = _rank_of_bits(options.bits, inputs, outputs, format)
    elif options.energy is not None:
        rank = int(np.searchsorted(spectrum.energies(), options.energy - 1e-12) + 1)
    else:
        rank = _rank_of_error(spectrum.errors(), options.error_limit)
    if rank < 1:
        raise UsageError(f"{options} leaves less than rank 1 of a {inputs}×{outputs} weight")
    return min(rank, spectrum.full_rank)


def _rank_of_bits(bits: float, inputs: int, outputs: int, format: Format) -> int:
    """Return the largest rank whose two factors fit, float32 scales of integer columns included."""
    available = bits * inputs * outputs / 8
    scale = 0 if format.is_float else 4
    available -= scale * outputs
    return int(available / ((inputs + outputs) * format.entry_bytes() + scale) + 1e-9)


def _rank_of_error(errors: Matrix, limit: float) -> int:
    # errors descend; the full rank's is 0, so that there always is one within the limit
    return int(np.argmax(errors <= limit) + 1)


def _within_error(
    spectrum: Spectrum, rank: int, options: Budget, setting: Setting, weight: npt.NDArray[Any]
) -> Chain:
    """Raise the rank until truncation and rounding together are within the error asked."""
    limit, metric = options.error_limit, setting.metric
    exact = metric.weigh(weight.astype(np.float64))
    norm = float(np.linalg.norm(exact)) or 1.0

    def build(candidate: int) -> tuple[Chain, float]:
        chain = spectrum.chain(candidate).encoded(setting.format, setting.compute)
        error = np.linalg.norm(metric.weigh(chain.reconstruct()) - exact)
        return chain, float(error) / norm

    chain, error = build(rank)
    if error <= limit:
        return chain
    low, high = rank, spectrum.full_rank
    chain, error = build(high)
    if error > limit:
        raise UsageError(
            f"rounding to {setting.format.kind} alone costs an error of {error:.2g}, "
            f"more than {options}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        attempt, error = build(middle)
        if error <= limit:
            chain, high = attempt, middle
        else:
            low = middle
    return chain
