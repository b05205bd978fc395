"""Chains applied side by side, whose results are added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format
from onnxlr.stages.chain import Chain
from onnxlr.stages.cost import Cost

__all__ = ["Sum"]


@dataclass(frozen=True)
class Sum:
    """`y = branch₁(x) + branch₂(x) + …`: several terms, or a coarse weight and its correction.

    Attributes
    ----------
    branches
        At least two chains that take the same inputs and make the same outputs.
    """

    branches: tuple[Chain, ...]

    def __post_init__(self) -> None:
        ends = {
            (branch.stages[0].shape[-2], branch.stages[-1].shape[-1]) for branch in self.branches
        }
        if len(self.branches) < 2 or len(ends) > 1:
            raise ValueError(f"branches with inputs and outputs {sorted(ends)} make no sum")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the step as a matrix, `(*batch, inputs, outputs)`."""
        first = self.branches[0].stages
        return (*first[0].shape[:-1], first[-1].shape[-1])

    @property
    def parameters(self) -> int:
        """Stored numbers of all branches."""
        return self.cost.parameters

    @property
    def nbytes(self) -> int:
        """Bytes of all branches."""
        return self.cost.bytes

    @property
    def cost(self) -> Cost:
        """Of all branches, and the additions of their results."""
        *batch, _, outputs = self.shape
        added = prod(batch) * outputs * (len(self.branches) - 1)
        return reduce(add, (branch.cost for branch in self.branches), Cost(additions=added))

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the weight that the branches are together."""
        first, *others = (branch.reconstruct() for branch in self.branches)
        for other in others:
            first = first + other
        return first

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the weight of a step `dense` followed by this one."""
        total: npt.NDArray[np.float64] | None = None
        for branch in self.branches:
            result = dense
            for stage in branch.stages:
                result = stage.after(result)
            total = result if total is None else total + result
        return np.asarray(total)

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the sum of the branches' outputs for `x`."""
        first, *others = (branch.apply(x) for branch in self.branches)
        for other in others:
            first = first + other
        return first

    def encoded(
        self,
        format: Format,
        compute: npt.DTypeLike,
        hessian: npt.NDArray[np.float64] | None = None,  # noqa: ARG002
    ) -> Sum:
        """Return the same step with every branch kept in `format`."""
        return Sum(tuple(branch.encoded(format, compute) for branch in self.branches))
