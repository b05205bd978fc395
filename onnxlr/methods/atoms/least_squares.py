"""The dictionary of least error for coefficients that stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxlr.methods.atoms.codes import Codes
from onnxlr.methods.atoms.tiles import Tiles

__all__ = ["solve_dictionary"]

Single = npt.NDArray[np.float32]

_STEPS = 12
"""Conjugate gradient steps: coefficients are chosen anew behind them anyway."""


def solve_dictionary(
    tiles: Tiles, scales: Sequence[Single], codes: Sequence[Codes], atoms: Single
) -> Single:
    """Return the atoms of less squared error, `(atoms, width)`, started from given ones.

    Weighted least squares over all outputs: `Σ_o s_o² ‖H^½ (w_o/s_o − Z_o A)‖²`, by conjugate
    gradients preconditioned by its diagonal. Atoms that nothing takes stay as they are.
    """
    problem = _Problem(tiles, scales, codes)
    residual = problem.gradient(atoms)
    diagonal = problem.diagonal(atoms.shape)
    answer = atoms.astype(np.float64)
    scaled = residual / diagonal
    direction, slope = scaled, float(np.vdot(residual, scaled))
    start = slope
    for _ in range(_STEPS):
        if not slope > 1e-12 * start:
            break
        image = problem.product(direction.astype(np.float32))
        curvature = float(np.vdot(direction, image))
        if not curvature > 0:
            break
        answer += slope / curvature * direction
        residual = residual - slope / curvature * image
        scaled = residual / diagonal
        previous, slope = slope, float(np.vdot(residual, scaled))
        direction = scaled + slope / previous * direction
    return answer.astype(np.float32)


class _Problem:
    """The normal equations, never formed."""

    def __init__(self, tiles: Tiles, scales: Sequence[Single], codes: Sequence[Codes]) -> None:
        self.parts = [
            (part, own, np.square(own) * shares, code.matrix(), code.matrix().T.tocsr())
            for part, own, shares, code in zip(
                tiles.parts, scales, tiles.shares, codes, strict=True
            )
        ]

    def gradient(self, atoms: Single) -> npt.NDArray[np.float64]:
        """Return what is left on the right-hand side."""
        total = np.zeros(atoms.shape)
        for part, own, weights, spread, gather in self.parts:
            wrong = part.flat / own - _rows(spread @ atoms, part.numbers.shape)
            total += gather @ _columns(part.cost(wrong) * weights, part.numbers.shape)
        return total

    def product(self, atoms: Single) -> npt.NDArray[np.float64]:
        """Return the normal matrix times atoms."""
        total = np.zeros(atoms.shape)
        for part, _, weights, spread, gather in self.parts:
            image = part.cost(_rows(spread @ atoms, part.numbers.shape)) * weights
            total += gather @ _columns(image, part.numbers.shape)
        return total

    def diagonal(self, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        """Return the normal matrix's diagonal, but for tiles that take an atom twice."""
        total = np.zeros(shape)
        for part, _, weights, _, gather in self.parts:
            own = part.hessian if part.root is None else np.diagonal(part.hessian)
            costs = np.outer(own, weights).astype(np.float32)
            total += abs(gather).power(2) @ _columns(costs, part.numbers.shape)
        return np.where(total > 0, total, 1.0)


def _rows(columns: Single, shape: tuple[int, ...]) -> Single:
    """Return columns `(tiles · outputs, width)` as `(tiles · width, outputs)`."""
    tiles, width, outputs = shape
    apart = columns.reshape(tiles, outputs, width).swapaxes(1, 2)
    return np.ascontiguousarray(apart).reshape(-1, outputs)


def _columns(rows: Single, shape: tuple[int, ...]) -> Single:
    """Return `(tiles · width, outputs)` as columns `(tiles · outputs, width)`."""
    apart = rows.reshape(shape).swapaxes(1, 2)
    return np.ascontiguousarray(apart).reshape(-1, shape[1])
