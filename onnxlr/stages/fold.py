"""Another order of the features."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format
from onnxlr.stages.cost import Cost

__all__ = ["Fold", "identity_weight"]


@dataclass(frozen=True)
class Fold:
    """The features, or a convolution's channels, seen as a tensor whose axes are permuted.

    Attributes
    ----------
    dims
        Sizes of the tensor's axes; their product is the number of features.
    order
        The axes in their new order.
    axes
        Spatial axes of the data of a convolution; None for rows.
    groups
        Of the convolution.
    """

    dims: tuple[int, ...]
    order: tuple[int, ...]
    axes: int | None = None
    groups: int = 1

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.dims))):
            raise ValueError(f"{self.order} is no order of {len(self.dims)} axes")

    @property
    def shape(self) -> tuple[int, ...]:
        """As many outputs as inputs."""
        return (prod(self.dims), prod(self.dims))

    @property
    def parameters(self) -> int:
        """None: nothing is stored."""
        return 0

    @property
    def nbytes(self) -> int:
        """None: nothing is stored."""
        return 0

    @property
    def cost(self) -> Cost:
        """Data is moved only."""
        return Cost()

    @property
    def inverse(self) -> Fold:
        """The step that undoes this one."""
        dims = tuple(self.dims[axis] for axis in self.order)
        order = tuple(int(axis) for axis in np.argsort(self.order))
        return Fold(dims, order, self.axes, self.groups)

    def dense(self) -> npt.NDArray[np.float64]:
        """Return the permutation matrix, or the kernel `(channels, channels/groups, 1, …)`."""
        return self.after(identity_weight(prod(self.dims), self.axes, self.groups))

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the weight of a step `dense` followed by this one."""
        return self._moved(dense, -1 if self.axes is None else 0)

    def preceding(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the matrix of this step followed by one of matrix `dense`."""
        return np.asarray(self.inverse.apply(dense.T).T)

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return `x` with its features in the other order, in float64."""
        return self._moved(np.asarray(x, np.float64), -1 if self.axes is None else 1)

    def _moved(self, values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
        axis %= values.ndim
        left, right = values.shape[:axis], values.shape[axis + 1 :]
        apart = values.reshape(*left, *self.dims, *right)
        behind = range(axis + len(self.dims), apart.ndim)
        moved = apart.transpose(*range(axis), *(axis + a for a in self.order), *behind)
        return np.asarray(moved.reshape(values.shape))

    def encoded(
        self,
        format: Format,  # noqa: ARG002
        compute: npt.DTypeLike,  # noqa: ARG002
        hessian: npt.NDArray[np.float64] | None = None,  # noqa: ARG002
    ) -> Fold:
        """Return the step itself."""
        return self


def identity_weight(features: int, axes: int | None, groups: int) -> npt.NDArray[np.float64]:
    """Return the identity matrix, or the kernel `(channels, channels/groups, 1, …)` that is it."""
    if axes is None:
        return np.eye(features)
    kernel = np.tile(np.eye(features // groups), (groups, 1))
    return kernel.reshape(*kernel.shape, *[1] * axes)
