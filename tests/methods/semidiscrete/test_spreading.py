"""Copies of terms that stand out."""

from __future__ import annotations

import numpy as np

from onnxlr.methods.semidiscrete.descent import descend
from onnxlr.methods.semidiscrete.growth import grow
from onnxlr.methods.semidiscrete.spreading import spread
from onnxlr.methods.semidiscrete.terms import Fitted, Goal, Terms


def _fitted(seed, strong=1.0, count=60, inputs=64, outputs=48):
    """Return terms of which the first is that much stronger than the others."""
    generator = np.random.default_rng(seed)
    left, right = (
        generator.integers(-1, 2, (count, size)).astype(np.float32) for size in (inputs, outputs)
    )
    strengths = np.ones(count)
    strengths[0] = strong
    noise = 0.5 * generator.standard_normal((inputs, outputs))
    matrix = np.einsum("k,ki,kj->ij", strengths, left, right) + noise
    return Fitted.of(Terms(left, right, strengths), Goal(matrix.astype(np.float32))).solved()


def _grown(seed, direction=12.0, count=110, inputs=64, outputs=48):
    """Return terms that were found for normal numbers with one direction that stands out."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((inputs, outputs))
    matrix += direction * np.outer(*(generator.standard_normal(size) for size in (inputs, outputs)))
    goal = Goal(matrix.astype(np.float32))
    fitted = Fitted.of(grow(goal, Terms.none(inputs, outputs), count, generator, 8), goal).solved()
    for _ in range(4):
        fitted = descend(fitted)
    return fitted


def _largest(terms):
    """Return the largest root mean square of a term's sum over normal inputs."""
    return float((np.abs(terms.strengths) * np.sqrt((terms.left**2).sum(axis=1))).max())


def test_as_many_terms_of_which_the_strong_one_is_several():
    fitted = _grown(0)
    found = spread(fitted)
    assert found.count == fitted.terms.count
    assert _largest(found) < 0.6 * _largest(fitted.terms)
    strongest = np.argmax(found.strengths * (found.left**2).sum(axis=1))
    same = (found.left == found.left[strongest]).all(axis=1)
    assert np.count_nonzero(same) > 1
    assert len(np.unique(found.strengths[same])) == 1


def test_rounding_what_lies_between_costs_less():
    """Simulated: rows of sums rounded to 127 steps of the largest, before the second factor."""
    x = np.random.default_rng(1).standard_normal((500, 64))
    for seed in (0, 1):
        fitted = _grown(seed)
        matrix = fitted.goal.matrix.astype(np.float64)
        errors = []
        for terms in (fitted.terms, spread(fitted)):
            sums = x @ (terms.left.T * terms.strengths)
            steps = np.abs(sums).max(axis=1, keepdims=True) / 127
            rounded = np.rint(sums / steps) * steps
            errors.append(np.linalg.norm(rounded @ terms.right - x @ matrix))
        assert errors[1] < 0.95 * errors[0]


def test_the_error_of_fit_does_not_grow_by_more_than_rounding_gains():
    """Terms that the matrix was made of are all needed."""
    for seed in range(4):
        fitted = _fitted(seed, strong=10.0)
        before, after = (fitted.goal.error(terms) for terms in (fitted.terms, spread(fitted)))
        peak = _largest(fitted.terms) / 127
        wide = float(np.square(fitted.terms.right).sum())
        rounding = wide * peak**2 * np.log(60) / 6 / fitted.goal.total
        assert after**2 <= before**2 + rounding


def test_nothing_changes_where_nothing_stands_out():
    fitted = _fitted(2, strong=1.0)
    found = spread(fitted)
    assert found.count == fitted.terms.count
    assert np.array_equal(found.left, fitted.terms.left)
    assert np.array_equal(found.strengths, fitted.terms.strengths)


def test_no_terms_and_one():
    goal = Goal(np.ones((4, 3), np.float32))
    assert spread(Fitted.of(Terms.none(4, 3), goal)).count == 0
    one = Terms(np.ones((1, 4), np.float32), np.ones((1, 3), np.float32), np.ones(1))
    assert spread(Fitted.of(one, goal)).count == 1
