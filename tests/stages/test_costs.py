"""What chains cost, against counts by hand."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.numbers import Encoded, Format
from onnxlr.stages import Chain, Convolution, Cost, Linear, Lookup, Scale, Sum

counts = st.integers(1, 5)


def test_a_float_matrix_multiplies_and_adds_once_for_each_entry():
    matrix = np.eye(6, 5)  # entries that are 0 count as well: nothing leaves them out
    assert Chain((Linear.of(matrix),)).cost == Cost(30, 8 * 30, 30, 30)
    rounded = Chain((Linear.of(matrix),)).encoded(Format("int8")).cost
    assert (rounded.additions, rounded.multiplications) == (30, 30)
    assert (rounded.trits, rounded.nonzeros) == (0, 0)
    assert rounded.bytes == 30 + 4 * 5


def test_factors_add_up():
    chain = Chain((Linear.of(np.ones((4, 2))), Linear.of(np.ones((2, 5))))).encoded(Format("int8"))
    assert chain.cost.parameters == 4 * 2 + 2 * 5
    assert chain.cost.bytes == 4 * 2 + 2 * 5 + 4 * (2 + 5)
    assert chain.cost.additions == chain.cost.multiplications == 4 * 2 + 2 * 5


def test_stacks_count_every_matrix():
    assert Linear.of(np.ones((3, 4, 2))).cost.additions == 24


def test_a_ternary_matrix_by_hand():
    """Two terms of 4 inputs in groups of 2, for 3 outputs: 12 scales."""
    trits = np.zeros((2, 4, 3), np.int8)
    trits[0, 0, 0] = trits[0, 3, 1] = 1
    trits[1, 0, 0] = trits[1, 2, 2] = trits[1, 1, 0] = -1
    scales = np.full((2, 2, 3), 0.5, np.float32)
    cost = Linear(Encoded.of_trits(trits, scales, 2)).cost
    assert cost == Cost(12, 12 * 4 // 8 + 12 * 4, 5, 12, trits=24, nonzeros=5)


@given(
    terms=counts,
    shape=st.tuples(counts, counts),
    batch=st.sampled_from([(), (2,)]),
    seed=st.integers(0, 99),
)
def test_a_ternary_matrix_adds_where_it_is_not_zero(terms, shape, batch, seed):
    generator = np.random.default_rng(seed)
    trits = generator.integers(-1, 2, (terms, *batch, *shape)).astype(np.int8)
    scales = generator.uniform(2, 3, (*batch, terms, 1, shape[1])).astype(np.float32)
    cost = Linear(Encoded.of_trits(trits, scales)).cost
    nonzero = sum(1 for trit in trits.flat if trit)
    assert (cost.additions, cost.nonzeros, cost.trits) == (nonzero, nonzero, trits.size)
    assert cost.multiplications == terms * shape[1] * prod(batch)


def test_scales_that_are_all_one_multiply_nothing():
    trits = np.ones((1, 3, 4), np.int8)
    ones = np.ones((1, 1, 4), np.float32)
    assert Linear(Encoded.of_trits(trits, ones)).cost.multiplications == 0
    ones[0, 0, 2] = 2  # then all are there
    assert Linear(Encoded.of_trits(trits, ones)).cost.multiplications == 4


def test_a_ternary_svd_multiplies_once_for_each_rank_and_input():
    first = np.ones((1, 6, 9), np.int8)
    second = np.ones((1, 9, 5), np.int8)
    first[0, :3], second[0, :, :2] = 0, 0
    chain = Chain(
        (
            Scale(np.full(6, 2, np.float32)),
            Linear(Encoded.of_trits(first, np.full((1, 1, 9), 3, np.float32))),
            Linear(Encoded.of_trits(second, np.ones((1, 1, 5), np.float32))),
        )
    )
    assert chain.cost.multiplications == 6 + 9
    assert chain.cost.additions == chain.cost.nonzeros == 3 * 9 + 9 * 3
    assert chain.cost.trits == 9 * (6 + 5)
    assert chain.cost.parameters == 6 + 9 * (6 + 5)


def test_a_convolution_counts_one_place_of_its_output():
    """Each of 6 outputs takes a window of 3×2 from the 4 channels of its group."""
    kernel = np.ones((6, 4, 3, 2))
    dense = Convolution.of(kernel, 2, (0, 1)).cost
    assert (dense.additions, dense.multiplications) == (144, 144)
    trits = kernel.astype(np.int8)[None]
    trits[0, 0] = 0
    scales = np.full((6, 2, 1), 2, np.float32)
    cost = Convolution(Encoded.of_trits(trits, scales, 12, kernel=True), 2, (0, 1)).cost
    assert (cost.additions, cost.multiplications, cost.trits) == (5 * 24, 6 * 2, 144)


@given(branches=st.integers(2, 4), batch=st.sampled_from([(), (2,), (2, 3)]))
def test_a_sum_adds_the_results_of_its_branches(branches, batch):
    one = Chain((Linear.of(np.ones((*batch, 3, 4))),))
    cost = Sum((one,) * branches).cost
    each, outputs = 12 * prod(batch), 4 * prod(batch)
    assert cost.multiplications == branches * each
    assert cost.additions == branches * each + (branches - 1) * outputs
    assert (cost.parameters, cost.bytes) == (branches * each, 8 * branches * each)


def test_a_table_only_gives_rows():
    assert Lookup.of(np.ones((5, 3))).cost == Cost(15, 8 * 15)
