"""Rounding with error feedback: what one input's rounding breaks, the next ones make up for.

Source: GPTQ (Frantar et al., ICLR 2023), which is optimal brain quantisation in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.numbers.formats import Format
from onnxlr.numbers.grid import Grid, choose_grid

__all__ = ["DAMPING", "round_with_feedback"]

Matrix = npt.NDArray[np.float64]

DAMPING = 0.01
"""Part of the covariance's mean diagonal that is added to its diagonal."""

_BLOCK = 128
"""Inputs whose feedback is applied entry by entry; later ones get it by one matrix product."""


def round_with_feedback(
    matrix: Matrix, hessian: Matrix, format: Format, compute: npt.DTypeLike
) -> tuple[Matrix, Matrix, Matrix | None]:
    """Return codes, scales and zero points that keep the outputs, rather than the numbers.

    Parameters
    ----------
    matrix
        Shape `(*batch, inputs, outputs)`.
    hessian
        Covariance of the inputs, `(parts, inputs, inputs)`; the outputs are that many equal parts,
        and each part has inputs of its own.
    format
        An integer format.
    compute
        Float type that scales are kept in.

    Returns
    -------
    codes, scales, zero_points
        Shapes `(*batch, inputs, outputs)`, and `(*batch, groups, outputs)` twice.
    """
    *batch, inputs, outputs = matrix.shape
    roots = [_feedback(part) for part in hessian]
    found = [
        [
            _round(part, root, format, compute)
            for part, root in zip(np.split(one, len(roots), axis=1), roots, strict=True)
        ]
        for one in matrix.reshape(-1, inputs, outputs)
    ]

    def joined(position: int) -> Any:
        if found[0][0][position] is None:
            return None
        stack = [np.concatenate([part[position] for part in one], axis=1) for one in found]
        return np.stack(stack).reshape(*batch, -1, outputs)

    return joined(0), joined(1), joined(2)


def _feedback(hessian: Matrix) -> Matrix:
    """Return the upper Cholesky factor of the damped covariance's inverse."""
    size = len(hessian)
    scale = float(np.trace(hessian)) / size
    damped = hessian + np.eye(size) * (DAMPING * scale if scale > 0 else 1.0)
    inverse = linalg.cho_solve(linalg.cho_factor(damped, lower=True), np.eye(size))
    return np.asarray(linalg.cholesky((inverse + inverse.T) / 2, lower=False))


def _round(
    matrix: Matrix, root: Matrix, format: Format, compute: npt.DTypeLike
) -> tuple[Matrix, Matrix, Matrix | None]:
    """Round one matrix, input by input; a group's grid is chosen when its turn comes."""
    left = matrix.copy()
    inputs = len(left)
    group = format.group or inputs
    plain = Format(format.kind)
    codes = np.empty_like(left)
    grids: list[Grid] = []
    for begin in range(0, inputs, _BLOCK):
        end = min(begin + _BLOCK, inputs)
        errors = np.empty((end - begin, left.shape[1]))
        for row in range(begin, end):
            if row % group == 0:
                # Feedback within the block has arrived; that of earlier blocks as well.
                grids.append(choose_grid(left[row : row + group], plain, compute))
            codes[row] = grids[-1].codes(left[row : row + 1])[0]
            wrong = left[row] - grids[-1].values(codes[row : row + 1])[0]
            errors[row - begin] = wrong / root[row, row]
            left[row + 1 : end] -= np.outer(root[row, row + 1 : end], errors[row - begin])
        left[end:] -= root[begin:end, end:].T @ errors
    scales = np.concatenate([grid.scales for grid in grids])
    if grids[0].zero_points is None:
        return codes, scales, None
    return codes, scales, np.concatenate([_present(grid) for grid in grids])


def _present(grid: Grid) -> Matrix:
    if grid.zero_points is None:
        raise ValueError("some groups have zero points, some have not")
    return grid.zero_points
