"""TernaryMatMul as a value that checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.operators.arithmetic import multiplied, scaled_sum
from onnxlr.operators.packing import Codes, pack
from onnxlr.operators.schema import TernaryOperator

__all__ = ["TernaryMatMul"]


@dataclass(frozen=True, eq=False)
class TernaryMatMul(TernaryOperator):
    """A matrix: `ternary` is (terms, inputs, outputs), `input_scale` (inputs).

    Raises
    ------
    UsageError
        If the parts do not fit each other or the specification.
    """

    operator: ClassVar[str] = "TernaryMatMul"

    def __post_init__(self) -> None:
        if self.ternary.ndim != 3:
            raise self._wrong("weights", self.ternary.shape, "(terms, inputs, outputs)")
        self._check(self.inputs)

    @property
    def inputs(self) -> int:
        """Inputs of the matrix, K."""
        return int(self.ternary.shape[1])

    @property
    def outputs(self) -> int:
        """Outputs of the matrix, N."""
        return int(self.ternary.shape[2])

    @property
    def codes(self) -> Codes:
        """The packed weights (terms, panels, blocks, 64)."""
        return pack(self.ternary)

    def reference(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the result (…, outputs) of x (…, inputs) by numpy, with sums in float64."""
        matrix = scaled_sum(self.ternary, self.scales, self.group_size)
        return multiplied(x * self.input_scale, matrix, self.accuracy_level) + self.bias
