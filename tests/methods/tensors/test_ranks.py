"""Which ranks a budget takes: nested, along the energies of unfoldings, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.errors import UsageError
from onnxlr.methods.tensors import nested_ranks, ranks_asked, spectrum_of

energies = st.lists(
    st.lists(st.floats(0, 100), min_size=1, max_size=6).map(lambda v: sorted(v, reverse=True)),
    min_size=1,
    max_size=3,
)


@given(found=energies)
def test_ranks_go_from_one_each_to_the_largest_one_step_at_a_time(found):
    arrays = [np.array(energy) for energy in found]
    levels = nested_ranks(arrays, prod)
    assert levels[0] == tuple(1 for _ in found)
    assert levels[-1] == tuple(len(energy) for energy in found)
    for low, high in pairwise(levels):
        assert sorted(np.subtract(high, low).tolist()) == [0] * (len(found) - 1) + [1]


def test_what_gains_nothing_is_given_up_first():
    flat, falling = np.array([5.0, 4, 3]), np.array([9.0, 1e-9, 1e-9])
    levels = nested_ranks([flat, falling], sum)
    assert levels == [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3)]


def test_what_costs_more_has_to_gain_more():
    alike = np.array([2.0, 1.0])
    assert nested_ranks([alike, alike], lambda r: 10 * r[0] + r[1])[1] == (1, 2)
    assert nested_ranks([alike, alike], lambda r: r[0] + 10 * r[1])[1] == (2, 1)


def test_ranks_that_do_not_fit_together_are_left_out():
    energy = np.arange(5.0, 0, -1)
    levels = nested_ranks([energy, energy], sum, lambda r: r[1] <= 2 * r[0] and r[0] <= 2 * r[1])
    assert levels[0] == (1, 1)
    assert levels[-1] == (5, 5)
    assert all(a <= 2 * b and b <= 2 * a for a, b in levels)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    parts=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_spectra_are_numpys_added_up(rows, columns, parts, seed):
    matrices = np.random.default_rng(seed).standard_normal((parts, rows, columns))
    squares = (np.linalg.svd(matrices, compute_uv=False) ** 2).sum(axis=0)
    assert np.allclose(spectrum_of(list(matrices)), squares)


def test_one_number_is_meant_for_all_as_far_as_each_goes():
    assert ranks_asked(7, [5, 9, 7], ["a", "b", "c"], [1, 1, 1]) == (5, 7, 7)
    assert ranks_asked(7, [12, 9, 6], ["a", "b", "c"], [4, 3, 2]) == (4, 6, 6)
    assert ranks_asked(1, [12, 9], ["a", "b"], [4, 3]) == (4, 3)
    assert ranks_asked((4, 9), [12, 9], ["a", "b"], [4, 3]) == (4, 9)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((4,), r"rank 4 has 1 numbers, expected 2: inputs \(at most 12\), outputs \(at most 9\)"),
        ((4, 3, 3), r"rank 4x3x3 has 3 numbers, expected 2"),
        ((4, 10), r"rank 10 of outputs is above that of the weight's unfolding, 9: the largest"),
        ((6, 9), r"rank 6 of inputs is not a multiple of t = 4: take 4 or another t"),
        ((3, 9), r"rank 3 of inputs is not a multiple of t = 4: take 4 or another t"),
    ],
)
def test_ranks_that_are_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        ranks_asked(asked, [12, 9], ["inputs", "outputs"], [4, 3])
