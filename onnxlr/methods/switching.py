"""Adam, then gradient descent with momentum, from a switching point that Adam's own steps tell.

Source: SWATS (Keskar and Socher, "Improving Generalization Performance by Switching from Adam to
SGD", 2017), algorithm 1. What differs, because the gradient here is exact and its scale unknown:
Adam's rate is relative to the size of what is fitted; the switching tolerance is relative, and the
switch comes at the latest after three quarters of the iterations; and when descent leaves the best
error behind, it goes back there with half the rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["descend"]

Vector = npt.NDArray[np.float64]
Look = Callable[[Vector], tuple[float, Vector]]

_RATE = 0.05
"""Adam's rate, as a share of the root mean square of the start."""

_FIRST, _SECOND = 0.9, 0.999
"""Decay of Adam's moments; the first is also the momentum, the second averages the rate."""

_EPSILON = 1e-8
"""What Adam adds to the root of its second moment, as a share of the first gradient's size."""

_AGREEMENT = 1e-2
"""The average of the rates has settled when the last one is within this share of it."""

_WARM = 10
"""Steps until momentum has its size; the rates of those before say little."""

_SLACK = 1.01
"""How far above the best error momentum may swing before descent goes back."""

_FLAT = 1e-12
"""A gradient is only rounding when its size times the position's is below this."""


@dataclass(frozen=True)
class _Point:
    position: Vector
    error: float
    gradient: Vector

    @property
    def is_flat(self) -> bool:
        return bool(np.linalg.norm(self.position) * np.linalg.norm(self.gradient) <= _FLAT)


def descend(start: Vector, gradient: Vector, look: Look, iterations: int) -> None:
    """Look at positions after the start, each better than those before if all goes well.

    Parameters
    ----------
    start
        The first position, shape `(entries,)`.
    gradient
        The gradient there, of the squared relative error.
    look
        Returns the relative error at a position, and the gradient of its square. Keeping the best
        position is its own business.
    iterations
        How often to look at most: less where nothing but rounding is left of the gradient.
    """
    point = _Point(start, np.inf, gradient)
    if iterations > 0 and not point.is_flat:
        point, rate, used = _adam(point, look, iterations - iterations // 4)
        _sgd(point, rate, look, iterations - used)


def _adam(point: _Point, look: Look, iterations: int) -> tuple[_Point, float, int]:
    """Return where Adam ends, the rate of descent its steps tell, and the iterations used."""
    rate, floor = _RATE * _size(point.position), _EPSILON * _size(point.gradient)
    first, second = np.zeros_like(point.position), np.zeros_like(point.position)
    average, estimate = 0.0, 0.0
    for used in range(1, iterations + 1):
        first += (1 - _FIRST) * (point.gradient - first)
        second += (1 - _SECOND) * (np.square(point.gradient) - second)
        root = np.sqrt(second / (1 - _SECOND**used)) + floor
        step = -rate / (1 - _FIRST**used) * first / root
        slope = -float(step @ point.gradient)
        settled = False
        if slope > 0:
            # the rate whose descent, projected on Adam's step, is that step
            found = float(step @ step) / slope
            average += (1 - _SECOND) * (found - average)
            estimate = average / (1 - _SECOND**used)
            settled = used > _WARM and abs(estimate - found) < _AGREEMENT * estimate
        point = _looked(point.position + step, look)
        if settled or point.is_flat:
            break
    return point, estimate, used


def _sgd(point: _Point, rate: float, look: Look, iterations: int) -> None:
    best, velocity = point, np.zeros_like(point.position)
    for _ in range(iterations):
        if point.is_flat:
            return
        velocity = _FIRST * velocity + point.gradient
        point = _looked(point.position - (1 - _FIRST) * rate * velocity, look)
        if point.error <= best.error:
            best = point
        elif not point.error <= _SLACK * best.error:
            point, rate, velocity = best, rate / 2, np.zeros_like(velocity)


def _looked(position: Vector, look: Look) -> _Point:
    return _Point(position, *look(position))


def _size(values: Vector) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))
