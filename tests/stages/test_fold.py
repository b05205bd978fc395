"""Another order of the features, against numpy's transpositions and permutation matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.numbers import Format
from onnxlr.stages import Chain, Convolution, Cost, Fold, Linear


@st.composite
def orders(draw):
    """Return sizes of axes, and an order of them."""
    dims = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    return dims, tuple(draw(st.permutations(range(len(dims)))))


def _normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def _sources(dims, order):
    """Return which input each output is, counted one entry at a time."""
    sizes = [dims[axis] for axis in order]
    sources = []
    for place in np.ndindex(*sizes):
        index = [0] * len(dims)
        for axis, entry in zip(order, place, strict=True):
            index[axis] = entry
        flat = 0
        for size, entry in zip(dims, index, strict=True):
            flat = flat * size + entry
        sources.append(flat)
    return sources


@given(case=orders(), seed=st.integers(0, 99), lead=st.lists(st.integers(1, 3), max_size=2))
def test_rows(case, seed, lead):
    dims, order = case
    fold, sources = Fold(dims, order), _sources(dims, order)
    count = len(sources)
    x = _normal(seed, *lead, count)
    permutation = np.zeros((count, count))
    permutation[sources, np.arange(count)] = 1
    assert fold.shape == (count, count)
    np.testing.assert_array_equal(fold.apply(x), x[..., sources])
    np.testing.assert_array_equal(fold.dense(), permutation)
    matrix = _normal(seed + 1, 3, count)
    np.testing.assert_array_equal(fold.after(matrix), matrix @ permutation)
    np.testing.assert_array_equal(fold.inverse.apply(fold.apply(x)), x)
    np.testing.assert_array_equal(fold.inverse.dense(), permutation.T)


@given(case=orders(), seed=st.integers(0, 99), axes=st.integers(1, 3))
def test_channels(case, seed, axes):
    dims, order = case
    fold, sources = Fold(dims, order, axes), _sources(dims, order)
    x = _normal(seed, 2, len(sources), *[2] * axes)
    np.testing.assert_array_equal(fold.apply(x), x[:, sources])
    kernel = fold.dense()
    assert kernel.shape == (len(sources), len(sources), *[1] * axes)
    found = Convolution.of(kernel, 1, tuple(range(axes))).apply(x)
    np.testing.assert_allclose(found, x[:, sources])
    before = _normal(seed + 1, len(sources), 3, *[2] * axes)
    np.testing.assert_array_equal(fold.after(before), before[sources])


def test_channels_in_groups_stay_in_their_group():
    fold = Fold((2, 2, 3), (0, 2, 1), 2, 2)
    kernel = fold.dense()
    assert kernel.shape == (12, 6, 1, 1)
    x = _normal(0, 2, 12, 3, 3)
    found = Convolution.of(kernel, 2, (0, 1)).apply(x)
    np.testing.assert_allclose(found, x[:, _sources((2, 2, 3), (0, 2, 1))])


def test_a_fold_between_two_matrices():
    left, right, x = _normal(0, 5, 6), _normal(1, 6, 4), _normal(2, 3, 5)
    chain = Chain((Linear.of(left), Fold((2, 3), (1, 0)), Linear.of(right)))
    dense = left.reshape(5, 2, 3).transpose(0, 2, 1).reshape(5, 6) @ right
    np.testing.assert_allclose(chain.reconstruct(), dense)
    np.testing.assert_allclose(chain.apply(x), x @ dense)


def test_nothing_is_stored():
    fold = Fold((2, 3), (1, 0))
    assert (fold.parameters, fold.nbytes, fold.cost) == (0, 0, Cost())
    assert fold.encoded(Format("int8"), np.float32) is fold


@pytest.mark.parametrize("order", [(0, 0), (0,), (1, 2), (0, 1, 2)])
def test_what_is_no_order_is_refused(order):
    with pytest.raises(ValueError, match="is no order of 2 axes"):
        Fold((2, 3), order)
