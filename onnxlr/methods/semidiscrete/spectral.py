"""The norm that the published method measures its error in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.sparse.linalg import svds

__all__ = ["spectral_norm"]

_SMALL = 64
"""Smaller side up to which all singular values are taken."""


def spectral_norm(matrix: npt.NDArray[np.float32]) -> float:
    """Return the largest singular value `‖M‖₂`."""
    if not matrix.any():
        return 0.0  # ARPACK takes no zeros
    if min(matrix.shape) <= _SMALL:
        return float(linalg.norm(matrix, 2))
    start = np.ones(min(matrix.shape), np.float32)
    return float(svds(matrix, k=1, v0=start, return_singular_vectors=False)[0])
