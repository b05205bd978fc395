"""Cores that are contracted to a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Network", "contract"]

Matrix = npt.NDArray[np.float64]

_LARGEST = 1 << 28
"""Entries that what lies between two contractions may have. By default those of the largest operand
or result, which for an index of three cores leaves one contraction of them all, without BLAS: ten
times as slow for CP of a 128×128×3×3 kernel."""


@dataclass(frozen=True)
class Network:
    """A tensor as a sum over the inner indices of a product of cores.

    Attributes
    ----------
    cores
        Arrays.
    labels
        For each core, the index of each of its axes. An index that is not open is summed over; one
        that more than two cores have ties them all, as the components of CP do.
    open
        Indices of the tensor's axes in order.
    """

    cores: tuple[Matrix, ...]
    labels: tuple[tuple[int, ...], ...]
    open: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Entries of all cores."""
        return sum(core.size for core in self.cores)

    def dense(self) -> Matrix:
        """Return the tensor."""
        return contract(self.cores, self.labels, self.open)

    def with_core(self, position: int, core: Matrix) -> Network:
        """Return the network with another core."""
        cores = (*self.cores[:position], core, *self.cores[position + 1 :])
        return replace(self, cores=cores)

    def adjoint(self, position: int, tensor: Matrix) -> Matrix:
        """Return the tensor contracted with all cores but one, in the shape of that one.

        The tensor depends on each core linearly; this is the transpose of that map.
        """
        others = [i for i in range(len(self.cores)) if i != position]
        arrays = [tensor.reshape(self._sizes()), *(self.cores[i] for i in others)]
        labels = [self.open, *(self.labels[i] for i in others)]
        return contract(arrays, labels, self.labels[position])

    def balanced(self) -> Network:
        """Return the same tensor by cores of one norm, none of which overflows a small type."""
        norms = np.array([float(np.linalg.norm(core)) for core in self.cores])
        if not (norms > 0).all():
            return self
        factors = np.exp(np.log(norms).mean()) / norms
        return replace(self, cores=tuple(c * f for c, f in zip(self.cores, factors, strict=True)))

    def _sizes(self) -> tuple[int, ...]:
        sizes = {
            label: size
            for core, labels in zip(self.cores, self.labels, strict=True)
            for label, size in zip(labels, core.shape, strict=True)
        }
        return tuple(sizes[label] for label in self.open)


def contract(
    arrays: Sequence[Matrix], labels: Sequence[tuple[int, ...]], result: tuple[int, ...]
) -> Matrix:
    """Return a product of arrays, summed over the labels of their axes the result has not."""
    shapes = tuple(array.shape for array in arrays)
    path = _path(shapes, tuple(labels), result)
    operands: list[Any] = []
    for array, axes in zip(arrays, labels, strict=True):
        operands += [array, list(axes)]
    return np.asarray(np.einsum(*operands, list(result), optimize=path))


@lru_cache(maxsize=1024)
def _path(
    shapes: tuple[tuple[int, ...], ...],
    labels: tuple[tuple[int, ...], ...],
    result: tuple[int, ...],
) -> Any:
    """Return the order of contractions; finding it takes longer than many of them."""
    operands: list[Any] = []
    for shape, axes in zip(shapes, labels, strict=True):
        operands += [np.broadcast_to(0.0, shape), list(axes)]
    kind = "optimal" if len(shapes) < 6 else "greedy"
    return np.einsum_path(*operands, list(result), optimize=(kind, _LARGEST))[0]
