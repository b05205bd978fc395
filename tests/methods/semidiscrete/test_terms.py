"""Strengths against least squares on outer products, errors against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.semidiscrete.terms import Fitted, Goal, Terms


def _terms(generator, count, inputs, outputs):
    left, right = (
        generator.integers(-1, 2, (count, size)).astype(np.float32) for size in (inputs, outputs)
    )
    return Terms(left, right, generator.uniform(0.5, 2, count))


def _covariance(generator, size, damping=0.1):
    x = generator.standard_normal((2 * size, size)) @ generator.standard_normal((size, size))
    c = x.T @ x / len(x) / size
    return (c + damping * np.eye(size)).astype(np.float32)


def _root(covariance, size):
    """Return `L` with `Lᵀ L = C`."""
    if covariance is None:
        return np.eye(size)
    return np.linalg.cholesky(covariance.astype(np.float64)).T


def _sum(terms):
    return np.einsum("k,ki,kj->ij", terms.strengths, terms.left, terms.right, dtype=np.float64)


def _error(goal, approximation):
    root = _root(goal.covariance, len(goal.matrix))
    exact = goal.matrix.astype(np.float64)
    return np.linalg.norm(root @ (exact - approximation)) / np.linalg.norm(root @ exact)


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 8))


@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, seed=st.integers(0, 50), known=st.booleans())
def test_strengths_are_those_of_least_squares(sizes, seed, known):
    inputs, outputs, count = sizes
    generator = np.random.default_rng([seed, *sizes])
    matrix = generator.standard_normal((inputs, outputs)).astype(np.float32)
    goal = Goal(matrix, _covariance(generator, inputs) if known else None)
    terms = _terms(generator, count, inputs, outputs)
    found = Fitted.of(terms, goal).solved().terms
    root = _root(goal.covariance, inputs)
    design = np.stack(
        [(root @ np.outer(u, v)).ravel() for u, v in zip(terms.left, terms.right, strict=True)], 1
    )
    wanted = (root @ matrix).ravel()
    best = np.linalg.lstsq(design, wanted, rcond=1e-6)[0]
    found_error = np.linalg.norm(design @ found.strengths - wanted)
    least = np.linalg.norm(design @ best - wanted)
    assert found_error <= least + 2e-3 * np.linalg.norm(wanted)
    values = np.linalg.svd(design, compute_uv=False)
    if count <= inputs * outputs and values[-1] > 0.1 * values[0]:
        assert np.allclose(found.strengths, best, rtol=1e-3, atol=1e-3 * np.abs(best).max())
    assert np.array_equal(found.left, terms.left)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, seed=st.integers(0, 50), known=st.booleans())
def test_errors_and_residuals_are_what_they_say(sizes, seed, known):
    inputs, outputs, count = sizes
    generator = np.random.default_rng([seed, *sizes])
    matrix = generator.standard_normal((inputs, outputs)).astype(np.float32)
    goal = Goal(matrix, _covariance(generator, inputs) if known else None)
    terms = _terms(generator, count, inputs, outputs)
    assert np.allclose(terms.residual(matrix), matrix - _sum(terms), atol=1e-4)
    assert goal.error(terms) == pytest.approx(_error(goal, _sum(terms)), rel=1e-3, abs=1e-4)
    assert goal.error(Terms.none(inputs, outputs)) == pytest.approx(1.0, rel=1e-5)
    damped = goal.damped(0.5)
    if goal.covariance is None:
        assert damped.covariance is None
    else:
        mean = np.trace(goal.covariance) / inputs
        assert np.allclose(damped.covariance, goal.covariance + 0.5 * mean * np.eye(inputs))


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, seed=st.integers(0, 50), known=st.booleans())
def test_products_follow_a_changed_side(sizes, seed, known):
    inputs, outputs, count = sizes
    generator = np.random.default_rng([seed, *sizes])
    matrix = generator.standard_normal((inputs, outputs)).astype(np.float32)
    goal = Goal(matrix, _covariance(generator, inputs) if known else None)
    one, other = (_terms(generator, count, inputs, outputs) for _ in range(2))
    changed = Fitted.of(one, goal).with_right(other.right).with_left(other.left)
    c = np.eye(inputs) if goal.covariance is None else goal.covariance
    assert np.allclose(changed.weighed, other.left @ c, atol=1e-3)
    assert np.allclose(changed.seen, other.left @ c @ matrix, atol=1e-3)
    assert np.allclose(changed.common_left, other.left @ c @ other.left.T, atol=1e-3)
    assert np.allclose(changed.common_right, other.right @ other.right.T)
    assert np.array_equal(changed.terms.strengths, one.strengths)
    energies = [
        s**2 * (u @ c @ u) * (v @ v)
        for s, u, v in zip(one.strengths, other.left, other.right, strict=True)
    ]
    assert np.allclose(changed.energies, energies, rtol=1e-3, atol=1e-3)


def test_equal_terms_share_their_strength():
    generator = np.random.default_rng(0)
    one = _terms(generator, 1, 8, 6)
    matrix = (3 * np.outer(one.left[0], one.right[0])).astype(np.float32)
    found = Fitted.of(one.joined(one).joined(one), Goal(matrix)).solved().terms
    assert np.allclose(found.strengths, 1.0, atol=1e-4)


def test_opposite_terms_and_terms_of_zeros_do_no_harm():
    generator = np.random.default_rng(1)
    one = _terms(generator, 3, 9, 7)
    none = Terms(np.zeros_like(one.left[:1]), one.right[:1], np.ones(1))
    opposite = Terms(-one.left[:1], one.right[:1], np.ones(1))
    matrix = generator.standard_normal((9, 7)).astype(np.float32)
    found = Fitted.of(one.joined(none).joined(opposite), Goal(matrix)).solved().terms
    assert np.isfinite(found.strengths).all()
    alone = Fitted.of(one, Goal(matrix)).solved().terms
    assert np.allclose(_sum(found), _sum(alone), atol=1e-3)
    nothing = Fitted.of(none.joined(none), Goal(matrix)).solved().terms
    assert np.array_equal(_sum(nothing), np.zeros((9, 7)))


def test_more_terms_than_entries():
    generator = np.random.default_rng(2)
    terms = _terms(generator, 60, 4, 3)
    matrix = generator.standard_normal((4, 3)).astype(np.float32)
    found = Fitted.of(terms, Goal(matrix)).solved().terms
    assert np.allclose(_sum(found), matrix, atol=1e-3)
    assert np.abs(found.strengths).max() < 10


def test_a_covariance_of_rank_one():
    """Only the sum over the inputs counts, in which all terms are alike."""
    generator = np.random.default_rng(3)
    matrix = generator.standard_normal((6, 5)).astype(np.float32)
    goal = Goal(matrix, np.ones((6, 6), np.float32))
    terms = Terms(np.eye(6, dtype=np.float32), np.tile(np.ones(5, np.float32), (6, 1)), np.ones(6))
    found = Fitted.of(terms, goal).solved().terms
    seen = matrix.astype(np.float64).sum(axis=0)
    assert _sum(found).sum(axis=0) == pytest.approx(np.full(5, seen.mean()), abs=1e-3)


def test_only_terms_that_add_something_stay_and_strengths_are_positive():
    left = np.array([[1, 0], [0, 0], [1, -1], [1, 1]], np.float32)
    right = np.array([[1, 1, 0], [1, 1, 1], [0, -1, 1], [1, 0, 0]], np.float32)
    terms = Terms(left, right, np.array([-2.0, 1.0, 3.0, 0.0]))
    present = terms.present()
    assert present.strengths.tolist() == [2.0, 3.0]
    assert np.array_equal(_sum(present), _sum(terms))
    filled = present.filled(4)
    assert filled.count == 4
    assert np.array_equal(_sum(filled), _sum(terms))
    assert np.array_equal(filled.left[:2], present.left)


def test_nothing_is_wrong_with_a_matrix_of_zeros():
    goal = Goal(np.zeros((4, 3), np.float32))
    assert goal.error(Terms.none(4, 3)) == 0.0
    assert Fitted.of(Terms.none(4, 3), goal).solved().terms.count == 0
