"""Coefficients in the making: which atoms a tile takes, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse

__all__ = ["Codes", "improve", "pursue"]

Single = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_ROUNDS = 2
"""How often each entry is chosen anew while the others stay, behind the greedy choice."""

_RIDGE = 1e-6
"""Added to products of atoms with themselves, of their mean: atoms may be alike."""

_CHUNK = 1 << 21
"""Numbers of a table of gains that are in memory at once."""


@dataclass(frozen=True)
class Codes:
    """What columns take of a dictionary.

    Attributes
    ----------
    size
        Atoms of the dictionary.
    indices
        Shape `(…, entries)`.
    values
        Of the same shape; None where all are 1.
    """

    size: int
    indices: Indices
    values: Single | None

    def combine(self, atoms: Single) -> Single:
        """Return the sums of atoms `(size, width)`, `(…, width)`."""
        found = self.matrix() @ atoms
        return np.asarray(found).reshape(*self.indices.shape[:-1], atoms.shape[1])

    def matrix(self) -> sparse.csr_matrix:
        """Return the coefficients of all columns, `(columns, size)`."""
        entries = self.indices.shape[-1]
        count = self.indices.size
        values = np.ones(count, np.float32) if self.values is None else self.values.reshape(-1)
        starts = np.arange(0, count + 1, entries)
        shape = (count // entries, self.size)
        return sparse.csr_matrix((values, self.indices.reshape(-1), starts), shape=shape)


def pursue(
    seen: Single, gram: Single, entries: int, largest: float | None
) -> tuple[Indices, Single | None]:
    """Return the entries of columns: one by one what gains most, then each anew.

    For a target `w` in a metric `S`, atoms `a_j` and a residual `r`, taking `v` of an atom lowers
    `‖r‖²_S` by `v (2 ⟨a_j, r⟩ − v ⟨a_j, a_j⟩)`: orthogonal matching pursuit on a grid, followed by
    coordinate descent over entries. Entries that no grid binds are solved for in the end, all of a
    column at once.

    Parameters
    ----------
    seen
        `⟨a_j, w⟩_S` for each column, `(columns, size)`.
    gram
        `⟨a_i, a_j⟩_S`, `(size, size)`.
    entries
        Of each column.
    largest
        The largest magnitude of an entry, which is a whole number; infinity for any number, None
        where all are 1.

    Returns
    -------
    tuple
        Indices and values `(columns, entries)`; an atom has one entry at most if there are values.
    """
    columns, size = seen.shape
    indices = np.zeros((columns, entries), np.int64)
    values = None if largest is None else np.zeros((columns, entries), np.float32)
    rows = max(_CHUNK // size, 1)
    for first in range(0, columns, rows):
        own = slice(first, first + rows)
        part = None if values is None else values[own]
        _pursue(seen[own].copy(), gram, indices[own], part, largest)
    return indices, values


def improve(
    seen: Single, gram: Single, indices: Indices, values: Single | None, largest: float | None
) -> None:
    """Choose each entry anew while the others stay; in place, the error never rises.

    Parameters as in `pursue`.
    """
    rows = max(_CHUNK // seen.shape[1], 1)
    for first in range(0, len(seen), rows):
        own = slice(first, first + rows)
        part = None if values is None else values[own]
        lacking = seen[own].copy()
        for entry in range(indices.shape[1]):
            _take(lacking, gram, indices[own], part, entry, 1)
        _cycle(lacking, gram, indices[own], part, largest)
        if part is not None and largest == inf:
            _settle(lacking, gram, indices[own], part)


def _pursue(
    seen: Single, gram: Single, indices: Indices, values: Single | None, largest: float | None
) -> None:
    entries = indices.shape[1]
    if values is not None and entries == seen.shape[1]:
        indices[:] = np.arange(entries)
    else:
        indices[:] = -1
        for entry in range(entries):
            _choose(seen, np.diagonal(gram), indices, values, entry, largest)
            _take(seen, gram, indices, values, entry, 1)
    for _ in range(_ROUNDS):
        _cycle(seen, gram, indices, values, largest)
    if values is not None and largest == inf:
        _settle(seen, gram, indices, values)


def _cycle(
    lacking: Single, gram: Single, indices: Indices, values: Single | None, largest: float | None
) -> None:
    """Choose each entry anew once; `lacking` is `⟨a_j, r⟩` for the residual of all entries."""
    diagonal = np.diagonal(gram)
    fixed = values is not None and indices.shape[1] == lacking.shape[1]
    for entry in range(indices.shape[1]):
        _take(lacking, gram, indices, values, entry, -1)
        if fixed and values is not None:
            atom = indices[0, entry]
            values[:, entry] = _rounded(lacking[:, atom], diagonal[atom], largest)
        else:
            _choose(lacking, diagonal, indices, values, entry, largest)
        _take(lacking, gram, indices, values, entry, 1)


def _settle(lacking: Single, gram: Single, indices: Indices, values: Single) -> None:
    """Give the atoms of each column the amounts of least squared error; in place.

    What is solved for is the change, which with any ridge lowers the error or is 0.
    """
    columns, entries = indices.shape
    whole = gram.astype(np.float64)
    ridge = _RIDGE * (float(np.diagonal(whole).mean()) or 1.0) * np.eye(entries)
    if entries == len(gram):
        seen = np.take_along_axis(lacking, indices, axis=1).T
        values += linalg.solve(whole + ridge, seen, assume_a="sym").T
        return
    rows = max(_CHUNK // entries**2, 1)
    for first in range(0, columns, rows):
        own = indices[first : first + rows]
        seen = np.take_along_axis(lacking[first : first + rows], own, axis=1)
        grams = whole[own[:, :, None], own[:, None, :]] + ridge
        values[first : first + rows] += np.linalg.solve(grams, seen[..., None])[..., 0]


def _take(
    lacking: Single, gram: Single, indices: Indices, values: Single | None, entry: int, sign: int
) -> None:
    """Take an entry out of the residual (`sign` 1), or give it back (−1)."""
    if values is None:
        lacking -= sign * gram[indices[:, entry]]
    elif indices.shape[1] == lacking.shape[1]:
        lacking -= np.outer(sign * values[:, entry], gram[indices[0, entry]])
    else:
        lacking -= (sign * values[:, entry])[:, None] * gram[indices[:, entry]]


def _choose(
    lacking: Single,
    diagonal: Single,
    indices: Indices,
    values: Single | None,
    entry: int,
    largest: float | None,
) -> None:
    """Set an entry to what gains most."""
    if values is None:
        np.argmax(lacking - diagonal / 2, axis=1, out=indices[:, entry])
        return
    best = _rounded(lacking, diagonal, largest)
    gains = best * (2 * lacking - best * diagonal)
    rows = np.arange(len(lacking))
    for other in range(indices.shape[1]):
        if other != entry:
            taken = indices[:, other]
            known = taken >= 0
            gains[rows[known], taken[known]] = -inf
    np.argmax(gains, axis=1, out=indices[:, entry])
    values[:, entry] = best[rows, indices[:, entry]]


def _rounded(lacking: Single, diagonal: Single, largest: float | None) -> Single:
    """Return the best amount of atoms on the grid."""
    exact = lacking / np.where(diagonal > 0, diagonal, 1)
    if largest is None or largest == inf:
        return np.asarray(exact)
    return np.asarray(np.clip(np.rint(exact), -largest, largest))
