"""Weighs every axis of a tensor by what a metric says of it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.methods.tensors.network import Network
from onnxlr.metrics import Metric, Weighing, row_importance, unfold_inputs

__all__ = ["AxisWeighings"]

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AxisWeighings:
    """A metric as a Kronecker product of one factor for each axis.

    Each is the metric's marginal: its partial trace over all other axes. A tensor multiplied by the
    roots of these along its axes has a Frobenius norm near the metric's, and since every axis of a
    network belongs to one core, the roots can be taken off again.

    Attributes
    ----------
    roots
        For each axis an upper triangular matrix, a vector for a diagonal one, or None for the
        identity.
    """

    roots: tuple[Matrix | None, ...]

    @classmethod
    def of(
        cls,
        metric: Metric,
        part: int,
        groups: int | None,
        rows: Sequence[int],
        columns: Sequence[int],
    ) -> AxisWeighings:
        """Return the weighings of one part's tensor, whose axes are those of rows, then columns."""
        roots: list[Matrix | None] = [None] * (len(rows) + len(columns))
        if metric.importance is not None:
            importance = row_importance(unfold_inputs(metric.importance, groups))[part]
            found = [_root(m) for m in _marginals(importance, rows)]
            roots[: len(rows)] = found
        if metric.covariance is not None:
            covariance = metric.covariance[part if len(metric.covariance) > 1 else 0]
            roots[: len(rows)] = [_root(m) for m in _marginals(covariance, rows)]
        if metric.output_covariance is not None:
            width = prod(columns)
            block = slice(part * width, (part + 1) * width)
            both = metric.output_covariance[block, block]
            roots[len(rows) :] = [_root(m) for m in _marginals(both, columns)]
        return cls(tuple(roots))

    def weigh(self, tensor: Matrix) -> Matrix:
        """Return the tensor multiplied by the roots."""
        for axis, root in enumerate(self.roots):
            if root is None:
                continue
            moved = np.moveaxis(tensor, axis, -1)
            moved = moved * root if root.ndim == 1 else moved @ root.T
            tensor = np.moveaxis(moved, -1, axis)
        return np.ascontiguousarray(tensor)

    def restore(self, network: Network) -> Network:
        """Return the network without the roots."""
        for label, root in zip(network.open, self.roots, strict=True):
            if root is None:
                continue
            position = next(i for i, labels in enumerate(network.labels) if label in labels)
            axis = network.labels[position].index(label)
            moved = np.moveaxis(network.cores[position], axis, 0)
            flat = moved.reshape(len(moved), -1)
            if root.ndim == 1:
                flat = flat / root[:, None]
            else:
                flat = linalg.solve_triangular(root, flat, lower=False)
            core = np.moveaxis(flat.reshape(moved.shape), 0, axis)
            network = network.with_core(position, np.ascontiguousarray(core))
        return network


def _root(marginal: Matrix) -> Matrix | None:
    """Return the root of a marginal; one of a single entry only scales, and is left out."""
    return None if len(marginal) == 1 else Weighing.of(marginal).left


def _marginals(whole: Matrix, sizes: Sequence[int]) -> list[Matrix]:
    """Return the partial traces of a covariance, or sums of a vector, each with mean diagonal 1."""
    found = []
    for axis, size in enumerate(sizes):
        left, right = prod(sizes[:axis]), prod(sizes[axis + 1 :])
        if whole.ndim == 1:
            marginal = whole.reshape(left, size, right).sum(axis=(0, 2))
            scale = marginal.mean()
        else:
            apart = whole.reshape(left, size, right, left, size, right)
            marginal = np.einsum("asbatb->st", apart)
            scale = np.trace(marginal) / size
        found.append(np.asarray(marginal / (scale if scale > 0 else 1.0)))
    return found
