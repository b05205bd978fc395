"""Rounding matrices and stacks of them to codes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxlr.numbers.descent import descend
from onnxlr.numbers.formats import Format
from onnxlr.numbers.gptq import Feedback, round_with_feedback
from onnxlr.numbers.grid import Rounded, choose_grid
from onnxlr.numbers.ternary_grid import TernaryGrid

__all__ = ["round_to"]

Matrix = npt.NDArray[np.float64]


def round_to(
    matrix: Matrix, format: Format, compute: npt.DTypeLike, hessian: Matrix | None
) -> Rounded:
    """Round to a format of few bits, as `encode` does.

    Parameters
    ----------
    matrix
        Shape `(*batch, inputs, outputs)`.
    format
        An integer or ternary format.
    compute
        Float type that scales are kept in.
    hessian
        Covariance of the inputs, `(parts, inputs, inputs)`; the outputs are that many equal parts,
        and each part has inputs of its own. None to round each number to the nearest.
    """
    *batch, inputs, outputs = matrix.shape
    feedbacks: Sequence[Feedback | None] = [None]
    if hessian is not None:
        feedbacks = _feedbacks(hessian)
    parts = [
        _rounded(part, feedback, format, compute)
        for one in matrix.reshape(-1, inputs, outputs)
        for part, feedback in zip(np.split(one, len(feedbacks), axis=1), feedbacks, strict=True)
    ]

    def joined(arrays: list[Matrix]) -> Matrix:
        stack = [
            np.concatenate(arrays[first : first + len(feedbacks)], axis=-1)
            for first in range(0, len(arrays), len(feedbacks))
        ]
        return np.stack(stack).reshape(*batch, *stack[0].shape)

    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Rounded(
        joined([part.codes for part in parts]),
        joined([part.scales for part in parts]),
        joined(zeros) if zeros else None,
    )


_known: dict[int, list[Feedback]] = {}
"""Feedbacks of covariances that are alive, by their identity."""

_REMEMBERED = 2
"""Covariances whose feedback is kept: with the usual shrinkage, and with another."""


def _feedbacks(hessian: Matrix) -> list[Feedback]:
    """Return the feedback of each part; many formats are tried on one layer's inputs in a row."""
    key = id(hessian)
    if key not in _known:
        while len(_known) >= _REMEMBERED:
            _known.pop(next(iter(_known)))
        _known[key] = [Feedback.of(part) for part in hessian]
        weakref.finalize(hessian, _known.pop, key, None)
    return _known[key]


def _rounded(
    matrix: Matrix, feedback: Feedback | None, format: Format, compute: npt.DTypeLike
) -> Rounded:
    if feedback is None:
        return Rounded.nearest(matrix, choose_grid(matrix, format, compute))
    found = round_with_feedback(matrix, feedback, format, compute)
    if not format.is_ternary:
        return found
    plain = Rounded.nearest(matrix, choose_grid(matrix, format, compute))
    start = _better(matrix, feedback.damped, found, plain, format)
    return descend(matrix, feedback.damped, start, format, compute)


def _better(
    matrix: Matrix, damped: Matrix, one: Rounded, other: Rounded, format: Format
) -> Rounded:
    """Return for each output the ternary numbers of less error under a covariance.

    Where a group has hardly more numbers than terms, the nearest can be exact.
    """
    errors = []
    for rounded in (one, other):
        wrong = matrix - TernaryGrid(format, rounded.scales).values(rounded.codes)
        errors.append(np.sum(wrong * (damped @ wrong), axis=0))
    first = errors[0] <= errors[1]
    return Rounded(
        np.where(first, one.codes, other.codes), np.where(first, one.scales, other.scales), None
    )
