"""Collects the steps of a chain, and how the features lie behind each of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from onnxlr.methods.tensors.modes import Modes
from onnxlr.stages import Chain, Convolution, Fold, Linear, Stage, along

__all__ = ["Steps"]

Matrix = npt.NDArray[np.float64]


class Steps:
    """Products along the modes of a matrix's features, or of the channels of each group.

    Attributes
    ----------
    dims
        Sizes of the modes of what the steps so far make.
    """

    def __init__(self, modes: Modes, dims: Sequence[int] | None = None) -> None:
        self._modes = modes
        self._stages: list[Stage] = []
        self.dims = tuple(modes.inputs if dims is None else dims)

    @property
    def _axes(self) -> int | None:
        return None if self._modes.groups is None else len(self._modes.window)

    def multiply(self, begin: int, end: int, factors: Matrix, made: Sequence[int]) -> None:
        """Multiply the modes from `begin` to before `end`, taken as one, by a matrix.

        Parameters
        ----------
        factors
            Shape `(parts, inputs, outputs)`.
        made
            Sizes of the modes that take the place of those.
        """
        extent = [1] * (self._axes or 0)
        kernels = factors.swapaxes(1, 2).reshape(*factors.swapaxes(1, 2).shape, *extent)
        self._add(begin, end, kernels, (), made)

    def convolve(
        self, begin: int, end: int, kernels: Matrix, window: Sequence[int], made: Sequence[int]
    ) -> None:
        """Convolve, with the modes from `begin` to before `end`, taken as one, for channels.

        Parameters
        ----------
        kernels
            Shape `(parts, outputs, inputs, *kernel)`, with a size for every spatial axis.
        window
            The spatial axes whose window it takes.
        made
            Sizes of the modes that take the place of those.
        """
        self._add(begin, end, kernels, tuple(window), made)

    def filter(self, position: int, kernels: Matrix, window: Sequence[int]) -> None:
        """Convolve every feature of one mode by a filter of its own, the same for other modes.

        Parameters
        ----------
        kernels
            Shape `(parts, features, *kernel)`.
        """
        before, behind = prod(self.dims[:position]), prod(self.dims[position + 1 :])
        self._move_groups(before)
        parts, features, *extent = kernels.shape
        kernel = kernels.reshape(parts * features, 1, *extent)
        stage = Convolution.of(kernel, parts * features, tuple(window))
        self._stages.append(along(stage, before, behind))
        self._move_groups(before, back=True)

    def fold(self, order: Sequence[int]) -> None:
        """Put the modes in another order."""
        parts = self._modes.parts
        dims, axes = self.dims, (0, *(axis + 1 for axis in order))
        if tuple(order) == tuple(range(len(dims))):
            return
        if parts > 1:
            self._stages.append(Fold((parts, *dims), axes, self._axes, parts))
        else:
            self._stages.append(Fold(dims, tuple(order), self._axes))
        self.dims = tuple(dims[axis] for axis in order)

    def see(self, dims: Sequence[int]) -> None:
        """Take the features for a tensor of other modes, in the same order."""
        if prod(dims) != prod(self.dims):
            raise ValueError(f"features {self.dims} cannot be seen as {dims}")
        self.dims = tuple(dims)

    def chain(self) -> Chain:
        """Return the steps."""
        return Chain(tuple(self._stages))

    def _add(
        self, begin: int, end: int, kernels: Matrix, window: tuple[int, ...], made: Sequence[int]
    ) -> None:
        before, behind = prod(self.dims[:begin]), prod(self.dims[end:])
        parts, outputs, inputs, *extent = kernels.shape
        if inputs != prod(self.dims[begin:end]) or outputs != prod(made):
            raise ValueError(f"factor {kernels.shape} does not fit modes {self.dims} at {begin}")
        stage: Linear | Convolution
        if self._axes is None:
            stage = Linear.of(kernels[0].T)
        else:
            kernel = kernels.reshape(parts * outputs, inputs, *extent)
            stage = Convolution.of(kernel, parts, window)
        self._move_groups(before)
        self._stages.append(along(stage, before, behind))
        self.dims = (*self.dims[:begin], *made, *self.dims[end:])
        self._move_groups(before, back=True)

    def _move_groups(self, before: int, back: bool = False) -> None:
        """Let groups follow the modes in front of a factor, as they have factors of their own."""
        parts = self._modes.parts
        if parts == 1 or before == 1:
            return
        rest = prod(self.dims) // before
        dims = (before, parts, rest) if back else (parts, before, rest)
        self._stages.append(Fold(dims, (1, 0, 2), self._axes, parts))
