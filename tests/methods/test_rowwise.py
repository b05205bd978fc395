"""The rows' least squares against numpy's direct solution of each row's equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.rowwise import Rows


def _problem(seed, rows, columns, rank, spread):
    generator = np.random.default_rng([seed, rows, columns, rank])
    weight = generator.standard_normal((rows, columns))
    importance = generator.lognormal(0, spread, (rows, columns))
    factor = generator.standard_normal((rows, rank))
    basis, _ = np.linalg.qr(generator.standard_normal((columns, rank)))
    return weight, importance, factor, basis.T


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 12),
    columns=st.integers(6, 20),
    rank=st.integers(1, 6),
)
def test_a_small_rank_is_solved_as_each_rows_normal_equations(seed, rows, columns, rank):
    weight, importance, factor, fixed = _problem(seed, rows, columns, rank, spread=0.5)
    found = Rows.of(weight, importance).solve(factor, fixed)
    for i in range(rows):
        gram = (fixed * importance[i]) @ fixed.T
        ridge = 1e-6 * np.trace(gram) / rank * np.eye(rank)
        right = fixed @ (importance[i] * weight[i]) + ridge @ factor[i]
        assert np.allclose(found[i], np.linalg.solve(gram + ridge, right), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("spread", [0.5, 2.0, 4.0])
def test_no_row_gets_worse_wherever_the_steps_stop(spread):
    # rank 60 is far more than the steps, and the spread leaves the equations ill-conditioned
    weight, importance, factor, fixed = _problem(1, 50, 90, 60, spread)
    found = Rows.of(weight, importance).solve(factor, fixed)
    before = (importance * (weight - factor @ fixed) ** 2).sum(axis=1)
    after = (importance * (weight - found @ fixed) ** 2).sum(axis=1)
    assert (after < before).all()


def test_a_row_without_importance_stays_and_tiny_importance_counts_like_any_other():
    weight, importance, factor, fixed = _problem(2, 4, 12, 3, spread=1.0)
    scaled = importance * np.array([[1.0], [0.0], [3e-308], [1e300]])
    found = Rows.of(weight, scaled).solve(factor, fixed)
    expected = Rows.of(weight, importance).solve(factor, fixed)
    assert np.array_equal(found[1], factor[1])
    assert np.allclose(found[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-9)


def test_a_row_with_fewer_entries_than_the_rank_fits_them_and_moves_little_further_than_it_must():
    weight, importance, factor, fixed = _problem(4, 5, 12, 4, spread=1.0)
    importance[:, 2:] = 0
    found = Rows.of(weight, importance).solve(factor, fixed)
    shortest = (weight - factor @ fixed)[:, :2] @ np.linalg.pinv(fixed[:, :2])
    assert np.allclose((found @ fixed)[:, :2], weight[:, :2], atol=1e-4)
    moved = np.linalg.norm(found - factor, axis=1)
    assert (moved < 1.05 * np.linalg.norm(shortest, axis=1)).all()


def test_a_row_that_fits_already_stays():
    _, importance, factor, fixed = _problem(3, 4, 12, 3, spread=1.0)
    found = Rows.of(factor @ fixed, importance).solve(factor, fixed)
    assert np.allclose(found, factor, rtol=1e-12)
