"""Trits and their codes: a digit to the base 3 for each term, the first term's the lowest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["codes_of", "trits_of"]


def codes_of(trits: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the codes of −1, 0 and 1, `(terms, …)`: digits 0, 1, 2 stand for them."""
    digits = np.asarray(trits, np.int16) + 1
    powers = 3 ** np.arange(len(trits), dtype=np.int16).reshape(-1, *[1] * (trits.ndim - 1))
    return np.asarray((digits * powers).sum(axis=0), np.uint8)


def trits_of(codes: npt.NDArray[Any], terms: int) -> npt.NDArray[np.int8]:
    """Return −1, 0 and 1, `(terms, *shape)`, of codes."""
    left = np.asarray(codes, np.uint8)
    found = np.empty((terms, *left.shape), np.int8)
    for term in range(terms):
        left, digits = np.divmod(left, np.uint8(3))
        found[term] = digits.astype(np.int8) - 1
    return found
