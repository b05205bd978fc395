"""A convolution over some of the spatial axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.numbers import Format, encode
from onnxlr.stages.stored import Stored

__all__ = ["Convolution"]


@dataclass(frozen=True)
class Convolution(Stored):
    """A convolution in groups, as neural networks have it: a correlation, without flipping.

    Attributes
    ----------
    weight
        The kernel `(outputs, inputs/groups, *kernel)` in some format.
    groups
        Number of groups.
    window
        Spatial axes whose stride, padding and dilation this stage takes; of the stages of a chain
        exactly one takes each axis, and the others have a kernel of 1 along it.
    """

    groups: int
    window: tuple[int, ...]

    @classmethod
    def of(cls, kernel: npt.NDArray[Any], groups: int, window: tuple[int, ...]) -> Convolution:
        """Return the stage of an exact kernel (kept in float64)."""
        return cls(encode(kernel, Format("float64"), kernel=True), groups, window)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, `(inputs, outputs)`."""
        outputs, inputs = self.weight.shape[:2]
        return (inputs * self.groups, outputs)

    def after(self, dense: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the kernel of a convolution `dense` in the same groups followed by this one."""
        kernel = self.weight.decode()
        if any(a > 1 and b > 1 for a, b in zip(dense.shape[2:], kernel.shape[2:], strict=True)):
            raise ValueError(f"kernels {dense.shape} and {kernel.shape} both extend along an axis")
        first = dense.reshape(self.groups, -1, *dense.shape[1:])
        second = kernel.reshape(self.groups, -1, *kernel.shape[1:])
        spatial = "abcdefgh"[: kernel.ndim - 2]
        # Along each axis one of the kernels has a single entry, so that their product is pointwise.
        extent = np.broadcast_shapes(dense.shape[2:], kernel.shape[2:])
        first = np.broadcast_to(first, (*first.shape[:3], *extent))
        second = np.broadcast_to(second, (*second.shape[:3], *extent))
        product = np.einsum(
            f"gor{spatial},gri{spatial}->goi{spatial}", second, first, optimize=True
        )
        return np.asarray(product.reshape(-1, *product.shape[2:]))

    def apply(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the convolution of `x`, `(batch, inputs, *spatial)`, stride 1, no padding."""
        kernel = self.weight.decode()
        axes = kernel.ndim - 2
        windows = np.lib.stride_tricks.sliding_window_view(
            np.asarray(x, np.float64), kernel.shape[2:], axis=tuple(range(2, 2 + axes))
        )
        grouped = windows.reshape(x.shape[0], self.groups, -1, *windows.shape[2:])
        kernels = kernel.reshape(self.groups, -1, *kernel.shape[1:])
        spatial, extent = "abcd"[:axes], "wxyz"[:axes]
        result = np.einsum(
            f"ngi{spatial}{extent},goi{extent}->ngo{spatial}", grouped, kernels, optimize=True
        )
        return np.asarray(result.reshape(x.shape[0], -1, *result.shape[3:]))

    def encoded(
        self,
        format: Format,
        compute: npt.DTypeLike,
        hessian: npt.NDArray[np.float64] | None = None,
    ) -> Convolution:
        """Return the same step with its kernel rounded to `format`."""
        rounded = encode(self.weight.decode(), format, compute, kernel=True, hessian=hessian)
        return Convolution(rounded, self.groups, self.window)
