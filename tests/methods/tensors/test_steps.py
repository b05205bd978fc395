"""Steps of chains against products written out, for matrices and for channels in groups."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.methods.tensors import Modes, Steps
from onnxlr.stages import Convolution, Fold, Linear, ModeProduct
from tests.onelayer import distance

dims = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def _normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), sizes=dims, parts=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_product_of_some_modes(data, sizes, parts, seed):
    """Each part's modes are multiplied by a matrix of its own."""
    begin = data.draw(st.integers(0, len(sizes) - 1))
    end = data.draw(st.integers(begin + 1, len(sizes)))
    made = data.draw(dims)
    taken = prod(sizes[begin:end])
    factors = _normal(seed, parts, taken, prod(made))
    for groups in (None, parts):
        if groups is None and parts > 1:
            continue
        modes = Modes(tuple(sizes), (1,), (3,) if groups else (), groups)
        steps = Steps(modes)
        steps.multiply(begin, end, factors, made)
        assert steps.dims == (*sizes[:begin], *made, *sizes[end:])
        extent = () if groups is None else (4,)
        x = _normal(seed + 1, 2, parts * prod(sizes), *extent)
        apart = x.reshape(2, parts, prod(sizes[:begin]), taken, prod(sizes[end:]), *extent)
        expected = np.einsum("npbio...,pim->npbmo...", apart, factors)
        found = steps.chain().apply(x)
        assert distance(found, expected.reshape(2, -1, *extent)) < 1e-10


def test_steps_of_one_mode_are_plain_stages():
    matrix = Steps(Modes((6,), (4,)))
    matrix.multiply(0, 1, _normal(0, 1, 6, 4), (2, 2))
    matrix.multiply(0, 2, _normal(0, 1, 4, 4), (4,))
    assert [type(stage) for stage in matrix.chain().stages] == [Linear, Linear]
    kernel = Steps(Modes((6,), (4,), (3, 3), 2))
    kernel.multiply(0, 1, _normal(1, 2, 6, 5), (5,))
    kernel.convolve(0, 1, _normal(1, 2, 7, 5, 3, 3), (0, 1), (7,))
    kernel.multiply(0, 1, _normal(1, 2, 7, 4), (4,))
    stages = kernel.chain().stages
    assert [type(stage) for stage in stages] == [Convolution] * 3
    assert [stage.groups for stage in stages] == [2, 2, 2]
    assert [stage.window for stage in stages] == [(), (0, 1), ()]


def test_modes_behind_others_are_folded_for_groups_only():
    plain, grouped = Steps(Modes((2, 3), (4,), (3,), 1)), Steps(Modes((2, 3), (4,), (3,), 2))
    plain.multiply(1, 2, _normal(2, 1, 3, 4), (4,))
    grouped.multiply(1, 2, _normal(2, 2, 3, 4), (4,))
    assert [type(stage) for stage in plain.chain().stages] == [ModeProduct]
    assert [type(stage) for stage in grouped.chain().stages] == [Fold, ModeProduct, Fold]
    assert grouped.chain().reconstruct().shape == (16, 6, 1)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_window_behind_channels_that_stay(parts):
    kernels = _normal(3, parts, 5, 4, 3)
    steps = Steps(Modes((2, 4), (1,), (3,), parts))
    steps.convolve(1, 2, kernels, (0,), (5,))
    x = _normal(4, 2, parts * 8, 7)
    apart = x.reshape(2, parts, 2, 4, 7)
    seen = np.lib.stride_tricks.sliding_window_view(apart, 3, axis=-1)
    expected = np.einsum("npaisk,poik->npaos", seen, kernels).reshape(2, -1, 5)
    assert distance(steps.chain().apply(x), expected) < 1e-10


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("position", [0, 1])
def test_filters_of_their_own_for_each_feature_of_one_mode(parts, position):
    sizes = (4, 3)
    kernels = _normal(5, parts, sizes[position], 3)
    steps = Steps(Modes(sizes, (1,), (3,), parts))
    steps.filter(position, kernels, (0,))
    assert steps.dims == sizes
    x = _normal(6, 2, parts * 12, 7)
    seen = np.lib.stride_tricks.sliding_window_view(x.reshape(2, parts, 4, 3, 7), 3, axis=-1)
    which = "npabsk,pak->npabs" if position == 0 else "npabsk,pbk->npabs"
    expected = np.einsum(which, seen, kernels).reshape(2, -1, 5)
    assert distance(steps.chain().apply(x), expected) < 1e-10


@given(sizes=st.permutations([2, 3, 4]), order=st.permutations([0, 1, 2]), parts=st.integers(1, 2))
def test_modes_in_another_order(sizes, order, parts):
    steps = Steps(Modes(tuple(sizes), (1,), (3,), parts))
    steps.multiply(0, 3, np.stack([np.eye(24)] * parts), sizes)
    steps.fold(order)
    assert steps.dims == tuple(sizes[axis] for axis in order)
    x = _normal(7, 2, parts * 24, 5)
    moved = x.reshape(2, parts, *sizes, 5).transpose(0, 1, *(2 + axis for axis in order), 5)
    assert np.array_equal(steps.chain().apply(x), moved.reshape(2, -1, 5))
    in_order = list(order) == [0, 1, 2]
    assert len(steps.chain().stages) == (1 if in_order else 2)


def test_features_are_seen_anew_only_in_the_same_number():
    steps = Steps(Modes((6, 4), (1,)))
    steps.see((3, 8))
    assert steps.dims == (3, 8)
    with pytest.raises(ValueError, match=r"\(3, 8\) cannot be seen as \(5, 5\)"):
        steps.see((5, 5))


def test_factors_of_other_sizes_are_a_mistake():
    steps = Steps(Modes((6, 4), (1,)))
    with pytest.raises(ValueError, match="does not fit modes"):
        steps.multiply(0, 1, np.ones((1, 5, 2)), (2,))
    with pytest.raises(ValueError, match="does not fit modes"):
        steps.multiply(0, 1, np.ones((1, 6, 2)), (3,))
