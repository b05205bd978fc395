"""Ways of seeing a weight as a stack of matrices, whose factors are stages again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError, check_known
from onnxlr.metrics import Metric, Weighing, row_importance, unfold_inputs
from onnxlr.numbers import Format
from onnxlr.stages import Chain, Convolution, Linear, Stage

__all__ = ["FORMS", "KernelForm", "Matricisation", "MatrixForm", "form_of", "matricisations"]

Matrix = npt.NDArray[np.float64]

FORMS = ("channel", "input", "spatial", "spatial_swapped")
"""Two-stage forms of a convolution; `auto` chooses among those that its kernel has."""


class Matricisation(Protocol):
    """A weight as a stack of matrices `(*batch, rows, columns)`, and two factors as stages."""

    @property
    def name(self) -> str | None:
        """What a plan calls it; None where there is only one way."""

    @property
    def canonical(self) -> npt.NDArray[Any]:
        """The weight itself."""

    @property
    def is_whole(self) -> bool:
        """Whether the rows are all inputs, so that a covariance weighs them exactly."""

    def matrices(self) -> npt.NDArray[Any]:
        """Return the stack."""

    def weighings(self, metric: Metric) -> list[Weighing]:
        """Return how the metric weighs each matrix of the stack.

        Where the rows are some of the inputs only, by what the metric says of them alone.
        """

    def first_covariance(self, covariance: Matrix) -> Matrix:
        """Return the covariance of what the first factor sees, `(parts, rows, rows)`."""

    def second_covariance(self, left: Matrix, covariance: Matrix) -> Matrix:
        """Return the covariance of what the second factor sees behind a first one."""

    def solve_second(self, left: Matrix, covariance: Matrix) -> Matrix:
        """Return the second factor of least output error behind a first one."""

    def left_of(self, first: Stage) -> Matrix:
        """Return the first factor that a stage of `chain` is."""

    def chain(self, left: Matrix, right: Matrix) -> Chain:
        """Return the stages of `(*batch, rows, rank)` and `(*batch, rank, columns)`."""

    def like(self, weight: Matrix) -> Matricisation:
        """Return another weight of the same shape, seen the same way."""

    def bytes(self, rank: int, format: Format, scale: int) -> int:
        """Return the bytes of two factors in a format, with `scale` bytes for each scale."""


@dataclass(frozen=True)
class MatrixForm:
    """A matrix or stack of matrices as it is."""

    weight: npt.NDArray[Any]
    name: str | None = None
    is_whole: bool = True

    @property
    def canonical(self) -> npt.NDArray[Any]:
        """The weight itself."""
        return self.weight

    def matrices(self) -> npt.NDArray[Any]:
        """Return the weight."""
        return self.weight

    def weighings(self, metric: Metric) -> list[Weighing]:
        """Return one weighing for each matrix; a covariance is shared by all of them."""
        count = int(np.prod(self.weight.shape[:-2], dtype=np.int64))
        if metric.importance is not None:
            parts = metric.importance.reshape(-1, *self.weight.shape[-2:])
            return [Weighing.of(rows) for rows in row_importance(parts)]
        rows = None if metric.covariance is None else metric.covariance[0]
        return [Weighing.of(rows, metric.output_covariance)] * count

    def first_covariance(self, covariance: Matrix) -> Matrix:
        """Return the covariance."""
        return covariance

    def second_covariance(self, left: Matrix, covariance: Matrix) -> Matrix:
        """Return `Lᵀ C L`, the mean over the stack."""
        stack = left.reshape(-1, *left.shape[-2:])
        return np.asarray((stack.swapaxes(1, 2) @ covariance[0] @ stack).mean(axis=0)[None])

    def solve_second(self, left: Matrix, covariance: Matrix) -> Matrix:
        """Return `(Lᵀ C L)⁻¹ Lᵀ C W`."""
        weighed = left.swapaxes(-1, -2) @ covariance[0]
        return solve_damped(weighed @ left, weighed @ self.weight)

    def left_of(self, first: Stage) -> Matrix:
        """Return the matrix of the stage."""
        return first.dense()

    def chain(self, left: Matrix, right: Matrix) -> Chain:
        """Return two linear stages."""
        return Chain((Linear.of(left), Linear.of(right)))

    def like(self, weight: Matrix) -> MatrixForm:
        """Return another weight of the same shape."""
        return replace(self, weight=weight)

    def bytes(self, rank: int, format: Format, scale: int) -> int:
        """Return the bytes of two factors."""
        *batch, rows, columns = self.weight.shape
        count = int(np.prod(batch, dtype=np.int64))
        first = format.bytes(rows, count * rank, scale)
        return first + format.bytes(rank, count * columns, scale)


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

    @property
    def canonical(self) -> npt.NDArray[Any]:
        """The kernel itself."""
        return self.kernel

    @property
    def is_whole(self) -> bool:
        """Whether it is the channel form, or the kernel has one entry only."""
        return not [a for a in self._others if self.kernel.shape[a + 2] > 1]

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

    def weighings(self, metric: Metric) -> list[Weighing]:
        """Return one weighing for each group.

        Raises
        ------
        UsageError
            If a metric of two sides is asked of a form that splits the window between them.
        """
        if metric.importance is not None:
            parts = self.like(metric.importance).matrices()
            return [Weighing.of(rows) for rows in row_importance(parts)]
        if metric.output_covariance is not None and not self.is_whole:
            raise UsageError(f"metric {metric.name} needs the form channel, not {self.name}")
        if metric.covariance is None:
            return [Weighing()] * self.groups
        rows = self.first_covariance(metric.covariance)
        width = self.kernel.shape[0] // self.groups
        columns: list[Matrix | None] = [None] * self.groups
        if metric.output_covariance is not None:
            both = metric.output_covariance
            blocks = (slice(g * width, (g + 1) * width) for g in range(self.groups))
            columns = [both[block, block] for block in blocks]
        return [Weighing.of(row, column) for row, column in zip(rows, columns, strict=True)]

    def _split(self, patches: Matrix) -> Matrix:
        """Return `(groups, patch, n)` as `(groups, rows, others, n)`."""
        inputs, sizes = self.kernel.shape[1], self.kernel.shape[2:]
        apart = patches.reshape(self.groups, inputs, *sizes, -1)
        axes = (0, 1, *(a + 2 for a in self.first), *(a + 2 for a in self._others), apart.ndim - 1)
        rows = inputs * int(np.prod(self._extent(self.first)))
        moved = apart.transpose(axes).reshape(self.groups, rows, -1, patches.shape[-1])
        return np.asarray(moved)

    def _split_covariance(self, covariance: Matrix) -> Matrix:
        """Return a covariance of patches as `(groups, rows, others, rows, others)`."""
        half = self._split(covariance)  # (g, R, o, patch)
        _, rows, others, patch = half.shape
        whole = self._split(half.reshape(self.groups, -1, patch).swapaxes(1, 2))
        return whole.reshape(self.groups, rows, others, rows, others)

    def first_covariance(self, covariance: Matrix) -> Matrix:
        """Return the covariance of the rows, summed over the window's other axes."""
        if self.is_whole:
            return covariance
        return np.asarray(np.einsum("gaobo->gab", self._split_covariance(covariance)))

    def seen_by_first(self, mean: Matrix, covariance: Matrix) -> tuple[Matrix, Matrix]:
        """Return mean `(groups, rows)` and covariance of the first kernel's patches.

        They are averaged over the places in the window of the whole kernel that they can have.
        """
        rows = self._split(mean[:, :, None])[..., 0]  # (g, R, o)
        if self.is_whole:
            return rows[..., 0], covariance
        return rows.mean(axis=2), self.first_covariance(covariance) / rows.shape[2]

    def second_covariance(self, left: Matrix, covariance: Matrix) -> Matrix:
        """Return the covariance of the second kernel's patches, in the order (rank, others)."""
        split = self._split_covariance(covariance)
        half = np.einsum("gar,gaobp->grobp", left, split, optimize=True)
        whole = np.einsum("grobp,gbs->grosp", half, left, optimize=True)
        groups, rank, others = whole.shape[:3]
        return np.asarray(whole.reshape(groups, rank * others, rank * others))

    def solve_second(self, left: Matrix, covariance: Matrix) -> Matrix:
        """Return the kernel of least squared output error behind a first one."""
        split = self._split_covariance(covariance)
        weight = self._split(unfold_inputs(self.kernel, self.groups))  # (g, R, o, n)
        seen = np.einsum("gaobp,gbpn->gaon", split, weight, optimize=True)
        cross = np.einsum("gar,gaon->gron", left, seen, optimize=True)
        groups, rank, others, outputs = cross.shape
        gram = self.second_covariance(left, covariance)
        right = solve_damped(gram, cross.reshape(groups, rank * others, outputs))
        apart = right.reshape(groups, rank, others, outputs).swapaxes(2, 3)
        return np.asarray(apart.reshape(groups, rank, -1))

    def left_of(self, first: Stage) -> Matrix:
        """Return the first factor of each group."""
        kernel = first.dense()
        inputs = self.kernel.shape[1]
        rank = kernel.shape[0] // self.groups
        apart = kernel.reshape(self.groups, rank, inputs, -1).transpose(0, 2, 3, 1)
        return np.asarray(apart.reshape(self.groups, -1, rank))

    def like(self, weight: Matrix) -> KernelForm:
        """Return another kernel of the same shape, in the same form."""
        return replace(self, kernel=weight)

    def bytes(self, rank: int, format: Format, scale: int) -> int:
        """Return the bytes of both kernels."""
        outputs, inputs = self.kernel.shape[:2]
        patch = inputs * int(np.prod(self._extent(self.first)))
        behind = rank * int(np.prod(self._extent(self._others)))
        first = format.bytes(patch, rank * self.groups, scale)
        return first + format.bytes(behind, outputs, scale)


def solve_damped(gram: Matrix, right: Matrix) -> Matrix:
    """Return `G⁻¹ B` of stacks, with `G` damped by its rounding error: it may be singular."""
    size = gram.shape[-1]
    scale = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
    damped = gram + np.maximum(1e-10 * scale, np.finfo(np.float64).tiny) * np.eye(size)
    return np.asarray(np.linalg.solve(damped, right))


def form_of(first: Convolution, second: Convolution) -> str:
    """Return the name of the form that two convolutions are."""
    if not second.window:
        return "channel"
    if not first.window:
        return "input"
    return (
        "spatial" if len(first.window) == 1 and first.window > second.window else "spatial_swapped"
    )


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
    if form is not None:
        check_known("form", form, ("auto", *FORMS))
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
