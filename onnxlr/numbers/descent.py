"""Coordinate descent over ternary codes and scales: each step lowers the error of the outputs.

GPTQ rounds every number once and never comes back to it. Here each scale and each code in turn is
set to what is best while all others stay, a group of inputs at a time, as CDQuant (Nair and
Suggala, 2024) does for integer codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.formats import Format
from onnxlr.numbers.grid import Rounded
from onnxlr.numbers.scales import stored
from onnxlr.numbers.ternary_grid import TernaryGrid
from onnxlr.numbers.trits import codes_of, trits_of

__all__ = ["descend"]

Matrix = npt.NDArray[np.float64]

_SWEEPS = 4
"""How often all are passed through: later ones win less than 1 % of the error."""

_BLOCK = 128
"""Inputs whose changes reach each other entry by entry; later ones by one matrix product."""

_RIDGE = 1e-12
"""Part of the trace added to the diagonal where two terms have the same trits everywhere."""


def descend(
    matrix: Matrix, damped: Matrix, start: Rounded, format: Format, compute: npt.DTypeLike
) -> Rounded:
    """Return ternary codes and scales of an error in the outputs not above that of the start.

    Parameters
    ----------
    matrix
        The numbers `W`, `(inputs, outputs)`.
    damped
        Covariance `C` of the inputs, damped, `(inputs, inputs)`: the error of each output is its
        column's `(w − ŵ)ᵀ C (w − ŵ)`.
    start
        Codes and scales to start from.
    format
        A ternary format.
    compute
        Float type that scales are kept in.
    """
    size = format.group or len(matrix)
    plain = Format("ternary", terms=format.terms)
    codes, scales = start.codes.copy(), start.scales.copy()
    error = matrix - TernaryGrid(format, scales).values(codes)
    groups = [slice(begin, begin + size) for begin in range(0, len(matrix), size)]
    for _ in range(_SWEEPS):
        for number, rows in enumerate(groups):
            group = _Group(damped[rows, rows], damped[rows] @ error, codes[rows], plain, compute)
            change = group.solve_scales(scales[:, number])
            error[rows] -= change
            error[rows] -= group.choose_codes(scales[:, number])
    return Rounded(codes, scales, None)


@dataclass(frozen=True)
class _Group:
    """A group of inputs while all others stay as they are.

    Attributes
    ----------
    covariance
        Of its inputs, `(inputs, inputs)`.
    pull
        `C (w − ŵ)` at its inputs, kept up to date: half the slope of the error, downwards.
    codes
        Its codes, changed in place.
    format, compute
        A ternary format without groups, and the type of scales.
    """

    covariance: Matrix
    pull: Matrix
    codes: Matrix
    format: Format
    compute: npt.DTypeLike

    def solve_scales(self, scales: Matrix) -> Matrix:
        """Set scales `(terms, outputs)` to the least squares solution where it is better.

        Returns the change of the numbers, `(inputs, outputs)`.
        """
        trits = trits_of(self.codes, self.format.terms)
        seen = self.covariance @ trits
        normal = np.einsum("sin,tin->nst", trits, seen)
        right = np.einsum("sin,in->ns", trits, self.pull)
        trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
        ridge = (_RIDGE * trace + np.finfo(np.float64).tiny) * np.eye(len(scales))
        wanted = scales + np.linalg.solve(normal + ridge, right[..., None])[..., 0].T
        signs = np.where(wanted < 0, -1.0, 1.0)
        kept = stored(np.abs(wanted), self.compute)
        step = (signs * kept - scales).T
        gain = np.einsum("ns,ns->n", step, 2 * right - np.einsum("nst,nt->ns", normal, step))
        better = gain > 0
        step[~better] = 0.0
        change = np.einsum("tin,nt->in", trits, step)
        scales[:, better] = kept[:, better]
        flipped = np.where(better, signs, 1.0)
        if (flipped < 0).any():
            self.codes[:] = codes_of(trits * flipped[:, None, :])
        self.pull[:] -= self.covariance @ change
        return np.asarray(change)

    def choose_codes(self, scales: Matrix) -> Matrix:
        """Set each input's codes in turn to those of least error; return the change of numbers."""
        grid = TernaryGrid(self.format, scales[:, None])
        before = grid.values(self.codes)
        after = np.empty_like(before)
        diagonal = np.diagonal(self.covariance)
        for begin in range(0, len(before), _BLOCK):
            end = min(begin + _BLOCK, len(before))
            for row in range(begin, end):
                wanted = before[row] + self.pull[row] / diagonal[row]
                self.codes[row], after[row] = (part[0] for part in grid.nearest(wanted[None]))
                step = after[row] - before[row]
                self.pull[row + 1 : end] -= np.outer(self.covariance[row + 1 : end, row], step)
            changed = after[begin:end] - before[begin:end]
            self.pull[end:] -= self.covariance[end:, begin:end] @ changed
        return np.asarray(after - before)
