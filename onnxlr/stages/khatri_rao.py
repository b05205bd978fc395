"""A matrix whose columns, or rows, are Kronecker products of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Encoded, Format, encode
from onnxlr.stages.cost import Cost
from onnxlr.stages.linear import Linear

__all__ = ["KhatriRao"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class KhatriRao(Linear):
    """`y = x @ W`, with `W` the Khatri-Rao product of factors (Kolda and Bader 2009, §2.6).

    Entry `(i₁ i₂ …, r)` of the product is `F₁[i₁, r] F₂[i₂, r] …`. The factors are stored, and the
    data is multiplied by their product.

    Attributes
    ----------
    weight
        The product, in float64; what stages of one matrix have.
    factors
        In their format, each of shape `(size, components)`.
    gathers
        Whether the components are the outputs; otherwise they are the inputs, and the matrix is the
        product transposed.
    """

    factors: tuple[Encoded, ...]
    gathers: bool

    @classmethod
    def of_factors(cls, factors: Sequence[npt.NDArray[Any]], gathers: bool) -> KhatriRao:
        """Return the stage of exact factors `(size, components)`, kept in float64."""
        return cls._of([encode(factor, Format("float64")) for factor in factors], gathers)

    @classmethod
    def _of(cls, factors: Sequence[Encoded], gathers: bool) -> KhatriRao:
        product = reduce(
            lambda a, b: (a[:, None] * b).reshape(-1, a.shape[1]),
            [factor.decode() for factor in factors],
        )
        whole = encode(product if gathers else product.T, Format("float64"))
        return cls(whole, tuple(factors), gathers)

    @property
    def format(self) -> Format:
        """What the factors are kept in."""
        return self.factors[0].format

    @property
    def parameters(self) -> int:
        """Entries of the factors."""
        return sum(int(factor.codes.size) for factor in self.factors)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return sum(factor.nbytes for factor in self.factors)

    @property
    def cost(self) -> Cost:
        """Numbers of the factors, and the arithmetic of their product."""
        return replace(super().cost, parameters=self.parameters, bytes=self.nbytes)

    def encoded(
        self,
        format: Format,
        compute: npt.DTypeLike,
        hessian: Matrix | None = None,  # noqa: ARG002
    ) -> KhatriRao:
        """Return the same step with its factors rounded to a float format.

        Raises
        ------
        ValueError
            If the format is of few bits, whose products have no scales.
        """
        if not format.is_float:
            raise ValueError(f"factors of a Khatri-Rao product are floats, not {format}")
        rounded = [encode(factor.decode(), format, compute) for factor in self.factors]
        return self._of(rounded, self.gathers)
