"""Chains compute what their stages say."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxlr.stages import Chain, Convolution, Linear
from tests.onelayer import distance


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    seed=st.integers(0, 99),
)
def test_chains_are_the_product_of_their_matrices(sizes, batch, seed):
    generator = np.random.default_rng(seed)
    shapes = list(pairwise(sizes))
    matrices = [generator.standard_normal((*batch, *shape)) for shape in shapes]
    chain = Chain(tuple(Linear.of(matrix) for matrix in matrices))
    product = reduce(np.matmul, matrices)
    x = generator.standard_normal((*batch, 4, sizes[0]))
    assert distance(chain.reconstruct(), product) < 1e-10
    assert distance(chain.apply(x), x @ product) < 1e-10


@settings(deadline=None)
@given(
    groups=st.integers(1, 3),
    channels=st.tuples(*[st.integers(1, 4)] * 3),
    extents=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_convolutions_agree_with_the_reference_evaluator(groups, channels, extents, seed):
    """Two convolutions with kernels along different axes, against onnx's own Conv."""
    generator = np.random.default_rng(seed)
    inputs, rank, outputs = (groups * count for count in channels)
    first = [size if early else 1 for size, early in extents]
    second = [1 if early else size for size, early in extents]
    kernels = [
        generator.standard_normal((rank, inputs // groups, *first)),
        generator.standard_normal((outputs, rank // groups, *second)),
    ]
    chain = Chain(tuple(Convolution.of(kernel, groups, ()) for kernel in kernels))
    assert [stage.shape for stage in chain.stages] == [(inputs, rank), (rank, outputs)]
    x = generator.standard_normal((2, inputs, *[4] * len(extents)))
    expected = x
    for kernel in kernels:
        expected = _conv(expected, kernel, groups)
    assert distance(chain.apply(x), expected) < 1e-10
    assert distance(_conv(x, chain.reconstruct(), groups), expected) < 1e-10


def _conv(x, kernel, groups):
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=groups)
    return ReferenceEvaluator(node).run(None, {"x": x, "w": kernel})[0]


def test_kernels_that_share_an_axis_are_refused():
    stages = [Convolution.of(np.ones((2, 2, 3)), 1, (0,)) for _ in range(2)]
    with pytest.raises(ValueError, match="both extend along an axis"):
        Chain(tuple(stages)).reconstruct()


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Chain((Linear.of(np.ones((4, 2))), Linear.of(np.ones((3, 5)))))
