"""Stages in order, in place of a weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import add
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format
from onnxlr.stages.cost import Cost
from onnxlr.stages.fold import Fold
from onnxlr.stages.linear import Linear
from onnxlr.stages.mode_product import ModeProduct
from onnxlr.stages.scale import Scale

__all__ = ["Chain", "Stage"]

Matrix = npt.NDArray[np.float64]


class Stage(Protocol):
    """One step of a chain: a linear map, of the last axis or over a window of positions."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the map as a matrix, `(*batch, inputs, outputs)`."""

    @property
    def parameters(self) -> int:
        """Stored numbers."""

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers."""

    @property
    def cost(self) -> Cost:
        """Both, and the arithmetic of one position."""

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the weight that the step is, in the layout of a layer's weight."""

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the weight that a step of weight `dense` and then this one are together."""

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the step's output for `x`."""

    def encoded(
        self, format: Format, compute: npt.DTypeLike, hessian: Matrix | None = None
    ) -> Stage:
        """Return the step with its numbers kept in `format`.

        `hessian` is the covariance of what the step sees, as `numbers.encode` takes it.
        """


@dataclass(frozen=True)
class Chain:
    """Stages applied one after the other, in place of a weight."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if before.shape[-1] != after.shape[-2]:
                raise ValueError(f"stages {before.shape} and {after.shape} do not fit together")

    @property
    def cost(self) -> Cost:
        """Of all stages together, each for one position of its own."""
        return reduce(add, (stage.cost for stage in self.stages), Cost())

    @property
    def approximation(self) -> npt.NDArray[np.float64]:
        """The dense weight the chain stands for; computed anew each time, see `reconstruct`."""
        return self.reconstruct()

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the chain's output in float64 for `x` of shape `(..., inputs)`.

        A chain of convolutions takes `(batch, inputs, *spatial)`, without strides and padding.
        """
        for stage in self.stages:
            x = stage.apply(x)
        return np.asarray(x, np.float64)

    def reconstruct(self) -> npt.NDArray[np.float64]:
        """Return the dense approximation in float64, in the layout of the weight.

        That is `(*batch, inputs, outputs)`, or `(outputs, inputs/groups, *kernel)`.
        """
        if any(isinstance(s, ModeProduct) and s.axes is None for s in self.stages):
            return self._from_smallest()
        first, *rest = self.stages
        if isinstance(first, Scale) and rest:
            dense = first.before(rest.pop(0).dense())
        else:
            dense = first.dense()
        for stage in rest:
            dense = stage.after(dense)
        return dense

    def _from_smallest(self) -> npt.NDArray[np.float64]:
        """Return the matrix of a chain, from its smallest step on to both ends.

        Steps along a mode are small as they are stored, and large as matrices.
        """
        sizes = [prod(stage.shape[-2:]) for stage in self.stages]
        start = sizes.index(min(sizes))
        dense = self.stages[start].dense()
        for stage in self.stages[start + 1 :]:
            dense = stage.after(dense)
        for stage in reversed(self.stages[:start]):
            if not isinstance(stage, Linear | ModeProduct | Fold):
                dense = stage.dense() @ dense
            else:
                dense = stage.preceding(dense)
        return dense

    def encoded(self, format: Format, compute: npt.DTypeLike = np.float32) -> Chain:
        """Return the chain with its stages kept in `format`; `compute` is the model's type."""
        return Chain(tuple(stage.encoded(format, compute) for stage in self.stages))
