"""Growth: errors that are known, the same terms again, and as few as an error needs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.semidiscrete import Alternating, Goal, Terms
from onnxlr.methods.semidiscrete.growth import grow


def _normal(seed, inputs, outputs):
    shape = (inputs, outputs)
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def _sum(terms):
    return np.einsum("ki,kj->ij", terms.strengths[:, None] * terms.left, terms.right)


def _distance(matrix, terms):
    return float(np.linalg.norm(matrix - _sum(terms)) / np.linalg.norm(matrix))


def _count(trits, inputs, outputs):
    return int(trits * inputs * outputs / (inputs + outputs))


def _same(one, other):
    pairs = [(one.left, other.left), (one.right, other.right), (one.strengths, other.strengths)]
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def _covariance(seed, size, share=0.9):
    """Return a covariance whose largest eigenvalue is about that share of its trace."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal(size)
    x = generator.standard_normal((4 * size, size))
    x = np.sqrt(1 - share) * x + np.sqrt(share) * generator.standard_normal((4 * size, 1)) * common
    return (x.T @ x / len(x)).astype(np.float32)


@pytest.mark.parametrize(("trits", "error"), [(1, 0.52), (2, 0.26), (3, 0.13), (4, 0.065)])
def test_each_trit_a_weight_halves_the_error_of_normal_numbers(trits, error):
    matrix = _normal(0, 384, 384)
    terms = Alternating(Goal(matrix)).of_count(_count(trits, 384, 384))
    assert terms.count <= 192 * trits
    for side in (terms.left, terms.right):
        assert set(np.unique(side)) == {-1.0, 0.0, 1.0}
    assert (terms.strengths > 0).all()
    assert _distance(matrix, terms) <= error


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30)),
    known=st.booleans(),
    seed=st.integers(0, 5),
)
def test_any_shape_again_and_again(sizes, known, seed):
    inputs, outputs, count = sizes
    matrix = _normal(seed, inputs, outputs)
    goal = Goal(matrix, _covariance(seed, inputs) if known else None)
    terms = Alternating(goal, seed=seed).of_count(count)
    assert terms.count <= count
    assert terms.left.any(axis=1).all()
    assert terms.right.any(axis=1).all()
    assert _same(terms, Alternating(goal, seed=seed).of_count(count))
    assert goal.error(terms) <= 1 + 1e-4


def test_other_seeds_start_elsewhere_and_get_as_far():
    matrix = _normal(1, 96, 80)
    found = [Alternating(Goal(matrix), seed=seed).of_count(90) for seed in range(4)]
    assert not _same(found[0], found[1])
    errors = [_distance(matrix, terms) for terms in found]
    assert max(errors) < 1.05 * min(errors)


@pytest.mark.parametrize("known", [False, True])
def test_sums_of_a_few_ternary_terms_are_found_and_no_more_is_looked_for(known):
    generator = np.random.default_rng(2)
    left, right = (generator.integers(-1, 2, (3, size)) for size in (60, 50))
    matrix = np.einsum("k,ki,kj->ij", [8.0, 2.0, 0.5], left, right).astype(np.float32)
    goal = Goal(matrix, _covariance(2, 60, 0.3) if known else None)
    terms = Alternating(goal).of_count(400)
    assert terms.count < 200
    assert _distance(matrix, terms) < 1e-4


def test_one_ternary_term_needs_one():
    generator = np.random.default_rng(3)
    left, right = (generator.integers(-1, 2, size).astype(np.float32) for size in (40, 30))
    matrix = 0.3 * np.outer(left, right)
    terms = Alternating(Goal(matrix)).of_count(1)
    assert terms.count == 1
    assert terms.strengths[0] == pytest.approx(0.3, rel=1e-4)
    assert _distance(matrix, terms) < 1e-4
    found = Alternating(Goal(matrix)).until(lambda t: _distance(matrix, t), 1e-3, 100)
    assert found.count == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (12, 9)])
def test_a_matrix_of_zeros_has_no_terms(shape):
    for known in (False, True):
        covariance = _covariance(0, shape[0]) if known else None
        fitter = Alternating(Goal(np.zeros(shape, np.float32), covariance))
        assert fitter.of_count(7).count == 0
        assert fitter.until(lambda _: 0.0, 0.1, 7).count == 0


def test_until_meets_its_limit_and_a_thirtieth_fewer_do_not():
    matrix = _normal(4, 128, 96)
    fitter = Alternating(Goal(matrix))
    for limit in (0.4, 0.1):
        terms = fitter.until(lambda t: _distance(matrix, t), limit, 2000)
        assert _distance(matrix, terms) <= limit
        again = fitter.of_count(terms.count)
        assert _same(again, terms)
        fewer = fitter.of_count(int(terms.count * 0.97) - 1)
        assert _distance(matrix, fewer) > limit


def test_until_gives_up_at_the_most_terms():
    matrix = _normal(5, 40, 30)
    terms = Alternating(Goal(matrix)).until(lambda t: _distance(matrix, t), 0.01, 20)
    assert 15 < terms.count <= 20
    assert _distance(matrix, terms) > 0.01


def test_no_sweeps_in_the_end_leave_more_than_the_usual():
    matrix = _normal(6, 120, 90)
    errors = [
        _distance(matrix, Alternating(Goal(matrix), sweeps).of_count(100)) for sweeps in (0, 1, 8)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_a_covariance_lowers_the_error_it_measures():
    """Against the plain fit of as many terms, where inputs are strongly correlated."""
    matrix = _normal(7, 96, 64)
    goal = Goal(matrix, _covariance(7, 96))
    known = Alternating(goal).of_count(80)
    plain = Alternating(Goal(matrix)).of_count(80)
    root = np.linalg.cholesky(goal.covariance.astype(np.float64)).T
    own, other = (
        np.linalg.norm(root @ (matrix - _sum(terms))) / np.linalg.norm(root @ matrix)
        for terms in (known, plain)
    )
    assert own < 0.9 * other


def test_new_terms_lower_the_error_and_leave_the_others():
    matrix = _normal(8, 50, 40)
    for goal in (Goal(matrix), Goal(matrix, _covariance(8, 50, 0.5))):
        generator = np.random.default_rng(0)
        terms, errors = Terms.none(50, 40), [1.0]
        for count in (5, 40, 1):
            more = grow(goal, terms, count, generator, 8)
            assert more.count == terms.count + count
            assert np.array_equal(more.left[: terms.count], terms.left)
            assert np.array_equal(more.strengths[: terms.count], terms.strengths)
            terms = more
            errors.append(goal.error(terms))
        assert errors == sorted(errors, reverse=True)
        assert errors[2] < 0.6
