"""Coordinate descent: never worse, and still where no single entry can be better."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.semidiscrete.descent import descend
from onnxlr.methods.semidiscrete.terms import Fitted, Goal, Terms


def _correlated(generator, size, share):
    """Return a covariance whose largest eigenvalue is that share of its trace."""
    basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
    others = generator.uniform(0, 1, size - 1) ** 4
    values = np.concatenate([[share], (1 - share) * others / max(others.sum(), 1e-9)])
    return ((basis * values) @ basis.T * size).astype(np.float32)


def _goal(generator, inputs, outputs, kind):
    matrix = generator.standard_normal((inputs, outputs)).astype(np.float32)
    if kind == "none":
        return Goal(matrix)
    if kind == "strongly" and inputs > 1:
        return Goal(matrix, _correlated(generator, inputs, 0.9))
    if kind == "singular":
        x = generator.standard_normal((max(inputs // 3, 1), inputs))
        return Goal(matrix, (x.T @ x / len(x)).astype(np.float32))
    x = generator.standard_normal((4 * inputs, inputs)) * generator.uniform(0.01, 1, inputs)
    return Goal(matrix, (x.T @ x / len(x)).astype(np.float32))


def _start(generator, count, inputs, outputs, goal):
    left, right = (
        generator.integers(-1, 2, (count, size)).astype(np.float32) for size in (inputs, outputs)
    )
    return Fitted.of(Terms(left, right, np.ones(count)), goal).solved()


def _squared(goal, terms):
    """Return the squared error, in float64."""
    wrong = goal.matrix - np.einsum(
        "k,ki,kj->ij", terms.strengths, terms.left, terms.right, dtype=np.float64
    )
    if goal.covariance is None:
        return float((wrong**2).sum())
    return float(np.einsum("ij,ik,kj->", wrong, goal.covariance.astype(np.float64), wrong))


KINDS = st.sampled_from(["none", "usual", "strongly", "singular"])


@settings(deadline=None, max_examples=80)
@given(
    sizes=st.tuples(st.integers(1, 90), st.integers(1, 40), st.integers(1, 80)),
    seed=st.integers(0, 99),
    kind=KINDS,
)
def test_the_error_never_rises(sizes, seed, kind):
    inputs, outputs, count = sizes
    generator = np.random.default_rng([seed, *sizes])
    goal = _goal(generator, inputs, outputs, kind)
    whole = _squared(goal, Terms.none(inputs, outputs))
    fitted = _start(generator, count, inputs, outputs, goal)
    before = _squared(goal, fitted.terms)
    for _ in range(3):
        fitted = descend(fitted)
        for side in (fitted.terms.left, fitted.terms.right):
            assert set(np.unique(side)) <= {-1.0, 0.0, 1.0}
        after = _squared(goal, fitted.terms)
        # The ridge and float32 leave a little
        assert after <= before + 2e-4 * whole
        before = after


@pytest.mark.parametrize("kind", ["none", "usual", "strongly"])
def test_it_gains_where_there_is_much_to_gain(kind):
    generator = np.random.default_rng(4)
    goal = _goal(generator, 100, 70, kind)
    fitted = _start(generator, 82, 100, 70, goal)
    before = _squared(goal, fitted.terms)
    for _ in range(12):
        fitted = descend(fitted)
    assert _squared(goal, fitted.terms) < 0.5 * before


def _settled(goal, terms):
    """Return the terms after changing one entry at a time until none is better, by brute force."""
    moved = True
    while moved:
        moved = False
        for side in (terms.left, terms.right):
            for place in product(*map(range, side.shape)):
                errors = []
                for value in (-1, 0, 1):
                    was, side[place] = side[place], value
                    errors.append(_squared(goal, terms))
                    side[place] = was
                now = errors[int(side[place]) + 1]
                if min(errors) < now - 1e-6:
                    side[place] = int(np.argmin(errors)) - 1
                    moved = True
        solved = Fitted.of(terms, goal).solved().terms
        terms = Terms(terms.left, terms.right, solved.strengths)
    return terms


@pytest.mark.parametrize("kind", ["none", "usual", "strongly"])
@pytest.mark.parametrize("seed", range(6))
def test_what_no_single_entry_makes_better_stays(kind, seed):
    generator = np.random.default_rng(seed)
    inputs, outputs, count = 6, 5, 3
    goal = _goal(generator, inputs, outputs, kind)
    start = _start(generator, count, inputs, outputs, goal).terms
    best = _settled(goal, start)
    found = descend(Fitted.of(best, goal)).terms
    assert _squared(goal, found) == pytest.approx(_squared(goal, best), rel=1e-4, abs=1e-6)
    # Entries of terms of strength 0 are free
    strong = np.abs(best.strengths) > 1e-3
    assert strong.any()
    assert np.array_equal(found.left[strong], best.left[strong])
    assert np.array_equal(found.right[strong], best.right[strong])


@pytest.mark.parametrize("kind", ["none", "usual", "strongly"])
@pytest.mark.parametrize("seed", range(4))
def test_where_it_rests_no_single_entry_is_better(kind, seed):
    """Over several blocks of coordinates, so that a gradient that is not kept up would show."""
    generator = np.random.default_rng(seed)
    inputs, outputs, count = 70, 12, 68
    goal = _goal(generator, inputs, outputs, kind)
    fitted = _start(generator, count, inputs, outputs, goal)
    for _ in range(300):
        before, fitted = fitted, descend(fitted)
        same = np.array_equal(before.terms.left, fitted.terms.left)
        if same and np.array_equal(before.terms.right, fitted.terms.right):
            break
    else:
        pytest.fail("it never rests")
    terms = fitted.terms
    here, whole = _squared(goal, terms), _squared(goal, Terms.none(inputs, outputs))
    for side in (terms.left, terms.right):
        for place in generator.integers(0, side.shape, (150, 2)):
            was = side[tuple(place)]
            for value in {-1.0, 0.0, 1.0} - {float(was)}:
                side[tuple(place)] = value
                assert _squared(goal, terms) >= here - 1e-5 * whole
            side[tuple(place)] = was


def test_no_terms_stay_none():
    generator = np.random.default_rng(0)
    for kind in ("none", "usual"):
        goal = _goal(generator, 5, 4, kind)
        assert descend(Fitted.of(Terms.none(5, 4), goal)).terms.count == 0


def test_terms_of_strength_zero_and_inputs_of_variance_zero():
    generator = np.random.default_rng(1)
    goal = _goal(generator, 8, 6, "usual")
    covariance = np.asarray(goal.covariance).copy()
    covariance[2], covariance[:, 2] = 0, 0
    goal = Goal(goal.matrix, covariance)
    fitted = _start(generator, 4, 8, 6, goal)
    strengths = fitted.terms.strengths.copy()
    strengths[1] = 0
    fitted = Fitted.of(Terms(fitted.terms.left, fitted.terms.right, strengths), goal)
    before = _squared(goal, fitted.terms)
    with np.errstate(invalid="raise", divide="raise"):
        after = descend(fitted).terms
    assert np.isfinite(after.strengths).all()
    assert _squared(goal, after) <= before * (1 + 1e-4)
