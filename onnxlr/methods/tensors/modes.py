"""A weight seen as a tensor: modes of its inputs, of its window, and of its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.tensors.options import TensorOptions, sizes_text
from onnxlr.metrics import unfold_inputs

__all__ = ["Modes", "check_kernel", "factor_sizes"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Modes:
    """Modes of a matrix `(inputs, outputs)`, or of each group of a kernel.

    The tensor of a part is its matrix over all inputs, `unfold_inputs`, reshaped: modes of inputs,
    then of the window, then of outputs.

    Attributes
    ----------
    inputs, outputs
        Sizes, whose products are the inputs and outputs of a part.
    window
        A convolution's kernel sizes, along every spatial axis; empty for a matrix.
    groups
        Of a convolution, None for a matrix.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    window: tuple[int, ...] = ()
    groups: int | None = None

    @classmethod
    def of(
        cls,
        weight: npt.NDArray[Any],
        groups: int | None,
        options: TensorOptions,
        count: int | None = None,
    ) -> Modes:
        """Return the modes that options give a weight.

        Parameters
        ----------
        count
            Modes that each side of a matrix is split into, at most, where sizes are not given.

        Raises
        ------
        UsageError
            If sizes do not multiply to the shape, or the weight is a stack of matrices.
        """
        if groups is None and weight.ndim > 2:
            raise UsageError(
                f"the weight is a stack of matrices of shape {weight.shape}; tensor decompositions "
                "take one matrix or a convolution's kernel: method svd takes stacks"
            )
        if groups is None:
            inputs, outputs, window = weight.shape[0], weight.shape[1], ()
        else:
            inputs, outputs = weight.shape[1], weight.shape[0] // groups
            window = weight.shape[2:]
        given = options.mode_sizes
        if given is None:
            split = 1 if groups is not None or count is None else count
            given = factor_sizes(inputs, split), factor_sizes(outputs, split)
        for what, sizes, size in (("inputs", given[0], inputs), ("outputs", given[1], outputs)):
            if prod(sizes) != size:
                of_group = " of each group" if groups is not None and groups > 1 else ""
                raise UsageError(
                    f"modes {sizes_text(sizes)} multiply to {prod(sizes)}, but the weight has "
                    f"{size} {what}{of_group}: give sizes whose product is {size}"
                )
        return cls(given[0], given[1], tuple(map(int, window)), groups)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return (*self.inputs, *self.window, *self.outputs)

    @property
    def parts(self) -> int:
        """Number of tensors: groups of a convolution, 1 of a matrix."""
        return self.groups or 1

    @property
    def text(self) -> str:
        """The sizes as an option."""
        return f"{sizes_text(self.inputs)},{sizes_text(self.outputs)}"

    @property
    def wide(self) -> tuple[int, ...]:
        """Spatial axes along which the kernel has more than one entry."""
        return tuple(axis for axis, size in enumerate(self.window) if size > 1)

    def matrices(self, weight: npt.NDArray[Any]) -> Matrix:
        """Return `(parts, inputs of a patch, outputs)` in float64."""
        return unfold_inputs(weight, self.groups)

    def tensors(self, weight: npt.NDArray[Any]) -> Matrix:
        """Return the tensors of all parts, `(parts, *shape)` in float64."""
        return self.matrices(weight).reshape(self.parts, *self.shape)


def check_kernel(modes: Modes, form: str) -> None:
    """Refuse kernels that a decomposition of channels and window cannot make smaller.

    Raises
    ------
    UsageError
        If the kernel has no window and its channels are not split, or has one channel on a side.
    """
    if modes.groups is None:
        return
    of_group = " in each group" if modes.groups > 1 else ""
    for what, sizes in (("input", modes.inputs), ("output", modes.outputs)):
        if prod(sizes) == 1:
            raise UsageError(
                f"the kernel has one {what} channel{of_group}: a {form} decomposition of channels "
                "has nothing to make smaller; keep the layer or quantize it"
            )
    if not modes.wide and len(modes.inputs) == len(modes.outputs) == 1:
        size = "×".join(map(str, modes.window))
        raise UsageError(
            f"a {size} kernel has no window, so that a {form} decomposition of it is one of a "
            "matrix: take method svd, or split its channels with modes"
        )


def factor_sizes(size: int, count: int) -> tuple[int, ...]:
    """Return at most `count` nearly equal whole numbers above 1 whose product is `size`.

    The largest comes first. A prime number is one size.

    >>> factor_sizes(384, 3)
    (8, 8, 6)
    """
    if count <= 1 or size < 4:
        return (size,)
    sizes = []
    for left in range(count, 1, -1):
        goal = round(size ** (1 / left))
        divisor = _divisor_near(size, goal)
        if divisor > 1:
            sizes.append(divisor)
            size //= divisor
    if size > 1 or not sizes:
        sizes.append(size)
    return tuple(sorted(sizes, reverse=True))


def _divisor_near(size: int, goal: int) -> int:
    """Return the divisor of a size that is nearest to a goal by ratio, not the size itself."""
    small = [d for d in range(1, isqrt(size) + 1) if size % d == 0]
    divisors = [d for d in (*small, *(size // d for d in small)) if d < size]
    return min(divisors, key=lambda d: (max(d / goal, goal / d), d), default=1)
