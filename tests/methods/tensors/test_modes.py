"""Modes of weights: sizes, the order of their entries, and what is refused."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.errors import UsageError
from onnxlr.methods.tensors import Modes, TensorOptions, check_kernel, factor_sizes
from onnxlr.methods.tensors.options import sizes_of, sizes_text


@given(size=st.integers(1, 5000), count=st.integers(1, 5))
def test_factors_multiply_to_the_size(size, count):
    found = factor_sizes(size, count)
    assert prod(found) == size
    assert 1 <= len(found) <= count
    assert list(found) == sorted(found, reverse=True)
    assert min(found) > 1 or found == (1,)


@given(size=st.integers(4, 3000))
def test_two_factors_are_the_nearest_to_each_other(size):
    pairs = [(size // d, d) for d in range(2, int(size**0.5) + 1) if size % d == 0]
    assert factor_sizes(size, 2) == (pairs[-1] if pairs else (size,))


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(384, 3, (8, 8, 6)), (512, 3, (8, 8, 8)), (97, 2, (97,)), (64, 1, (64,)), (6, 4, (3, 2))],
)
def test_factors_by_hand(size, count, expected):
    assert factor_sizes(size, count) == expected


@given(
    inputs=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    outputs=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    seed=st.integers(0, 99),
)
def test_entries_of_a_matrix_are_where_its_digits_say(inputs, outputs, seed):
    weight = np.random.default_rng(seed).standard_normal((prod(inputs), prod(outputs)))
    options = TensorOptions(modes=(inputs, outputs))
    modes = Modes.of(weight, None, options)
    (tensor,) = modes.tensors(weight)
    assert tensor.shape == modes.shape == (*inputs, *outputs)
    for index in np.ndindex(*tensor.shape):
        row = column = 0
        for digit, size in zip(index[: len(inputs)], inputs, strict=True):
            row = row * size + digit
        for digit, size in zip(index[len(inputs) :], outputs, strict=True):
            column = column * size + digit
        assert tensor[index] == weight[row, column]


@given(
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    window=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    groups=st.integers(1, 3),
)
def test_entries_of_a_kernel_are_inputs_window_outputs(inputs, outputs, window, groups):
    kernel = np.random.default_rng(0).standard_normal((groups * outputs, inputs, *window))
    modes = Modes.of(kernel, groups, TensorOptions())
    tensors = modes.tensors(kernel)
    assert tensors.shape == (groups, inputs, *window, outputs)
    for g in range(groups):
        own = kernel[g * outputs : (g + 1) * outputs]
        assert np.array_equal(tensors[g], np.moveaxis(own, 0, -1))
    assert modes.parts == groups
    assert modes.wide == tuple(a for a, size in enumerate(window) if size > 1)


def test_sizes_that_are_not_given():
    kernel, matrix = np.ones((12, 6, 3, 3)), np.ones((12, 18))
    assert Modes.of(kernel, 1, TensorOptions(), 2).text == "6,12"
    assert Modes.of(matrix, None, TensorOptions(), 2).text == "4x3,6x3"
    assert Modes.of(matrix, None, TensorOptions()).text == "12,18"
    given_sizes = TensorOptions(modes="2x3,4x3")
    assert Modes.of(kernel, 1, given_sizes, 2).shape == (2, 3, 3, 3, 4, 3)


@pytest.mark.parametrize(
    ("weight", "groups", "modes", "message"),
    [
        (np.ones((12, 18)), None, "4x4,18", r"4x4 multiply to 16, .* has 12 inputs: give sizes"),
        (np.ones((12, 18)), None, "12,6x2", r"6x2 multiply to 12, .* 18 outputs: .* is 18"),
        (np.ones((12, 6, 3)), 2, "6,12", r"12 multiply to 12, .* has 6 outputs of each group"),
        (np.ones((2, 3, 4)), None, None, r"a stack of matrices of shape \(2, 3, 4\)"),
    ],
)
def test_sizes_that_do_not_fit(weight, groups, modes, message):
    with pytest.raises(UsageError, match=message):
        Modes.of(weight, groups, TensorOptions(modes=modes))


@pytest.mark.parametrize(
    ("shape", "groups", "modes", "message"),
    [
        ((8, 1, 3, 3), 1, None, r"one input channel: a Tucker decomposition"),
        ((8, 1, 3, 3), 8, None, r"one input channel in each group"),
        ((8, 4, 3, 3), 8, None, r"one output channel in each group"),
        ((8, 6, 1, 1), 1, None, r"a 1×1 kernel has no window, .* take method svd, or split"),
    ],
)
def test_kernels_that_cannot_be_made_smaller(shape, groups, modes, message):
    with pytest.raises(UsageError, match=message):
        check_kernel(Modes.of(np.ones(shape), groups, TensorOptions(modes=modes)), "Tucker")


def test_kernels_that_can():
    check_kernel(Modes.of(np.ones((8, 6, 1, 1)), 1, TensorOptions(modes="2x3,8")), "Tucker")
    check_kernel(Modes.of(np.ones((8, 6, 1, 3)), 1, TensorOptions()), "Tucker")
    check_kernel(Modes.of(np.ones((1, 6)), None, TensorOptions()), "Tucker")


@given(sizes=st.lists(st.integers(1, 99), min_size=1, max_size=4))
def test_sizes_are_read_as_they_are_written(sizes):
    assert sizes_of(sizes_text(sizes)) == tuple(sizes)


def test_options_are_one_text_whatever_they_are_given_as():
    assert TensorOptions(rank=(8, 12)) == TensorOptions(rank="8x12") == TensorOptions(rank=[8, 12])
    assert TensorOptions(rank="8x12").ranks == (8, 12)
    assert TensorOptions(rank="8") == TensorOptions(rank=8)
    assert TensorOptions(rank=8).ranks is None
    assert TensorOptions(modes=((2, 3), (4,))).modes == "2x3,4"
    assert TensorOptions(modes="2x3,4").mode_sizes == ((2, 3), (4,))
    assert str(TensorOptions(rank="8x12", modes="2x3,4")) == "rank 8x12, modes 2x3,4"


@pytest.mark.parametrize("rank", [0, -1, 1.5, "x", "8x", "8x0", "8,3", "", True])
def test_ranks_that_are_none(rank):
    with pytest.raises(UsageError, match=r"is not a whole number of at least 1, nor several"):
        TensorOptions(rank=rank)


@pytest.mark.parametrize("modes", ["", "8", "8x2", "8x2,", "8,4,2", "a,b", "8x-1,2", 5, ((2, 3),)])
def test_modes_that_are_none(modes):
    with pytest.raises(UsageError, match=r"are not sizes of inputs and of outputs, .* 8x8x6,16x"):
        TensorOptions(modes=modes)


def test_only_one_budget():
    with pytest.raises(UsageError, match=r"rank and ratio are both given"):
        TensorOptions(rank="2x2", ratio=0.5)
