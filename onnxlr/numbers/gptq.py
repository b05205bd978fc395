"""Rounding with error feedback: what one input's rounding breaks, the next ones make up for.

Source: GPTQ (Frantar et al., ICLR 2023), which is optimal brain quantisation in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.numbers.formats import Format
from onnxlr.numbers.grid import Grid, Rounded, choose_grid

__all__ = ["DAMPING", "Feedback", "round_with_feedback"]

Matrix = npt.NDArray[np.float64]

DAMPING = 0.01
"""Part of the covariance's mean diagonal that is added to its diagonal."""

_BLOCK = 128
"""Inputs whose feedback is applied entry by entry; later ones get it by one matrix product."""


@dataclass(frozen=True)
class Feedback:
    """What a covariance says of how errors are made up for.

    Attributes
    ----------
    damped
        The covariance of the inputs with `DAMPING`, `(inputs, inputs)`.
    root
        The upper Cholesky factor of its inverse.
    """

    damped: Matrix
    root: Matrix

    @classmethod
    def of(cls, hessian: Matrix) -> Feedback:
        """Return the feedback of a covariance `(inputs, inputs)`.

        With its rows and columns in reverse order, the covariance is `L Lᵀ`; `L⁻¹`, back in order,
        is upper triangular and the root asked for, without the inverse itself.
        """
        size = len(hessian)
        scale = float(np.trace(hessian)) / size
        damped = np.array(hessian, dtype=np.float64)
        damped[np.diag_indices(size)] += DAMPING * scale if scale > 0 else 1.0
        lower = linalg.cholesky(damped[::-1, ::-1], lower=True)
        inverse, status = linalg.lapack.dtrtri(lower, lower=1)
        if status:
            raise linalg.LinAlgError(f"a triangle of {size} rows is singular")
        return cls(damped, np.ascontiguousarray(inverse[::-1, ::-1]))


def round_with_feedback(
    matrix: Matrix, feedback: Feedback, format: Format, compute: npt.DTypeLike
) -> Rounded:
    """Return codes that keep the outputs, rather than the numbers.

    A group's grid is chosen when its turn comes, from what feedback has left. With `U` the root, an
    error of an input costs its square over the square of `U`'s diagonal there, however well later
    ones make up for it: that weighs the errors for grids that heed it.

    Parameters
    ----------
    matrix
        Shape `(inputs, outputs)`.
    feedback
        Of the covariance of the inputs.
    format
        One of few bits.
    compute
        Float type that scales are kept in.
    """
    left, root = matrix.copy(), feedback.root
    inputs = len(left)
    group = format.group or inputs
    plain = replace(format, group=None)
    weights = 1 / np.square(np.diagonal(root))
    codes = np.empty_like(left)
    grids: list[Grid] = []
    for begin in range(0, inputs, _BLOCK):
        end = min(begin + _BLOCK, inputs)
        errors = np.empty((end - begin, left.shape[1]))
        for row in range(begin, end):
            if row % group == 0:
                # Feedback within the block has arrived; that of earlier blocks as well.
                own = slice(row, row + group)
                grids.append(choose_grid(left[own], plain, compute, weights[own]))
            codes[row], values = (part[0] for part in grids[-1].nearest(left[row : row + 1]))
            errors[row - begin] = (left[row] - values) / root[row, row]
            left[row + 1 : end] -= np.outer(root[row, row + 1 : end], errors[row - begin])
        left[end:] -= root[begin:end, end:].T @ errors
    scales = np.concatenate([grid.scales for grid in grids], axis=-2)
    if grids[0].zero_points is None:
        return Rounded(codes, scales, None)
    return Rounded(codes, scales, np.concatenate([_present(grid) for grid in grids]))


def _present(grid: Grid) -> Matrix:
    if grid.zero_points is None:
        raise ValueError("some groups have zero points, some have not")
    return grid.zero_points
