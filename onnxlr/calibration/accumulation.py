"""Sums of products of rows, in float64, of tensors as they come out of a running model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dsyrk

from onnxlr.calibration.geometry import Block, Geometry, row_blocks, rows, window_blocks

__all__ = ["NotFiniteError", "Ranges", "Recipe", "Source", "Sums", "masked_rows"]

_PENDING_ROWS = 512
"""Rows are gathered until there are so many: adding few to a large matrix costs as much as many."""

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Source:
    """Where rows come from; the fields are JSON values.

    Attributes
    ----------
    tap
        Position of the tensor among those that are handed out.
    geometry
        How rows are made of it.
    original
        Position of the same tensor of another model, to be multiplied with; None for none.
    """

    tap: int
    geometry: Geometry
    original: int | None = None

    @classmethod
    def of(cls, tap: int, geometry: dict[str, Any], original: int | None) -> Source:
        """Return a source out of JSON values."""
        return cls(tap, Geometry(**geometry), original)


@dataclass(frozen=True)
class Recipe:
    """What one accumulator sums up; the fields are JSON values.

    Attributes
    ----------
    sources
        One for each site; their products are added, their means kept apart.
    groups, inputs
        Of the matrices to accumulate.
    """

    sources: Sequence[Source]
    groups: int
    inputs: int

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices, and of rows that wait to be added."""
        matrices = 3 if any(source.original is not None for source in self.sources) else 1
        return matrices * 8 * self.groups * self.inputs * (self.inputs + _PENDING_ROWS)


class NotFiniteError(Exception):
    """A tensor holds NaN or infinity.

    Attributes
    ----------
    tap
        Which one.
    bad, size
        How many of its entries, and of how many.
    """

    def __init__(self, tap: int, tensor: Array) -> None:
        super().__init__(tap)
        self.tap = tap
        self.size = int(tensor.size)
        self.bad = self.size - int(np.count_nonzero(np.isfinite(tensor.astype(np.float64))))


class Ranges:
    """Smallest and largest entries of some tensors, each seen many times."""

    def __init__(self, count: int) -> None:
        self.low = np.full(count, np.nan)
        self.high = np.full(count, np.nan)

    def add(self, position: int, tap: int, tensor: Array) -> None:
        """Take in one tensor; raises NotFiniteError."""
        if not tensor.size:
            return
        low, high = float(tensor.min()), float(tensor.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise NotFiniteError(tap, tensor)
        self.low[position] = np.fmin(self.low[position], low)
        self.high[position] = np.fmax(self.high[position], high)


class Sums:
    """What one accumulator has summed up; `arrays` names and explains the parts."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        sites = len(recipe.sources)
        shape = (recipe.groups, recipe.inputs)
        self._paired = any(source.original is not None for source in recipe.sources)
        self._counts = np.zeros(sites, np.int64)
        self._sums = np.zeros((sites, *shape))
        self._original_sums = np.zeros((sites, *shape) if self._paired else 0)
        self._products = _zeros(shape)
        self._cross = _zeros(shape) if self._paired else None
        self._target = _zeros(shape) if self._paired else None
        self._ranges = Ranges(sites)
        self._pending: list[tuple[Block, ...]] = []
        self._pending_rows = 0

    def add(self, site: int, tensors: Sequence[Array], mask: Array | None) -> bool:
        """Take in the data of a site out of all tensors of a run.

        Returns
        -------
        bool
            Whether the mask, if there is one, fits the data.

        Raises
        ------
        NotFiniteError
            If the data holds NaN or infinity.
        """
        source = self._recipe.sources[site]
        taps = [source.tap] if source.original is None else [source.tap, source.original]
        if any(not tensors[tap].size for tap in taps):
            return True  # a branch that was not taken, or no rows
        parts, fits = [], True
        for tap in taps:
            data, fits = masked_rows(tensors[tap], source.geometry, mask)
            self._ranges.add(site, tap, data)
            parts.append(_blocks(data, source.geometry))
        for blocks in zip(*parts, strict=True):
            self._counts[site] += blocks[0].shape[1]
            self._sums[site] += blocks[0].sum(axis=1)
            if self._paired:
                self._original_sums[site] += blocks[-1].sum(axis=1)
            self._gather(blocks)
        return fits

    def arrays(self, prefix: str) -> Arrays:
        """Return the sums: `counts`, `sums`, `products`, `low`, `high`, and those of pairs."""
        self._flush()
        found: Arrays = {
            "counts": self._counts,
            "sums": self._sums,
            "products": _symmetric(self._products),
            "low": self._ranges.low,
            "high": self._ranges.high,
        }
        if self._cross is not None and self._target is not None:
            found["original_sums"] = self._original_sums
            found["cross"] = np.stack(self._cross)
            found["target"] = _symmetric(self._target)
        return {prefix + name: array for name, array in found.items()}

    def _gather(self, blocks: tuple[Block, ...]) -> None:
        if blocks[0].shape[1] >= _PENDING_ROWS:
            self._multiply(blocks)
            return
        self._pending.append(blocks)
        self._pending_rows += blocks[0].shape[1]
        if self._pending_rows >= _PENDING_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._multiply(
                tuple(np.concatenate(p, axis=1) for p in zip(*self._pending, strict=True))
            )
        self._pending, self._pending_rows = [], 0

    def _multiply(self, blocks: tuple[Block, ...]) -> None:
        for group, matrix in enumerate(blocks[0]):
            self._products[group] = _add_square(self._products[group], matrix)
        if self._cross is None or self._target is None:
            return
        for group, (matrix, original) in enumerate(zip(*blocks, strict=True)):
            self._cross[group] += matrix.T @ original
            self._target[group] = _add_square(self._target[group], original)


def masked_rows(tensor: Array, geometry: Geometry, mask: Array | None) -> tuple[Array, bool]:
    """Return the part of a tensor that counts, and whether the mask fits it.

    Matrices: `(rows, inputs)`, without the rows where the mask is 0. The mask fits if it has the
    leading dimensions of the tensor, or is as long as the only one. Convolutions, and tensors
    without entries: the tensor.
    """
    if geometry.kernel is not None or not tensor.size:
        return tensor, mask is None or not tensor.size
    apart = rows(tensor, geometry)
    leading = [size for size in apart.shape[:-1] if size != 1]
    flat = apart.reshape(-1, apart.shape[-1])
    if mask is None:
        return flat, True
    if leading != [size for size in mask.shape if size != 1] and leading != [mask.size]:
        return flat, False
    return flat[mask.ravel() != 0], True


def _blocks(data: Array, geometry: Geometry) -> Iterator[Block]:
    return row_blocks(data) if geometry.kernel is None else window_blocks(data, geometry)


def _zeros(shape: tuple[int, int]) -> list[npt.NDArray[np.float64]]:
    groups, inputs = shape
    return [np.zeros((inputs, inputs), order="F") for _ in range(groups)]


def _add_square(
    total: npt.NDArray[np.float64], matrix: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Add `matrixᵀ matrix` to the upper triangle of a matrix in Fortran order, in place."""
    # BLAS takes Fortran order without a copy: a matrix in C order is its transpose's
    turned = not matrix.flags.f_contiguous
    added: npt.NDArray[np.float64] = dsyrk(
        1.0,
        matrix.T if turned else matrix,
        beta=1.0,
        c=total,
        trans=0 if turned else 1,
        overwrite_c=1,
    )
    return added


def _symmetric(triangles: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return whole matrices out of upper triangles."""
    return np.stack([np.triu(t) + np.triu(t, 1).T for t in triangles])
