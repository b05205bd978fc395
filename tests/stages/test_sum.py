"""Chains side by side compute the sum of what each computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.numbers import Format
from onnxlr.stages import Chain, Convolution, Linear, Sum
from tests.onelayer import distance


@settings(deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 6),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    seed=st.integers(0, 99),
)
def test_matrices_are_added(ranks, inputs, outputs, batch, seed):
    generator = np.random.default_rng(seed)
    base = generator.standard_normal((*batch, inputs, outputs))
    pairs = [
        (
            generator.standard_normal((*batch, inputs, rank)),
            generator.standard_normal((*batch, rank, outputs)),
        )
        for rank in ranks
    ]
    branches = [Chain((Linear.of(base),))]
    branches += [Chain((Linear.of(left), Linear.of(right))) for left, right in pairs]
    stage = Sum(tuple(branches))
    expected = base + sum(left @ right for left, right in pairs)
    x = generator.standard_normal((*batch, 4, inputs))
    assert stage.shape == (*batch, inputs, outputs)
    assert distance(stage.dense(), expected) < 1e-12
    assert distance(stage.apply(x), x @ expected) < 1e-12
    count = int(np.prod(batch, dtype=int))
    parameters = count * (inputs * outputs + sum(ranks) * (inputs + outputs))
    assert stage.parameters == parameters
    assert stage.nbytes == 8 * parameters
    chain = Chain((stage,))
    assert chain.cost.parameters == parameters
    assert distance(chain.reconstruct(), expected) < 1e-12


def test_a_sum_stands_between_other_stages():
    generator = np.random.default_rng(0)
    first, one, two, last = (
        generator.standard_normal(shape) for shape in ((3, 5), (5, 4), (5, 4), (4, 6))
    )
    middle = Sum((Chain((Linear.of(one),)), Chain((Linear.of(two),))))
    chain = Chain((Linear.of(first), middle, Linear.of(last)))
    expected = first @ (one + two) @ last
    assert distance(chain.reconstruct(), expected) < 1e-12
    x = generator.standard_normal((7, 3))
    assert distance(chain.apply(x), x @ expected) < 1e-12


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_added(groups):
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((6, 4 // groups, 3, 2))
    start = generator.standard_normal((2 * groups, 4 // groups, 3, 2))
    end = generator.standard_normal((6, 2, 1, 1))
    whole = (0, 1)
    stage = Sum(
        (
            Chain((Convolution.of(kernel, groups, whole),)),
            Chain((Convolution.of(start, groups, whole), Convolution.of(end, groups, ()))),
        )
    )
    assert stage.shape == (4, 6)
    dense = kernel.copy()
    width = 6 // groups
    for group in range(groups):
        outputs, middle = (slice(group * n, (group + 1) * n) for n in (width, 2))
        dense[outputs] += np.einsum("or,rihw->oihw", end[outputs, :, 0, 0], start[middle])
    assert distance(stage.dense(), dense) < 1e-12
    x = generator.standard_normal((2, 4, 7, 6))
    expected = Convolution.of(dense, groups, whole).apply(x)
    assert distance(stage.apply(x), expected) < 1e-12


def test_every_branch_is_encoded():
    generator = np.random.default_rng(0)
    matrices = generator.standard_normal((2, 6, 5))
    stage = Sum(tuple(Chain((Linear.of(matrix),)) for matrix in matrices))
    rounded = stage.encoded(Format("float16"), np.float32)
    expected = sum(matrix.astype(np.float16).astype(np.float64) for matrix in matrices)
    assert np.array_equal(rounded.dense(), expected)
    assert rounded.nbytes == 2 * 2 * 30


@pytest.mark.parametrize("shapes", [[(3, 4)], [(3, 4), (3, 5)], [(3, 4), (2, 4)]])
def test_branches_that_make_no_sum_are_refused(shapes):
    with pytest.raises(ValueError, match="make no sum"):
        Sum(tuple(Chain((Linear.of(np.ones(shape)),)) for shape in shapes))
