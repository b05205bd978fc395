"""A core between one factor for each mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from tensorly.decomposition import partial_tucker

from onnxlr.errors import UsageError
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.methods.tensors import (
    Modes,
    Network,
    Steps,
    Structure,
    TensorMethod,
    TensorOptions,
    check_kernel,
    nested_ranks,
    ranks_asked,
    spectrum_of,
)
from onnxlr.methods.tensors.options import sizes_text
from onnxlr.stages import Chain

__all__ = ["Tucker", "TuckerOptions", "TuckerStructure"]

Matrix = npt.NDArray[np.float64]

FORMS = ("channels", "full")

_MATRIX_MODES = 2
"""Modes of each side of a matrix where their sizes are not given."""

_LARGEST_OFFERED = 1 << 20
"""Most entries of weights that are offered: fits of larger ones take long."""

_ROUNDS, _SETTLED = 25, 1e-6
"""Of higher-order orthogonal iteration, and the change of the relative error that ends it."""


@dataclass(frozen=True)
class TuckerOptions(TensorOptions):
    """As of all tensor decompositions, and for convolutions what is factorized.

    Attributes
    ----------
    form
        Of tucker and semi_tucker: `channels`, the default (Tucker-2: 1×1, k×k, 1×1), or `full`,
        where the window's axes have factors as well.
    """

    form: str | None = None

    choices: ClassVar[Mapping[str, Sequence[str]]] = {"form": FORMS}

    def __str__(self) -> str:
        form = f", {self.form}" if self.form else ""
        return f"{super().__str__()}{form}"


class Tucker(TensorMethod):
    """`W ≈ G ×₁ U₁ ×₂ U₂ …`, by higher-order orthogonal iteration (De Lathauwer et al. 2000).

    A convolution becomes 1×1, k×k and 1×1 (Tucker-2, Kim et al. 2016).
    """

    name = "tucker"
    options: type[Options] = TuckerOptions

    def structure(
        self, weight: npt.NDArray[Any], options: TuckerOptions, setting: Setting
    ) -> Structure:
        """Return Tucker networks over the modes."""
        modes = Modes.of(weight, setting.groups, options, _MATRIX_MODES)
        check_kernel(modes, "Tucker")
        if options.form == "full" and setting.whole_window:
            raise UsageError(
                "the node states its output_shape, which has to be moved along all axes at once: "
                "only form channels can"
            )
        return TuckerStructure(modes, factors_window=options.form == "full")

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return int8 factors of a convolution with a window.

        All axes have factors, where a quarter of the numbers was measured to be closer than two
        factors are, and at a half where the window has one axis only, which two factors cannot
        split. Of matrices, and elsewhere, two factors are faster and closer.
        """
        if not occasion.splits_window or occasion.entries > _LARGEST_OFFERED:
            return ()
        ratios = (0.25, 0.5) if len(occasion.window) == 1 else (0.25,)
        # what is not observed may be a node that states its output's shape
        form = "full" if occasion.observed else None
        return tuple(
            Offer(TuckerOptions(ratio=ratio, form=form), "int8")
            for ratio in ratios
            if occasion.component <= ratio
        )


@dataclass(frozen=True)
class TuckerStructure:
    """Tucker networks, in which some axes have a factor, and the others stay in the core.

    Attributes
    ----------
    modes
        Of the weight.
    t
        Size of the identity behind each factor of a channel mode, `U ⊗ I_t`: such a mode is two
        axes, of which the second, of size t, stays in the core.
    factors_window
        Whether the window's axes have factors.
    """

    modes: Modes
    t: int = 1
    factors_window: bool = False
    polishing: int = 0

    @property
    def rows(self) -> tuple[int, ...]:
        """Axes of the inputs and of the window."""
        return (*self._split(self.modes.inputs), *self.modes.window)

    @property
    def columns(self) -> tuple[int, ...]:
        """Axes of the outputs."""
        return self._split(self.modes.outputs)

    def _split(self, sizes: Sequence[int]) -> tuple[int, ...]:
        if self.t == 1:
            return tuple(sizes)
        return tuple(part for size in sizes for part in (size // self.t, self.t))

    @property
    def _axes(self) -> list[int]:
        """The axes that have a factor: of inputs, of the window, of outputs."""
        width = 1 if self.t == 1 else 2
        inputs, outputs = len(self.modes.inputs) * width, len(self.modes.outputs) * width
        window = range(inputs, inputs + len(self.modes.window))
        first = inputs + len(window)
        channels = [*range(0, inputs, width), *range(first, first + outputs, width)]
        inner = [axis for axis in window if self.factors_window and self._shape[axis] > 1]
        return sorted([*channels, *inner])

    @property
    def _shape(self) -> tuple[int, ...]:
        return (*self.rows, *self.columns)

    def _step(self, axis: int) -> int:
        """Return what the rank of an axis counts: t of a channel mode, 1 of the window's."""
        first = len(self.rows) - len(self.modes.window)
        return 1 if first <= axis < len(self.rows) else self.t

    @property
    def _steps(self) -> list[int]:
        return [self._step(axis) for axis in self._axes]

    def _sizes(self, ranks: Sequence[int]) -> dict[int, int]:
        """Return the size that each axis with a factor has in the core."""
        pairs = zip(self._axes, ranks, self._steps, strict=True)
        return {axis: rank // step for axis, rank, step in pairs}

    def _core_shape(self, ranks: Sequence[int]) -> tuple[int, ...]:
        sizes = self._sizes(ranks)
        return tuple(sizes.get(axis, size) for axis, size in enumerate(self._shape))

    def _factored(self, ranks: Sequence[int]) -> list[int]:
        """Return the axes that get a factor: at its full rank the core takes it in."""
        sizes = self._sizes(ranks)
        return [axis for axis in self._axes if sizes[axis] < self._shape[axis]]

    def levels(self, tensors: Sequence[Matrix]) -> Sequence[tuple[int, ...]]:
        """Return ranks from one each on, raised where the unfoldings' singular values say so."""
        energies = [
            spectrum_of([np.moveaxis(t, axis, 0).reshape(t.shape[axis], -1) for t in tensors])
            for axis in self._axes
        ]
        steps = self._steps

        def ranks(sizes: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(size * step for size, step in zip(sizes, steps, strict=True))

        found = nested_ranks(
            energies,
            lambda sizes: self._parameters(ranks(sizes), self._axes),
            lambda sizes: self._excess(ranks(sizes)) is None,
        )
        return [ranks(sizes) for sizes in found]

    def closest(self, ranks: tuple[int, ...] | int) -> tuple[int, ...]:
        """Return the ranks asked for, each at most that of its unfolding, and of the core's."""
        whole = prod(self._shape)
        limits = [
            min(self._shape[axis], whole // self._shape[axis]) * self._step(axis)
            for axis in self._axes
        ]
        found = ranks_asked(ranks, limits, self._names(), self._steps)
        while (excess := self._excess(found)) is not None:
            position, most = excess
            if not isinstance(ranks, int):
                name = self._names()[position]
                raise UsageError(
                    f"rank {found[position]} of {name} is above {most}, which is all that the "
                    f"other ranks of {sizes_text(found)} leave to it: lower it, or raise those"
                )
            found = (*found[:position], most, *found[position + 1 :])
        return found

    def _excess(self, ranks: Sequence[int]) -> tuple[int, int] | None:
        """Return a rank that the core cannot have, and the most it can; None if there is none.

        An unfolding of the core has no more independent rows than columns.
        """
        core = self._core_shape(ranks)
        for position, axis in enumerate(self._axes):
            most = prod(core) // core[axis]
            if core[axis] > most:
                return position, most * self._step(axis)
        return None

    def _names(self) -> list[str]:
        """Return what messages call the axes with a factor."""
        first = len(self.rows) - len(self.modes.window)
        return [
            "inputs" if axis < first else "window" if axis < len(self.rows) else "outputs"
            for axis in self._axes
        ]

    def decompose(self, tensor: Matrix, ranks: tuple[int, ...], seed: int) -> Network:
        """Return a core and its factors, by higher-order orthogonal iteration."""
        axes = self._factored(ranks)
        if not tensor.any():
            return self.empty(ranks)
        if not axes:
            return self._network(tensor, [], axes)
        (core, factors), _ = partial_tucker(
            tensor,
            [self._sizes(ranks)[axis] for axis in axes],
            modes=axes,
            n_iter_max=_ROUNDS,
            tol=_SETTLED,
            random_state=seed,
        )
        return self._network(core, factors, axes)

    def _network(self, core: Matrix, factors: Sequence[Matrix], axes: Sequence[int]) -> Network:
        count = len(self._shape)
        inner = [axis + count if axis in axes else axis for axis in range(count)]
        labels = (tuple(inner), *((axis, axis + count) for axis in axes))
        return Network((core, *factors), labels, tuple(range(count)))

    def empty(self, ranks: tuple[int, ...]) -> Network:
        """Return a network of zeros."""
        core, axes = self._core_shape(ranks), self._factored(ranks)
        factors = [np.zeros((self._shape[axis], core[axis])) for axis in axes]
        return self._network(np.zeros(core), factors, axes)

    def parameters(self, ranks: tuple[int, ...]) -> int:
        """Return the entries of the core and of all factors."""
        return self._parameters(ranks, self._factored(ranks))

    def _parameters(self, ranks: tuple[int, ...], axes: Sequence[int]) -> int:
        core = self._core_shape(ranks)
        return prod(core) + sum(self._shape[axis] * core[axis] for axis in axes)

    def chain(self, networks: Sequence[Network]) -> Chain:
        """Return the factors of inputs, those of the window, the core, and those of outputs."""
        core, *factors = (
            np.stack(parts) for parts in zip(*(n.cores for n in networks), strict=True)
        )
        axes = [labels[0] for labels in networks[0].labels[1:]]
        by_axis = dict(zip(axes, factors, strict=True))
        inputs = len(self.rows) - len(self.modes.window)
        steps = Steps(self.modes, self.rows[:inputs])
        for axis in range(inputs):
            if axis in by_axis:
                steps.multiply(axis, axis + 1, by_axis[axis], by_axis[axis].shape[2:])
        taken = self._filter(steps, by_axis, inputs)
        self._multiply_core(steps, core, taken)
        for axis in range(len(self.columns)):
            factor = by_axis.get(len(self.rows) + axis)
            if factor is not None:
                steps.multiply(axis, axis + 1, factor.swapaxes(1, 2), factor.shape[1:2])
        return steps.chain()

    def _filter(self, steps: Steps, by_axis: dict[int, Matrix], inputs: int) -> list[int]:
        """Convolve with the factors of the window, and return the spatial axes that have one."""
        taken = [axis for axis in range(len(self.modes.window)) if inputs + axis in by_axis]
        for axis in taken:
            factor = by_axis[inputs + axis]  # (parts, k, q)
            parts, size, made = factor.shape
            extent = [size if other == axis else 1 for other in range(len(self.modes.window))]
            kernels = factor.swapaxes(1, 2).reshape(parts, made, 1, *extent)
            end = len(steps.dims)
            steps.convolve(end, end, kernels, (axis,), (made,))
        return taken

    def _multiply_core(self, steps: Steps, core: Matrix, taken: Sequence[int]) -> None:
        """Convolve with the core, along the spatial axes that are left; multiply, of a matrix."""
        rows = len(self.rows)
        made = core.shape[1 + rows :]
        channels = prod(steps.dims)
        left = [a for a in range(len(self.modes.window)) if a not in taken]
        inputs = 1 + rows - len(self.modes.window)
        window = [inputs + axis for axis in (*taken, *left)]
        core = core.transpose(*range(inputs), *window, *range(1 + rows, core.ndim))
        extent = [self.modes.window[a] if a in left else 1 for a in range(len(self.modes.window))]
        flat = core.reshape(len(core), channels, *extent, prod(made))
        kernels = np.moveaxis(flat, -1, 1)
        if self.modes.groups is None:
            steps.multiply(0, len(steps.dims), flat, made)
        else:
            steps.convolve(0, len(steps.dims), kernels, left, made)
