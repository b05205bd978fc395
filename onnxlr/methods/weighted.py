"""Low rank where every entry of the weight has an importance of its own.

`min_{A,B} Σ_ij Ω_ij (W − A B)_ij²` has no closed form unless Ω has rank 1 (Srebro and Jaakkola,
ICML 2003). With Ω the Fisher information of each entry it is the problem of "Numerical
Optimizations for Weighted Low-rank Estimation on Language Model" (Hua et al., EMNLP 2022), which
goes on step by step from FWSVD (Hsu et al., ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.errors import UsageError
from onnxlr.methods.rowwise import Rows
from onnxlr.methods.switching import descend

__all__ = ["SOLVERS", "Weighted", "fisher_variance", "fit_weighted"]

Matrix = npt.NDArray[np.float64]

_STALL = 3e-4
"""`em` goes on to the next clip when a step lowers the clipped error by less than this share."""

_NEGLIGIBLE = 1e-10
"""Singular values below this share of the largest one do not count where a factor is inverted."""

_CLIPS = (50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 100.0)
"""Percentiles of the importance that count as 1 in turn, for `em`."""


@dataclass(frozen=True)
class Weighted:
    """Factors fitted under an importance of every entry.

    Attributes
    ----------
    left
        Shape `(inputs, rank)`, float64.
    right
        Shape `(rank, outputs)`, float64.
    errors
        Relative weighted error `√(Σ Ω (W − A B)² / Σ Ω W²)` of the start and after each iteration;
        absolute, `√(Σ Ω (A B)²)`, where `Σ Ω W²` is zero.
    """

    left: Matrix
    right: Matrix
    errors: tuple[float, ...]

    @property
    def error(self) -> float:
        """The relative weighted error of the factors: the least of `errors`."""
        return min(self.errors)

    @property
    def approximation(self) -> Matrix:
        """`left @ right`, shape `(inputs, outputs)`."""
        return np.asarray(self.left @ self.right)


@dataclass
class _Search:
    """The problem, scaled, with the errors so far and the best factors seen."""

    weight: Matrix
    importance: Matrix
    left: Matrix
    right: Matrix
    iterations: int
    tolerance: float
    seed: int
    errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.norm = float(np.sqrt(np.vdot(self.importance * self.weight, self.weight))) or 1.0
        self.see(self.left, self.right)

    def see(self, left: Matrix, right: Matrix) -> Matrix:
        """Note the error of these factors, keep them if the best; return `Ω ∘ (W − A B)`."""
        residual = self.weight - left @ right
        pull = self.importance * residual
        error = float(np.sqrt(np.vdot(pull, residual))) / self.norm
        if not self.errors or error < min(self.errors):
            self.left, self.right = left, right
        self.errors.append(error)
        return pull

    def stalled(self, tolerance: float) -> bool:
        """Whether the last iteration won less than this share of the error."""
        before, after = self.errors[-2:]
        return not before - after > tolerance * before

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, or no iteration to do it in."""
        return len(self.errors) > self.iterations or not self.errors[-1] > 0


def fit_weighted(
    weight: npt.NDArray[Any],
    importance: npt.NDArray[Any],
    left: npt.NDArray[Any],
    right: npt.NDArray[Any],
    solver: str = "als",
    iterations: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> Weighted:
    """Lower `Σ Ω (W − A B)²` from given factors; the answer is never worse than they are.

    Rows and columns without any importance do not count in the error; they get the least squares
    fit that the other factor allows.

    Parameters
    ----------
    weight
        Shape `(inputs, outputs)`.
    importance
        `Ω`, of the weight's shape, finite and not negative. Its scale does not matter.
    left, right
        Where to start, shapes `(inputs, rank)` and `(rank, outputs)`, such as those of FWSVD.
    solver
        `als`: alternating proximal least squares; the error never rises. `em`: fill in by
        importance and truncate (Srebro and Jaakkola 2003), with a rising clip of the importance.
        `adam-sgd`: Adam, then gradient descent with momentum from the point where SWATS switches
        (Keskar and Socher 2017), which is what Hua et al. settle on.
    iterations
        At most so many: by default 40 (`als`) or 200.
    seed
        Draws the first direction of components that are zero in the start (`adam-sgd`).
    tolerance
        `als` and `em` stop when an iteration lowers the error by less than this share of it.

    Raises
    ------
    UsageError
        If the solver is unknown, shapes disagree, the rank is above the smaller side, a number is
        not finite, or the importance is negative or zero everywhere.
    """
    if solver not in _SOLVERS:
        raise UsageError(f"solver {solver!r} is unknown, expected one of {', '.join(SOLVERS)}")
    given = [np.asarray(part, np.float64) for part in (weight, importance, left, right)]
    _expect(*given)
    solve, usual = _SOLVERS[solver]
    # powers of two: the same digits at any scale of the weight and of the importance
    size, scale = (int(np.frexp(np.abs(part).max())[1]) for part in given[:2])
    rows, columns = (np.asarray(given[1].max(axis=axis) > 0) for axis in (1, 0))
    search = _Search(
        np.ldexp(given[0], -size),
        np.ldexp(given[1], -scale),
        np.ldexp(given[2], -size) * rows[:, None],
        given[3] * columns,
        usual if iterations is None else iterations,
        tolerance,
        seed,
    )
    if not search.over:
        solve(search)
    found = _complete(search, rows, columns)
    return Weighted(np.ldexp(found[0], size), found[1], tuple(search.errors))


def fisher_variance(importance: npt.NDArray[Any]) -> float:
    """Return how unevenly importance is spread over a weight: `Var(I) / mean(I)²`.

    That the variance of the Fisher information inside a matrix predicts where plain singular value
    decomposition fails, and an element-weighted fit is worth its time, is from Hua et al. (EMNLP
    2022). Dividing by the squared mean is an addition, so that layers whose gradients have
    different sizes, and different loss scales, can be compared: 0 means that all entries count
    alike, `exp(σ²) − 1` is that of a lognormal of width σ.

    Parameters
    ----------
    importance
        Fisher information of each entry, any shape, finite and not negative; 0 if it is all zero.

    Raises
    ------
    UsageError
        If it is empty, negative or not finite.
    """
    values = np.asarray(importance, np.float64)
    _expect_importance(values)
    values = np.ldexp(values, -int(np.frexp(values.max())[1]))
    mean = float(values.mean())
    return float(values.var()) / mean**2 if mean > 0 else 0.0


def _als(search: _Search) -> None:
    """Solve for one factor, then for the other.

    The fixed factor is made orthonormal first: the product stays, and the normal equations
    `B D_i Bᵀ` are then no worse conditioned than the importance of the row.
    """
    rows = Rows.of(search.weight, search.importance)
    columns = Rows.of(search.weight.T, search.importance.T)
    left, right = search.left, search.right
    while not search.over:
        left, right = _orthonormal(left, right)
        left = rows.solve(left, right)
        turned, fixed = _orthonormal(right.T, left.T)
        left, right = fixed.T, columns.solve(turned, fixed).T
        search.see(left, right)
        if search.stalled(search.tolerance):
            return


def _orthonormal(factor: Matrix, fixed: Matrix) -> tuple[Matrix, Matrix]:
    """Return factors of the same product, the second with orthonormal rows."""
    basis, triangle = np.linalg.qr(fixed.T)
    return factor @ triangle.T, np.ascontiguousarray(basis.T)


def _em(search: _Search) -> None:
    """Repeat `Z ← [Ω ∘ W + (1 − Ω) ∘ Z]_r`, Ω the importance clipped to 1.

    Source: Srebro and Jaakkola (ICML 2003). Each step lowers the error under the clipped
    importance, by the less the more entries are far below 1: with heavy tails it stalls. So, which
    is an addition, the clip starts at the median, where steps are large, and rises at each stall.
    """
    left, right = search.left, search.right
    clips = np.percentile(search.importance, _CLIPS)
    for clip in np.unique(clips[clips > 0]):
        share = np.minimum(search.importance / clip, 1.0)
        tolerance = search.tolerance if clip == clips[-1] else _STALL
        before = np.inf
        while not search.over:
            known = left @ right
            residual = search.weight - known
            pull = share * residual
            # of the clipped error: the true one may rise under a low clip
            after = float(np.sqrt(np.vdot(pull, residual)))
            if not after < (1 - tolerance) * before:
                break
            left, right = _truncated(known + pull, len(right))
            search.see(left, right)
            before = after


def _truncated(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return factors of the best approximation of a rank, the smaller one orthonormal."""
    rows, columns = matrix.shape
    if rows > columns:
        right, left = _truncated(matrix.T, rank)
        return left.T, right.T
    _, vectors = linalg.eigh(matrix @ matrix.T, subset_by_index=[rows - rank, rows - 1])
    return vectors, vectors.T @ matrix


def _adam_sgd(search: _Search) -> None:
    left, right = _balanced(search, np.random.default_rng(search.seed))

    def gradient(a: Matrix, b: Matrix, pull: Matrix) -> Matrix:
        """Return the gradient of the squared relative error, flat."""
        scaled = pull * (-2 / search.norm**2)
        return np.concatenate([(scaled @ b.T).ravel(), (a.T @ scaled).ravel()])

    def look(position: Matrix) -> tuple[float, Matrix]:
        a = position[: left.size].reshape(left.shape)
        b = position[left.size :].reshape(right.shape)
        pull = search.see(a, b)
        return search.errors[-1], gradient(a, b, pull)

    start = np.concatenate([left.ravel(), right.ravel()])
    pull = search.importance * (search.weight - left @ right)
    descend(start, gradient(left, right, pull), look, search.iterations)


def _balanced(search: _Search, generator: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Return factors of the same product whose components are equally large on both sides.

    A component that is zero on both sides has no gradient: its right side is drawn at random.
    """
    first, upper = np.linalg.qr(search.left)
    second, lower = np.linalg.qr(search.right.T)
    u, values, vt = np.linalg.svd(upper @ lower.T)
    left, right = first @ (u * np.sqrt(values)), np.sqrt(values)[:, None] * (vt @ second.T)
    empty = values <= np.finfo(np.float64).eps * values[0] * len(values)
    if empty.any():
        drawn = generator.standard_normal((int(empty.sum()), right.shape[1]))
        mean = np.linalg.norm(search.weight) / np.sqrt(search.weight.size)
        left[:, empty], right[empty] = 0.0, drawn * np.sqrt(mean)
    return left, right


def _complete(
    search: _Search, rows: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_]
) -> tuple[Matrix, Matrix]:
    """Fit the rows and columns that have no importance to the other factor."""
    left, right = search.left.copy(), search.right.copy()
    if not rows.all():
        inverse = np.linalg.pinv(right[:, columns], rcond=_NEGLIGIBLE)
        left[~rows] = search.weight[np.ix_(~rows, columns)] @ inverse
    if not columns.all():
        right[:, ~columns] = np.linalg.pinv(left, rcond=_NEGLIGIBLE) @ search.weight[:, ~columns]
    return left, right


def _expect(weight: Matrix, importance: Matrix, left: Matrix, right: Matrix) -> None:
    if weight.ndim != 2 or not weight.size:
        raise UsageError(f"weight has shape {weight.shape}, expected a matrix with entries")
    if importance.shape != weight.shape:
        raise UsageError(
            f"importance has shape {importance.shape}, expected the weight's {weight.shape}"
        )
    rows, columns = weight.shape
    rank = left.shape[-1] if left.ndim == 2 else 0
    if not 1 <= rank <= min(rows, columns) or (left.shape, right.shape) != (
        (rows, rank),
        (rank, columns),
    ):
        raise UsageError(
            f"factors have shapes {left.shape} and {right.shape}, expected ({rows}, rank) and "
            f"(rank, {columns}) with a rank of 1 to {min(rows, columns)}"
        )
    for name, part in (("weight", weight), ("left", left), ("right", right)):
        if not np.isfinite(part).all():
            raise UsageError(f"{name} has NaN or infinite entries, expected finite numbers")
    _expect_importance(importance)
    if not importance.any():
        raise UsageError("importance is zero everywhere, expected at least one positive entry")


def _expect_importance(importance: Matrix) -> None:
    if not importance.size or not np.isfinite(importance).all() or (importance < 0).any():
        raise UsageError("importance must be finite numbers, none negative, at least one")


_SOLVERS: dict[str, tuple[Callable[[_Search], None], int]] = {
    "als": (_als, 40),
    "em": (_em, 200),
    "adam-sgd": (_adam_sgd, 200),
}

SOLVERS = tuple(_SOLVERS)
"""What `fit_weighted` solves with, the default first."""
