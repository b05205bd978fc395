"""Adam and the switch to gradient descent, on functions whose course can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from onnxlr.methods.switching import descend


def _watch(curvatures, start, iterations, shift=0.0):
    """Return the positions, errors and gradients of `Σ c x² + shift` as the error's square."""
    seen = [(start, np.sqrt(curvatures @ start**2 + shift), 2 * curvatures * start)]

    def look(x):
        seen.append((x, np.sqrt(curvatures @ x**2 + shift), 2 * curvatures * x))
        return seen[-1][1:]

    descend(start, seen[0][2], look, iterations)
    return [np.array(part) for part in zip(*seen, strict=True)]


def test_the_first_step_is_adams_and_relative_to_the_size_of_the_start():
    start = np.array([3.0, -4.0])
    for scale in (1e-3, 1.0, 1e6):
        positions, _, _ = _watch(np.array([1.0, 50.0]) / scale**2, start * scale, 1)
        size = 0.05 * np.sqrt((9 + 16) / 2)
        assert np.allclose(positions[1] / scale, start - size * np.sign(start), rtol=1e-6)


def test_descent_starts_with_the_rate_that_projects_on_adams_steps():
    # 12 iterations: 9 of Adam, too few for the averaged rate to count as settled, then descent
    positions, _, gradients = _watch(np.array([1.0, 3.0, 20.0]), np.array([1.0, -2.0, 1.5]), 12)
    average, decay = 0.0, 0.999
    for k in range(9):
        step = positions[k + 1] - positions[k]
        average = decay * average + (1 - decay) * (step @ step) / -(step @ gradients[k])
    rate = average / (1 - decay**9)
    assert np.allclose(positions[10] - positions[9], -0.1 * rate * gradients[9], rtol=1e-9)
    velocity = 0.9 * gradients[9] + gradients[10]
    assert np.allclose(positions[11] - positions[10], -0.1 * rate * velocity, rtol=1e-9)


def test_descent_that_leaves_the_best_behind_goes_back_with_half_the_rate():
    curvatures, start = np.array([1.0, 3.0, 20.0]), np.array([1.0, -2.0, 1.5])
    seen = [start]

    def look(x):
        seen.append(x)
        # the tenth look, the first of descent after nine of Adam, finds an error far too high
        error = np.sqrt(curvatures @ x**2) * (100 if len(seen) == 11 else 1)
        return error, 2 * curvatures * x

    descend(start, 2 * curvatures * start, look, 12)
    assert np.allclose(seen[11], (seen[9] + seen[10]) / 2, rtol=1e-12)
    # the momentum is of the step from the best alone
    velocity = 0.9 * 2 * curvatures * seen[9] + 2 * curvatures * seen[11]
    first = 2 * curvatures * seen[9]
    assert np.allclose(seen[12] - seen[11], (seen[11] - seen[9]) * velocity / first, rtol=1e-9)


@pytest.mark.parametrize("condition", [1.0, 30.0, 1000.0])
def test_both_together_come_near_the_least(condition):
    curvatures = np.geomspace(1, condition, 15)
    _, errors, _ = _watch(curvatures, np.random.default_rng(0).standard_normal(15), 600, shift=0.01)
    assert errors.min() ** 2 < 0.01 + 1e-4 * errors[0] ** 2


def test_nothing_is_looked_at_where_the_gradient_is_rounding_or_no_iteration_is_left():
    assert len(_watch(np.ones(3), np.full(3, 1e-9), 50)[0]) == 1
    assert len(_watch(np.ones(3), np.ones(3), 0)[0]) == 1
    assert len(_watch(np.ones(3), np.ones(3), 7)[0]) == 8
