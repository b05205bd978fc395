"""Tensor trains: cores in a row, each tied to the next by one index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain as flattened
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt
from tensorly.decomposition import tensor_train

from onnxlr.errors import UsageError
from onnxlr.methods.tensors.contraction import Contraction
from onnxlr.methods.tensors.modes import Modes
from onnxlr.methods.tensors.network import Network
from onnxlr.methods.tensors.ranks import nested_ranks, ranks_asked, spectrum_of
from onnxlr.stages import Chain

__all__ = ["Row", "Train", "window_cores"]

Matrix = npt.NDArray[np.float64]

Bonds = tuple[int | None, int | None]
"""The indices that tie a core to the one before it and the one behind it, None where is none."""


@dataclass(frozen=True)
class Row:
    """Cores in a row or a ring, each with some of the axes of a tensor.

    Core k has the indices `(bond k, axes, bond k + 1)`. Axes of the inputs and the window come
    first, then those of the outputs.

    Attributes
    ----------
    modes
        Of the weight.
    rows, columns
        Sizes of the axes of inputs and window, and of outputs.
    cores
        Axes of each core.
    """

    modes: Modes
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    cores: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return (*self.rows, *self.columns)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Product of the axes' sizes of each core."""
        return tuple(prod(self.shape[axis] for axis in axes) for axes in self.cores)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The axes of outputs."""
        return tuple(range(len(self.rows), len(self.shape)))

    @property
    def inputs(self) -> tuple[int, ...]:
        """The axes of inputs."""
        return tuple(range(len(self.rows) - len(self.modes.window)))

    def bond(self, number: int) -> int:
        """Return the index that ties core `number` to the one before it."""
        return len(self.shape) + number

    def merged(self, tensor: Matrix) -> Matrix:
        """Return the tensor with one axis for each core."""
        order = list(flattened.from_iterable(self.cores))
        return np.ascontiguousarray(tensor.transpose(order)).reshape(self.sizes)

    def network(self, cores: Sequence[Matrix], bonds: Sequence[Bonds]) -> Network:
        """Return the network of cores `(left, size, right)` and the bonds of each."""
        shaped, labels = [], []
        for core, axes, (left, right) in zip(cores, self.cores, bonds, strict=True):
            sizes = [self.shape[axis] for axis in axes]
            before = [] if left is None else [core.shape[0]]
            behind = [] if right is None else [core.shape[2]]
            shaped.append(core.reshape(*before, *sizes, *behind))
            labels.append(tuple(label for label in (left, *axes, right) if label is not None))
        return Network(tuple(shaped), tuple(labels), tuple(range(len(self.shape))))

    def contraction(self) -> Contraction:
        """Return a chain without steps."""
        return Contraction(self.modes, self.rows)


def window_cores(modes: Modes, first: int, whole: bool) -> list[tuple[int, ...]]:
    """Return the axes of the window, those of each core together.

    Axes of size 1 are with the first core, and there is none if all are.

    Parameters
    ----------
    first
        The first of these axes.
    whole
        Whether all are to be in one core.
    """
    if not modes.wide:
        return []
    if whole:
        return [tuple(range(first, first + len(modes.window)))]
    narrow = [first + axis for axis in range(len(modes.window)) if axis not in modes.wide]
    head, *others = ((first + axis,) for axis in modes.wide)
    return [tuple(sorted((*head, *narrow))), *others]


@dataclass(frozen=True)
class Train(Row):
    """Tensor trains, `W(i₁, …, i_d) = G₁[i₁] G₂[i₂] … G_d[i_d]` (Oseledets 2011).

    Attributes
    ----------
    t
        Size of the last axis of the outputs, which the first core has, where the train is
        semi-tensor: all cores but the first are `F ⊗ I_t`. Otherwise 1, and there is no such axis.
    backward
        Whether the core of the last modes is the first step.
    polishing
        As of `Structure`: two rounds lower the error of trained 3×3 kernels by 1 %, and six
        more by a fifth of that.
    """

    t: int = 1
    backward: bool = False
    polishing: int = 2

    def _bonds(self) -> list[Bonds]:
        ties = [None, *map(self.bond, range(1, len(self.cores))), None]
        return list(pairwise(ties))

    def _limits(self) -> list[int]:
        """Return the smaller side of each unfolding."""
        sizes = self.sizes
        return [min(prod(sizes[:k]), prod(sizes[k:])) for k in range(1, len(sizes))]

    def _inner(self, ranks: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of all bonds, with 1 at both ends."""
        return (1, *(rank // self.t for rank in ranks), 1)

    def levels(self, tensors: Sequence[Matrix]) -> Sequence[tuple[int, ...]]:
        """Return ranks from one each on, raised where the unfoldings' singular values say so."""
        sizes = self.sizes
        merged = [self.merged(tensor) for tensor in tensors]
        energies = [
            spectrum_of([m.reshape(prod(sizes[:k]), -1) for m in merged])
            for k in range(1, len(sizes))
        ]
        found = nested_ranks(energies, self._entries, self._fit)
        return [tuple(self.t * rank for rank in ranks) for ranks in found]

    def _entries(self, inner: tuple[int, ...]) -> int:
        whole = (1, *inner, 1)
        return sum(a * n * b for a, n, b in zip(whole, self.sizes, whole[1:], strict=False))

    def _fit(self, inner: tuple[int, ...]) -> bool:
        """Return whether no rank is above what the one beside it allows."""
        return self._misfit((1, *inner, 1)) is None

    def _misfit(self, whole: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the number of a bond that is too large, and what is the largest."""
        for number, (left, size, right) in enumerate(
            zip(whole, self.sizes, whole[1:], strict=False)
        ):
            if right > left * size:
                return number + 1, left * size
            if left > right * size:
                return number, right * size
        return None

    def closest(self, ranks: tuple[int, ...] | int) -> tuple[int, ...]:
        """Return the ranks asked for, each at most that of its unfolding."""
        limits = [self.t * limit for limit in self._limits()]
        names = [f"bond {number}" for number in range(1, len(self.cores))]
        found = ranks_asked(ranks, limits, names, [self.t] * len(limits))
        misfit = self._misfit(self._inner(found))
        if misfit is not None:
            number, largest = misfit
            raise UsageError(
                f"rank {found[number - 1]} of bond {number} is more than those beside it leave, "
                f"{self.t * largest}: take {self.t * largest} or raise the others"
            )
        return found

    def decompose(self, tensor: Matrix, ranks: tuple[int, ...], seed: int) -> Network:  # noqa: ARG002
        """Return a train, by singular value decompositions from the first core on (TT-SVD).

        The squared error is at most the sum of what is cut off of the unfoldings' squared singular
        values (Oseledets 2011, theorem 2.2).
        """
        train = tensor_train(self.merged(tensor), list(self._inner(ranks)))
        return self.network([np.asarray(core) for core in train], self._bonds())

    def empty(self, ranks: tuple[int, ...]) -> Network:
        """Return a network of zeros."""
        inner = self._inner(ranks)
        shapes = zip(inner, self.sizes, inner[1:], strict=False)
        return self.network([np.zeros(shape) for shape in shapes], self._bonds())

    def parameters(self, ranks: tuple[int, ...]) -> int:
        """Return the entries of all cores."""
        return self._entries(self._inner(ranks)[1:-1])

    def chain(self, networks: Sequence[Network]) -> Chain:
        """Return one step for each core."""
        steps = self.contraction()
        order = list(range(len(self.cores)))
        stay = self.outputs[-1] if self.t > 1 else None
        for number in reversed(order) if self.backward else order:
            labels = networks[0].labels[number]
            cores = np.stack([network.cores[number] for network in networks])
            steps.take(cores, labels, self._made(number, steps.features))
            left = [label for label in steps.features if label in self.inputs]
            if stay in steps.features and not left and steps.features[-1] != stay:
                # Behind the others it needs no move of groups, and is where the outputs have it.
                steps.arrange([*(f for f in steps.features if f != stay), self.outputs[-1]])
        return steps.chain()

    def _made(self, number: int, features: Sequence[int]) -> list[int]:
        """Return what a core makes: outputs, then the index that the next core sums over.

        Backward the index comes first. The first core of a semi-tensor train also makes the axis
        that all others leave as it is; it is in front while there are inputs left.
        """
        axes = [axis for axis in self.cores[number] if axis in self.outputs]
        stays = axes[-1:] if number == 0 and self.t > 1 else []
        axes = axes[: len(axes) - len(stays)]
        left, right = self._bonds()[number]
        next_bond = left if self.backward else right
        tied = [] if next_bond is None else [next_bond]
        made = [*tied, *axes] if self.backward else [*axes, *tied]
        rest = [label for label in features if label in self.inputs]
        alone = set(rest) <= set(self.cores[number]) and not self.backward
        return [*made, *stays] if alone else [*stays, *made]
