"""An orthogonal dictionary and sparse coefficients of least error, in closed form each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["alternate"]

Matrix = npt.NDArray[np.float64]

_ROUNDS = 20
_RAMP = 8
"""Rounds until columns have no more entries than asked: fewer at once keeps poor atoms."""

_SETTLED = 1e-5
"""Relative change of the error at which nothing is gained any more."""


def alternate(points: Matrix, size: int, entries: int) -> tuple[Matrix, Matrix]:
    """Return `A` with orthonormal columns and `Z` with `P ≈ A Z`.

    `Z` is the largest entries of each column of `Aᵀ P`, which is best for orthonormal columns, and
    `A` the orthogonal Procrustes solution for `P Zᵀ`, in turn from the singular vectors (COMPOT,
    2026). With all entries it is the truncated singular value decomposition.

    Parameters
    ----------
    points
        Shape `(width, columns)`; weighed, where errors do not count alike.
    size
        Columns of `A`, at most `width`.
    entries
        Of each column of `Z` that are not 0.

    Returns
    -------
    tuple
        Matrices `(width, size)` and `(size, columns)`.
    """
    atoms = np.linalg.eigh(points @ points.T)[1][:, ::-1][:, :size]
    least, total = np.inf, float(np.vdot(points, points)) or 1.0
    for turn in range(_ROUNDS):
        seen = atoms.T @ points
        kept = max(entries, round(size - (size - entries) * (turn + 1) / _RAMP))
        taken = _largest(seen, kept)
        left, _, right = np.linalg.svd(points @ taken.T, full_matrices=False)
        atoms = left @ right
        wrong = points - atoms @ taken
        error = float(np.vdot(wrong, wrong)) / total
        if kept == entries and least - error <= _SETTLED * error:
            break
        if kept == entries:
            least = error
    return atoms, _largest(atoms.T @ points, entries)


def _largest(seen: Matrix, entries: int) -> Matrix:
    """Return the largest entries of each column, the others 0."""
    if entries >= len(seen):
        return seen
    small = np.argpartition(-np.abs(seen), entries - 1, axis=0)[entries:]
    found: Matrix = seen.copy()
    np.put_along_axis(found, small, 0.0, axis=0)
    return found
