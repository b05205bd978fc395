"""What the least squares of one core would be, were the metric a product of its marginals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnxlr.methods.tensors.network import Network, contract

__all__ = ["preconditioner"]

Matrix = npt.NDArray[np.float64]

_LARGEST = 2048
"""Inner indices of one core together up to which they are solved for."""

_RIDGE = 1e-10
"""Of a Gram matrix, relative to its mean diagonal: components may depend on each other."""


def preconditioner(
    network: Network, position: int, roots: Sequence[Matrix | None]
) -> Callable[[Matrix], Matrix]:
    """Return the solution of one core's normal equations, in a metric near the true one.

    With a metric that is a Kronecker product over the axes they are one too, of the metric's
    factors at the core's open indices and of the Gram matrix of all other cores at its inner ones.
    In the Frobenius norm conjugate gradients with it end after one step.

    Parameters
    ----------
    position
        Of the core.
    roots
        Of the metric's factor at each open index, as `AxisWeighings` has them.
    """
    by_label = dict(zip(network.open, roots, strict=True))
    labels = network.labels[position]
    outer = [label for label in labels if label in by_label]
    inner = [label for label in labels if label not in by_label]
    order = [labels.index(label) for label in (*outer, *inner)]
    count = prod(network.cores[position].shape[axis] for axis in order[len(outer) :])
    solve = _solver(network, position, by_label, inner, count)

    def apply(gradient: Matrix) -> Matrix:
        moved = gradient.transpose(order)
        solved = solve(moved.reshape(-1, count)).reshape(moved.shape)
        for axis, label in enumerate(outer):
            solved = _without(by_label[label], solved, axis)
        return np.asarray(solved.transpose(np.argsort(order)))

    return apply


def _solver(
    network: Network,
    position: int,
    roots: dict[int, Matrix | None],
    inner: Sequence[int],
    count: int,
) -> Callable[[Matrix], Matrix]:
    """Return the product of rows by the inverse Gram matrix of the other cores."""
    if count > _LARGEST:
        return lambda rows: rows
    gram = _gram(network, position, roots, inner).reshape(count, count)
    ridge = _RIDGE * float(np.trace(gram)) / count
    if not ridge > 0:
        return lambda rows: rows
    factor = linalg.cho_factor(gram + ridge * np.eye(count))
    return lambda rows: np.asarray(linalg.cho_solve(factor, rows.T).T)


def _gram(
    network: Network, position: int, roots: dict[int, Matrix | None], inner: Sequence[int]
) -> Matrix:
    """Return all other cores, contracted with themselves but for the core's inner indices."""
    far = 1 + max(max(labels) for labels in network.labels)

    def apart(labels: Sequence[int]) -> tuple[int, ...]:
        return tuple(label if label in roots else label + far for label in labels)

    arrays, axes = [], []
    for other, (core, labels) in enumerate(zip(network.cores, network.labels, strict=True)):
        if other == position:
            continue
        for axis, label in enumerate(labels):
            core = _with(roots.get(label), core, axis)
        arrays += [core, core]
        axes += [labels, apart(labels)]
    if not arrays:
        return np.eye(1)
    return contract(arrays, axes, (*inner, *apart(inner)))


def _with(root: Matrix | None, core: Matrix, axis: int) -> Matrix:
    if root is None:
        return core
    moved = np.moveaxis(core, axis, -1)
    moved = moved * root if root.ndim == 1 else moved @ root.T
    return np.asarray(np.moveaxis(moved, -1, axis))


def _without(root: Matrix | None, core: Matrix, axis: int) -> Matrix:
    """Return a core by the inverse of the metric's factor `rootᵀ root` along one axis."""
    if root is None:
        return core
    moved = np.moveaxis(core, axis, 0)
    flat = moved.reshape(len(moved), -1)
    flat = flat / (root**2)[:, None] if root.ndim == 1 else linalg.cho_solve((root, False), flat)
    return np.asarray(np.moveaxis(flat.reshape(moved.shape), 0, axis))
