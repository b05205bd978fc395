"""Low rank by singular value decomposition, in any metric that weights rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg
from tensorly.tenalg.svd import svd_flip

from onnxlr.errors import UsageError
from onnxlr.methods.budget import Budget
from onnxlr.methods.matricisation import Matricisation, matricisations
from onnxlr.methods.method import Options, Setting
from onnxlr.metrics import Metric
from onnxlr.stages import Chain, Convolution

__all__ = ["Spectrum", "Svd", "SvdOptions"]

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

    def factors(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return the first `rank` singular vectors on both sides, the values on the left."""
        left = self.left[..., :, :rank] * self.values[..., None, :rank]
        return left, self.right[..., :rank, :]


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


@dataclass(frozen=True)
class SvdOptions(Budget):
    """A budget, and for convolutions the form.

    Attributes
    ----------
    form
        How a convolution is split in two: `channel` (k×k, then 1×1), `input` (1×1, then k×k),
        `spatial` (1×k, then k×1), `spatial_swapped` (k×1, then 1×k), or `auto`, the default: the
        least error at equal bytes, or the least bytes within an error or energy.
    """

    form: str | None = None

    def __str__(self) -> str:
        form = f", {self.form}" if self.form else ""
        return f"{super().__str__()}{form}"


@dataclass(frozen=True)
class _Fit:
    """A chain, its rank, and what it is judged by."""

    chain: Chain
    rank: int
    error: float
    bytes: int


class Svd:
    """Truncated singular value decomposition: the best approximation of a rank in the metric.

    `W ≈ U_r diag(s_r) V_rᵀ` (Eckart and Young 1936); under a metric `T`, `T⁻¹` of the truncated
    decomposition of `T W`. A convolution's kernel is seen as one matrix for each group, in one of
    the forms of `matricisation`.
    """

    name = "svd"
    options: type[Options] = SvdOptions

    def factorize(self, weight: npt.NDArray[Any], options: SvdOptions, setting: Setting) -> Chain:
        """Return two stages.

        Raises
        ------
        UsageError
            If the format's own rounding error is above the `max_error` asked, the budget does not
            reach rank 1, or the weight has not got the form asked for.
        """
        if setting.is_table:
            raise UsageError(
                "a table of rows has no product to factorize; method quantize changes its format"
            )
        forms = matricisations(weight, setting.groups, options.form, setting.whole_window)
        answers = [_attempt(form, options, setting) for form in forms]
        fits = [answer for answer in answers if isinstance(answer, _Fit)]
        if not fits:
            raise next(answer for answer in answers if isinstance(answer, UsageError))
        if options.limits_bytes:
            return min(fits, key=lambda fit: fit.error).chain
        return min(fits, key=lambda fit: fit.bytes).chain

    def settle(self, options: SvdOptions, chain: Chain) -> SvdOptions:  # noqa: ARG002
        """Return the rank and the form that the chain has."""
        first, second = chain.stages
        if not (isinstance(first, Convolution) and isinstance(second, Convolution)):
            return SvdOptions(rank=first.shape[-1])
        rank = second.weight.shape[1]
        return SvdOptions(rank=rank, form=_form_of(first, second))


def _form_of(first: Convolution, second: Convolution) -> str:
    if not second.window:
        return "channel"
    if not first.window:
        return "input"
    return (
        "spatial" if len(first.window) == 1 and first.window > second.window else "spatial_swapped"
    )


def _attempt(form: Matricisation, options: SvdOptions, setting: Setting) -> _Fit | UsageError:
    try:
        return _fit(form, options, setting)
    except UsageError as error:
        return error


def _fit(form: Matricisation, options: SvdOptions, setting: Setting) -> _Fit:
    matrices = form.matrices()
    spectrum = Spectrum.of(matrices, setting.metric)
    rank = _rank(spectrum, options, setting, form)

    def build(candidate: int) -> _Fit:
        chain = form.chain(*spectrum.factors(candidate)).encoded(setting.format, setting.compute)
        error = float(spectrum.errors()[candidate - 1])
        if not setting.format.is_float:
            error = _measured(chain, form, setting.metric)
        return _Fit(chain, candidate, error, chain.cost.bytes)

    fit = build(rank)
    if not options.limits_error or fit.error <= options.error_limit or setting.format.is_float:
        return fit
    return _within_error(build, rank, spectrum.full_rank, options, setting)


def _measured(chain: Chain, form: Matricisation, metric: Metric) -> float:
    """Return the relative error of a chain in the metric, rounding included."""
    exact = metric.weigh(form.matrices().astype(np.float64))
    found = metric.weigh(form.like(chain.reconstruct()).matrices())
    return float(np.linalg.norm(found - exact)) / (float(np.linalg.norm(exact)) or 1.0)


def _rank(spectrum: Spectrum, options: SvdOptions, setting: Setting, form: Matricisation) -> int:
    *_, rows, columns = form.matrices().shape
    if options.rank is not None:
        return min(options.rank, spectrum.full_rank)
    if options.ratio is not None:
        rank = _whole(options.ratio * rows * columns / (rows + columns), spectrum)
    elif options.bits is not None:
        available = options.bits * form.matrices().size / 8
        scale = 0 if setting.format.is_float else setting.compute.itemsize
        entry = setting.format.entry_bytes()
        fixed = form.bytes(0, entry, scale)
        rank = _whole((available - fixed) / (form.bytes(1, entry, scale) - fixed), spectrum)
    elif options.energy is not None:
        rank = int(np.searchsorted(spectrum.energies(), options.energy - 1e-12) + 1)
    else:
        # errors descend; the full rank's is 0, so that there always is one within the limit
        rank = int(np.argmax(spectrum.errors() <= options.error_limit) + 1)
    if rank < 1:
        raise UsageError(f"{options} leaves less than rank 1 of a {rows}×{columns} weight")
    return min(rank, spectrum.full_rank)


def _whole(rank: float, spectrum: Spectrum) -> int:
    """Return the largest whole rank, of a weight that has no more than its full rank."""
    return int(min(rank + 1e-9, spectrum.full_rank))


def _within_error(
    build: Callable[[int], _Fit], rank: int, full_rank: int, options: SvdOptions, setting: Setting
) -> _Fit:
    """Raise the rank until truncation and rounding together are within the error asked."""
    low, high = rank, full_rank
    best = build(high)
    if best.error > options.error_limit:
        raise UsageError(
            f"rounding to {setting.format.kind} alone costs an error of {best.error:.2g}, "
            f"more than {options}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        attempt = build(middle)
        if attempt.error <= options.error_limit:
            best, high = attempt, middle
        else:
            low = middle
    return best
