"""Matrices and kernels that are kept as sums of few atoms, and multiplied as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Encoded, Format
from onnxlr.numbers.atoms import Atoms
from onnxlr.stages.convolution import Convolution
from onnxlr.stages.cost import Cost, cost_of_product
from onnxlr.stages.linear import Linear

__all__ = ["Recombined", "RecombinedConvolution", "RecombinedLinear", "recombined"]

Matrix = npt.NDArray[np.float64]


class _Kept:
    """What is stored is less than what is multiplied."""

    weight: Encoded
    atoms: Atoms

    @property
    def format(self) -> Format:
        """What the dictionary is kept in."""
        return self.atoms.dictionary.format

    @property
    def parameters(self) -> int:
        """Stored numbers: of the dictionary, coefficients that are not 0, and scales."""
        return self.atoms.parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, with the places of the coefficients."""
        return self.atoms.nbytes

    @property
    def cost(self) -> Cost:
        """Numbers and bytes that are stored, and the arithmetic of the dense product."""
        dense = cost_of_product(self.weight)
        return replace(dense, parameters=self.parameters, bytes=self.nbytes)


@dataclass(frozen=True)
class RecombinedLinear(_Kept, Linear):
    """`y = x @ W`, with `W` made of atoms.

    Attributes
    ----------
    weight
        The matrix, in float64; what stages of one matrix have.
    atoms
        What is stored.
    each_run
        Whether the matrix is made anew in each run, so that memory holds only what is stored, and
        not once when the model is loaded.
    """

    atoms: Atoms
    each_run: bool = False

    def encoded(
        self,
        format: Format,  # noqa: ARG002
        compute: npt.DTypeLike,  # noqa: ARG002
        hessian: Matrix | None = None,  # noqa: ARG002
    ) -> RecombinedLinear:
        """Return itself: its numbers have their own grids."""
        return self


@dataclass(frozen=True)
class RecombinedConvolution(_Kept, Convolution):
    """A convolution in groups, with a kernel made of atoms.

    Attributes
    ----------
    weight
        The kernel, in float64; what stages of one kernel have.
    atoms, each_run
        As `RecombinedLinear` has them.
    """

    atoms: Atoms
    each_run: bool = False

    def encoded(
        self,
        format: Format,  # noqa: ARG002
        compute: npt.DTypeLike,  # noqa: ARG002
        hessian: Matrix | None = None,  # noqa: ARG002
    ) -> RecombinedConvolution:
        """Return itself: its numbers have their own grids."""
        return self


Recombined: TypeAlias = RecombinedLinear | RecombinedConvolution


def recombined(
    atoms: Atoms, groups: int | None, window: tuple[int, ...], each_run: bool = False
) -> Recombined:
    """Return the stage of a weight that is made of atoms.

    Parameters
    ----------
    atoms
        What is stored.
    groups, window
        As `Convolution` has them; groups are None for a matrix.
    each_run
        Whether the weight is made in each run, and not when the model is loaded.

    Raises
    ------
    ValueError
        If a matrix is meant for a convolution, or a kernel for a product.
    """
    if atoms.kernel != (groups is not None):
        raise ValueError("kernels are for convolutions in groups, matrices for products without")
    weight = Encoded(Format("float64"), atoms.decode(), kernel=atoms.kernel)
    if groups is None:
        return RecombinedLinear(weight, atoms, each_run)
    return RecombinedConvolution(weight, groups, window, atoms, each_run)
