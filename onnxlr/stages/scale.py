"""A factor for each input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format
from onnxlr.stages.cost import Cost

__all__ = ["Scale"]


@dataclass(frozen=True)
class Scale:
    """`y = x · f`, of the last axis, or of a convolution's channels.

    Attributes
    ----------
    factors
        One for each input or channel, in the float type they are kept in.
    axes
        Spatial axes of the data of a convolution; None for rows.
    groups
        Of the convolution.
    """

    factors: npt.NDArray[Any]
    axes: int | None = None
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """As many outputs as inputs."""
        return (len(self.factors), len(self.factors))

    @property
    def parameters(self) -> int:
        """Number of factors."""
        return len(self.factors)

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return int(self.factors.nbytes)

    @property
    def cost(self) -> Cost:
        """One multiplication for each input."""
        return Cost(self.parameters, self.nbytes, multiplications=self.parameters)

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the diagonal matrix, or the kernel `(channels, channels/groups, 1, …)`."""
        factors = self.factors.astype(np.float64)
        if self.axes is None:
            return np.diag(factors)
        width = len(factors) // self.groups
        kernel = np.zeros((len(factors), width))
        kernel[np.arange(len(factors)), np.arange(len(factors)) % width] = factors
        return kernel.reshape(*kernel.shape, *[1] * self.axes)

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the weight of a step `dense` followed by this one."""
        factors = self.factors.astype(np.float64)
        if self.axes is not None:
            factors = factors.reshape(-1, *[1] * (dense.ndim - 1))
        return np.asarray(dense * factors)

    def before(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the weight of this step followed by one of weight `dense`."""
        factors = self.factors.astype(np.float64)
        if self.axes is None:
            return np.asarray(dense * factors[:, None])
        outputs, inputs = dense.shape[:2]
        each = np.repeat(factors.reshape(self.groups, inputs), outputs // self.groups, axis=0)
        return np.asarray(dense * each.reshape(outputs, inputs, *[1] * self.axes))

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return `x · f` in float64."""
        factors = self.factors.astype(np.float64)
        if self.axes is not None:
            factors = factors.reshape(-1, *[1] * self.axes)
        return np.asarray(x, np.float64) * factors

    def encoded(
        self,
        format: Format,  # noqa: ARG002
        compute: npt.DTypeLike,
        hessian: npt.NDArray[np.float64] | None = None,  # noqa: ARG002
    ) -> Scale:
        """Return the factors in the model's float type: they are too few for other formats."""
        return Scale(self.factors.astype(compute), self.axes, self.groups)
