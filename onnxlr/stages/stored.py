"""What all stages have in common: one array of numbers in a format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Encoded
from onnxlr.stages.cost import Cost, cost_of_product

__all__ = ["Stored"]


@dataclass(frozen=True)
class Stored:
    """A stage's numbers.

    Attributes
    ----------
    weight
        The array in its format.
    """

    weight: Encoded

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the step as a matrix, `(*batch, inputs, outputs)`."""
        return self.weight.shape

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return int(self.weight.codes.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers in their format."""
        return self.weight.nbytes

    @property
    def cost(self) -> Cost:
        """Of one row, or of one place in a convolution's output; all matrices of a batch count."""
        return cost_of_product(self.weight)

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the numbers in float64."""
        return self.weight.decode()
