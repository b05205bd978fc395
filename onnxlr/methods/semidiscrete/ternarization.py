"""From a vector of real numbers to one of −1, 0 and 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["THETA", "nearest_ternary", "published_ternary"]

Floats = npt.NDArray[np.float32]

THETA = 0.8386
"""Cosine between a unit vector and its ternary form from which on the published transition is
content."""


def nearest_ternary(vector: Floats) -> tuple[Floats, float]:
    """Return the ternary `t` of least angle to a vector, and `tᵀ p`.

    `(tᵀ p)² / ‖t‖²` is largest where `t` has the signs of the `J` largest entries, and for those it
    is `(Σ_{i≤J} |p|_(i))² / J` (Kolda and O'Leary, ACM Transactions on Mathematical Software 1998):
    one sort finds the best `J`. A vector of zeros gives zeros.
    """
    sizes = np.abs(vector)
    descending = np.sort(sizes)[::-1]
    sums = np.cumsum(descending, dtype=np.float64)
    best = int(np.argmax(np.square(sums) / np.arange(1, len(sums) + 1)))
    least = descending[best]
    if not least > 0:
        return np.zeros_like(vector), 0.0
    kept = sizes >= least
    return np.sign(vector) * kept, float(sizes[kept].sum(dtype=np.float64))


def published_ternary(vector: npt.NDArray[np.float64]) -> Floats:
    """Return the ternary vector of the published direct transition.

    The fewest largest entries whose signs have a cosine of at least `THETA` with the vector, and
    where none have, those of the largest cosine (Ternary Singular Value Decomposition).
    """
    sizes = np.abs(vector)
    order = np.argsort(-sizes, kind="stable")
    norm = float(np.linalg.norm(vector))
    if norm == 0:
        return np.zeros(len(vector), np.float32)
    cosines = np.cumsum(sizes[order]) / np.sqrt(np.arange(1, len(order) + 1)) / norm
    reached = np.flatnonzero(cosines >= THETA)
    count = int(reached[0] if len(reached) else np.argmax(cosines)) + 1
    kept = np.zeros(len(vector), np.float32)
    kept[order[:count]] = np.sign(vector[order[:count]])
    return kept
