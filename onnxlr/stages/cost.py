"""What stages cost: stored numbers, their bytes, and the arithmetic of one position."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from onnxlr.numbers import Encoded

__all__ = ["Cost", "cost_of_product"]


@dataclass(frozen=True)
class Cost:
    """Counts, which add up over stages; they are no measure of time.

    Attributes
    ----------
    parameters, bytes
        Stored numbers, and what they take.
    additions, multiplications
        For one position: a row of the input, or a place in the output of a convolution's stage.
    trits
        Of the parameters, those that are −1, 0 or 1, each term of a ternary weight by itself.
    nonzeros
        Of these, those that are not 0.
    """

    parameters: int = 0
    bytes: int = 0
    additions: int = 0
    multiplications: int = 0
    trits: int = 0
    nonzeros: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both."""
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def cost_of_product(weight: Encoded) -> Cost:
    """Return the cost of multiplying by a weight.

    A ternary weight adds where its numbers are not 0, and multiplies by its scales unless all of
    them are 1. Any other adds and multiplies once for each entry.
    """
    parameters = int(weight.codes.size)
    if not weight.format.is_ternary or weight.scales is None:
        return Cost(parameters, weight.nbytes, parameters, parameters)
    nonzeros = _nonzeros(weight)
    scales = 0 if np.all(weight.scales == 1) else int(weight.scales.size)
    trits = parameters * weight.format.terms
    return Cost(parameters, weight.nbytes, nonzeros, scales, trits, nonzeros)


def _nonzeros(weight: Encoded) -> int:
    """Return how many digits of the codes stand for something else than 0."""
    terms = weight.format.terms
    codes = np.arange(3**terms)
    digits = codes // 3 ** np.arange(terms)[:, None] % 3
    each = (digits != 1).sum(axis=0).astype(np.uint8)
    return int(each[weight.codes].sum(dtype=np.int64))
