"""Fits the cores of a network in turn, in any metric that is quadratic in the difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxlr.methods.tensors.network import Network
from onnxlr.methods.tensors.preconditioning import preconditioner
from onnxlr.metrics import Metric, row_importance, unfold_inputs

__all__ = ["curvature", "refine"]

Matrix = npt.NDArray[np.float64]

Curvature = Callable[[Matrix], Matrix]
"""`D ↦ M(D)` of a difference `(inputs, outputs)`, symmetric, with squared error `⟨D, M(D)⟩`."""

_STEPS = 8
"""Conjugate gradients for one core before the next one's turn."""

_NEAR = 1e-2
"""They end when the squared gradient, as the preconditioner measures it, is this part of the first.
"""

_WORK = 1e11
"""Multiplications that one fit may take by a metric of all inputs; every core has a step at least.
"""

_SETTLED = 1e-4
"""Sweeps end when one lowers the squared error by less than this part of it."""


def curvature(metric: Metric, part: int, groups: int | None) -> Curvature | None:
    """Return half the second derivative of a metric's squared error, None for the identity."""
    if metric.importance is not None:
        importance = unfold_inputs(metric.importance, groups)
        if metric.name == "fisher-rows":
            rows = row_importance(importance)[part][:, None]
            return lambda difference: rows * difference
        entries = importance[part]
        return lambda difference: entries * difference
    if metric.covariance is None:
        return None
    covariance = metric.covariance[part if len(metric.covariance) > 1 else 0]
    if metric.output_covariance is None:
        return lambda difference: covariance @ difference
    width = len(metric.output_covariance) // (groups or 1)
    block = slice(part * width, (part + 1) * width)
    both = metric.output_covariance[block, block]
    return lambda difference: covariance @ difference @ both


def refine(
    network: Network,
    target: Matrix,
    weigh: Curvature | None,
    sweeps: int,
    roots: Sequence[Matrix | None] | None = None,
) -> Network:
    """Return a network of less error, by alternating least squares.

    The tensor is linear in each core: with the others fixed, its least squares problem is solved by
    conjugate gradients on the normal equations, from where it is, so that the error never grows.

    Parameters
    ----------
    network
        The cores to start from.
    target
        What to approximate, `(inputs, outputs)`.
    weigh
        The metric, as `curvature` returns it; None for the Frobenius norm.
    sweeps
        Rounds over all cores, at most.
    roots
        Of the metric's marginals, as `AxisWeighings` has them: with these, a few steps go where
        dozens would without (CP of a 64×64×3×3 kernel: one sweep below what six reached).
    """
    if roots is None:
        roots = [None] * len(network.open)
    residual = target - network.dense().reshape(target.shape)
    error = _squared(residual, weigh)
    steps, most = _effort(network, target, weigh, sweeps)
    for _ in range(most):
        before = error
        # The last core first: it has seen nothing of the metric where only inputs were weighed.
        for position in reversed(range(len(network.cores))):
            network, residual = _solved(network, position, residual, weigh, roots, steps)
        error = _squared(residual, weigh)
        if not before - error > _SETTLED * before:
            break
    return network


def _effort(
    network: Network, target: Matrix, weigh: Curvature | None, sweeps: int
) -> tuple[int, int]:
    """Return how many steps for one core, and how many sweeps."""
    if weigh is None:
        return _STEPS, sweeps
    inputs, outputs = target.shape
    affordable = int(_WORK / (inputs**2 * outputs)) // len(network.cores)
    steps = min(max(affordable - 1, 1), _STEPS)  # one more product by the metric for each core
    return steps, min(max(affordable // (steps + 1), 1), sweeps)


def _squared(residual: Matrix, weigh: Curvature | None) -> float:
    return float(np.vdot(residual, residual if weigh is None else weigh(residual)))


def _solved(
    network: Network,
    position: int,
    residual: Matrix,
    weigh: Curvature | None,
    roots: Sequence[Matrix | None],
    steps: int,
) -> tuple[Network, Matrix]:
    """Return the network with one core nearer to its least squares, and what then is left."""
    core = network.cores[position]

    def forward(step: Matrix) -> Matrix:
        return network.with_core(position, step).dense().reshape(residual.shape)

    def backward(difference: Matrix) -> Matrix:
        weighed = difference if weigh is None else weigh(difference)
        return network.adjoint(position, weighed)

    approach = preconditioner(network, position, roots)
    gradient = backward(residual)
    direction = approach(gradient)
    start = norm = float(np.vdot(gradient, direction))
    for _ in range(steps):
        if not norm > _NEAR * start or norm == 0:
            break
        change = forward(direction)
        back = backward(change)
        bend = float(np.vdot(direction, back))
        if not bend > 0:
            break
        length = norm / bend
        core = core + length * direction
        residual = residual - length * change
        gradient = gradient - length * back
        nearer = approach(gradient)
        previous, norm = norm, float(np.vdot(gradient, nearer))
        direction = nearer + (norm / previous) * direction
    return network.with_core(position, core), residual
