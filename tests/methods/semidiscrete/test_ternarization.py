"""Ternary vectors against all there are, and against the formula of the paper."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxlr.methods.semidiscrete.ternarization import nearest_ternary, published_ternary

VECTORS = hnp.arrays(
    np.float32, st.integers(1, 7), elements=st.floats(-8, 8, width=16, allow_subnormal=False)
)


def _explained(vector, other):
    """Return `(tᵀ p)² / ‖t‖²`, 0 of no entries."""
    norm = float(other @ other)
    return float(vector @ other) ** 2 / norm if norm else 0.0


@settings(deadline=None, max_examples=60)
@given(VECTORS)
def test_nearest_is_the_best_of_all_ternary_vectors(vector):
    exact = vector.astype(np.float64)
    best = max(_explained(exact, np.array(t)) for t in product((-1, 0, 1), repeat=len(vector)))
    found, along = nearest_ternary(vector)
    assert found.dtype == np.float32
    assert set(found.tolist()) <= {-1.0, 0.0, 1.0}
    assert _explained(exact, found.astype(np.float64)) == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert along == pytest.approx(float(found @ exact), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(VECTORS, st.randoms(use_true_random=False))
def test_nearest_follows_signs_sizes_and_places(vector, random):
    found, along = nearest_ternary(vector)
    opposite, same = nearest_ternary(-vector)
    assert np.array_equal(opposite, -found)
    assert same == along
    # A power of two, so that nothing is rounded on the way
    larger, scaled = nearest_ternary(vector * np.float32(2**20))
    assert np.array_equal(larger, found)
    assert scaled == along * 2**20
    order = random.sample(range(len(vector)), len(vector))
    assert np.array_equal(nearest_ternary(vector[order])[0], found[order])


def test_nearest_of_a_ternary_vector_is_itself():
    vector = np.array([0.5, 0, -0.5, 0.5, 0], np.float32)
    found, along = nearest_ternary(vector)
    assert found.tolist() == [1, 0, -1, 1, 0]
    assert along == 1.5


def test_vectors_of_zeros_have_no_direction():
    for size in (1, 5):
        found, along = nearest_ternary(np.zeros(size, np.float32))
        assert (found.tolist(), along) == ([0.0] * size, 0.0)
        assert published_ternary(np.zeros(size)).tolist() == [0.0] * size


def test_sums_of_many_equal_numbers_do_not_lose_the_last():
    """float32 stops counting at 2²⁴ times one."""
    vector = np.ones(2**24 + 2**10, np.float32)
    found, along = nearest_ternary(vector)
    assert along == 2**24 + 2**10
    assert found.all()


def _by_formula(vector):
    """Take the first `k` with `c_k = Σ_{i≤k} |a|_(i) / √k ≥ .8386`, or that of the largest."""
    unit = vector / np.sqrt((vector**2).sum())
    places = sorted(range(len(unit)), key=lambda i: (-abs(unit[i]), i))
    cosines = [sum(abs(unit[i]) for i in places[:k]) / k**0.5 for k in range(1, len(places) + 1)]
    enough = [k for k, c in enumerate(cosines, 1) if c >= 0.8386]
    count = enough[0] if enough else int(np.argmax(cosines)) + 1
    result = np.zeros(len(unit))
    for i in places[:count]:
        result[i] = np.sign(unit[i])
    return result


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 60), seed=st.integers(0, 99), power=st.sampled_from([1, 3, 9]))
def test_published_is_its_formula(size, seed, power):
    vector = np.random.default_rng([seed, size]).standard_normal(size) ** power
    assert np.array_equal(published_ternary(vector), _by_formula(vector))


def test_published_takes_no_more_entries_than_it_needs():
    """The cosine with the first three of (4, 3, 1, 1) is .889, with the first alone .770."""
    assert published_ternary(np.array([1.0, -3.0, 4.0, 1.0])).tolist() == [0, -1, 1, 0]
    assert published_ternary(np.array([9.0, 1.0])).tolist() == [1, 0]


def test_published_where_no_prefix_is_close_enough():
    """Of sizes 1/√i every prefix has less than .8386."""
    vector = 1 / np.sqrt(np.arange(1, 4001))
    cosines = np.cumsum(vector) / np.sqrt(np.arange(1, 4001)) / np.linalg.norm(vector)
    assert cosines.max() < 0.8386
    assert np.count_nonzero(published_ternary(vector)) == int(np.argmax(cosines)) + 1
