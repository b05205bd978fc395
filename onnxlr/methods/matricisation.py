"""Ways of seeing a weight as a stack of matrices, whose factors are stages again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.stages import Chain, Convolution, Linear

__all__ = ["FORMS", "KernelForm", "Matricisation", "MatrixForm", "matricisations"]

Matrix = npt.NDArray[np.float64]

FORMS = ("channel", "input", "spatial", "spatial_swapped")
"""Two-stage forms of a convolution; `auto` chooses among those that its kernel has."""


class Matricisation(Protocol):
    """A weight as a stack of matrices `(*batch, rows, columns)`, and two factors as stages."""

    @property
    def name(self) -> str | None:
        """What a plan calls it; None where there is only one way."""

    def matrices(self) -> npt.NDArray[Any]:
        """Return the stack."""

    def chain(self, left: Matrix, right: Matrix) -> Chain:
        """Return the stages of `(*batch, rows, rank)` and `(*batch, rank, columns)`."""

    def like(self, weight: Matrix) -> Matricisation:
        """Return another weight of the same shape, seen the same way."""

    def bytes(self, rank: int, entry: int, scale: int) -> int:
        """Return the bytes of two factors, with `scale` bytes for each output of a stage."""


@dataclass(frozen=True)
class MatrixForm:
    """A matrix or stack of matrices as it is."""

    weight: npt.NDArray[Any]
    name: str | None = None

    def matrices(self) -> npt.NDArray[Any]:
        """Return the weight."""
        return self.weight

    def chain(self, left: Matrix, right: Matrix) -> Chain:
        """Return two linear stages."""
        return Chain((Linear.of(left), Linear.of(right)))

    def like(self, weight: Matrix) -> MatrixForm:
        """Return another weight of the same shape."""
        return replace(self, weight=weight)

    def bytes(self, rank: int, entry: int, scale: int) -> int:
        """Return the bytes of two factors."""
        *batch, rows, columns = self.weight.shape
        count = int(np.prod(batch, dtype=np.int64))
        return int(count * (rank * (rows + columns) * entry + (rank + columns) * scale))


@dataclass(frozen=True)
class KernelForm:
    """A kernel `(outputs, inputs/groups, *kernel)` split between two convolutions.

    The first takes the inputs and the spatial axes in `first`, the second the outputs and the other
    axes: `(I/g · k_first) × (O/g · k_others)` for each group. All axes first is the channel form
    (Zhang et al. 2016), none the input form, a proper part of them the spatial form (Jaderberg et
    al. 2014).
    """

    kernel: npt.NDArray[Any]
    groups: int
    name: str
    first: tuple[int, ...]

    @property
    def _others(self) -> tuple[int, ...]:
        return tuple(a for a in range(self.kernel.ndim - 2) if a not in self.first)

    def _extent(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Return a kernel's size along every spatial axis, 1 along those not in `axes`."""
        sizes = self.kernel.shape[2:]
        return tuple(size if axis in axes else 1 for axis, size in enumerate(sizes))

    def matrices(self) -> npt.NDArray[Any]:
        """Return one matrix for each group."""
        outputs, inputs, *sizes = self.kernel.shape
        grouped = self.kernel.reshape(self.groups, outputs // self.groups, inputs, *sizes)
        first, others = ([axis + 3 for axis in axes] for axes in (self.first, self._others))
        ordered = grouped.transpose(0, 2, *first, 1, *others)
        rows = inputs * int(np.prod(self._extent(self.first)))
        return np.asarray(ordered.reshape(self.groups, rows, -1))

    def chain(self, left: Matrix, right: Matrix) -> Chain:
        """Return two convolutions."""
        outputs, inputs = self.kernel.shape[:2]
        rank = left.shape[-1]
        # (g, I, k_first, r) → (g, r, I, k_first): axes in `first` are ascending, so they stay so
        start = left.reshape(self.groups, inputs, -1, rank).transpose(0, 3, 1, 2)
        start = start.reshape(self.groups * rank, inputs, *self._extent(self.first))
        # (g, r, O, k_others) → (g, O, r, k_others)
        end = right.reshape(self.groups, rank, outputs // self.groups, -1).transpose(0, 2, 1, 3)
        end = end.reshape(outputs, rank, *self._extent(self._others))
        return Chain(
            (
                Convolution.of(start, self.groups, self.first),
                Convolution.of(end, self.groups, self._others),
            )
        )

    def like(self, weight: Matrix) -> KernelForm:
        """Return another kernel of the same shape, in the same form."""
        return replace(self, kernel=weight)

    def bytes(self, rank: int, entry: int, scale: int) -> int:
        """Return the bytes of both kernels."""
        outputs, inputs = self.kernel.shape[:2]
        start = rank * self.groups * inputs * int(np.prod(self._extent(self.first)))
        end = outputs * rank * int(np.prod(self._extent(self._others)))
        return int((start + end) * entry + (rank * self.groups + outputs) * scale)


def matricisations(
    weight: npt.NDArray[Any],
    groups: int | None,
    form: str | None,
    whole_window: bool = False,
) -> list[Matricisation]:
    """Return the ways of seeing a weight: the one named, or all that differ.

    `whole_window` leaves out those that split the window between both stages.

    Raises
    ------
    UsageError
        If the form is unknown, or the weight has not got it.
    """
    if form not in (None, "auto", *FORMS):
        raise UsageError(f"form '{form}' is unknown, expected auto, {', '.join(FORMS)}")
    if groups is None:
        if form not in (None, "auto"):
            raise UsageError(f"form '{form}' is for convolutions, the weight is a matrix")
        return [MatrixForm(weight)]
    axes = [axis for axis, size in enumerate(weight.shape[2:]) if size > 1]
    everything = tuple(range(weight.ndim - 2))
    found: dict[str, tuple[int, ...]] = {"channel": everything}
    if axes:
        found["input"] = ()
    if len(axes) > 1 and not whole_window:
        last = axes[-1]
        found["spatial"] = (last,)
        found["spatial_swapped"] = tuple(axis for axis in everything if axis != last)
    if form in (None, "auto"):
        return [KernelForm(weight, groups, name, first) for name, first in found.items()]
    if form not in found:
        size = "×".join(map(str, weight.shape[2:]))
        why = ": the node states its output_shape" if whole_window else ""
        raise UsageError(f"a {size} kernel has no {form} form, only {', '.join(found)}{why}")
    return [KernelForm(weight, groups, str(form), found[str(form)])]
