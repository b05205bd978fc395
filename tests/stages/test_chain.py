"""Chains compute what their stages say, and folding scales changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.numbers import Format
from onnxlr.stages import Chain, Linear, Scale, simplify
from tests.onelayer import distance


def _stages(layout, sizes, batch, generator):
    stages, matrix = [], None
    position = 0
    for kind in layout:
        if kind == "linear":
            dense = generator.standard_normal((*batch, sizes[position], sizes[position + 1]))
            stages.append(Linear.of(dense))
            position += 1
        else:
            factors = generator.standard_normal((*batch, sizes[position]))
            dense = factors[..., None] * np.eye(sizes[position])
            stages.append(Scale(factors))
        matrix = dense if matrix is None else matrix @ dense
    return stages, matrix


@settings(deadline=None)
@given(
    layout=st.lists(st.sampled_from(["linear", "scale"]), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 6), min_size=7, max_size=7),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    seed=st.integers(0, 99),
)
def test_chains_and_simplified_chains_are_the_product_of_their_matrices(layout, sizes, batch, seed):
    generator = np.random.default_rng(seed)
    stages, matrix = _stages(layout, sizes, batch, generator)
    chain = Chain(tuple(stages))
    simple = simplify(chain)
    x = generator.standard_normal((*batch, 4, sizes[0]))
    for candidate in (chain, simple):
        assert distance(candidate.reconstruct(), matrix) < 1e-10
        assert distance(candidate.apply(x), x @ matrix) < 1e-10
    linears = layout.count("linear")
    assert [isinstance(s, Linear) for s in simple.stages] == [True] * linears or linears == 0
    assert simple.cost.parameters <= chain.cost.parameters


def test_scales_stay_beside_rounded_matrices():
    rounded = Linear.of(np.eye(3)).encoded(Format("int8"), np.float32)
    chain = simplify(Chain((rounded, Scale(np.arange(3.0)), rounded)))
    assert [type(stage) for stage in chain.stages] == [Linear, Scale, Linear]
    assert distance(chain.reconstruct(), np.diag([0.0, 1.0, 2.0])) < 1e-6


def test_cost_counts_numbers_bytes_and_operations():
    chain = Chain((Linear.of(np.ones((4, 2))), Linear.of(np.ones((2, 5))))).encoded(Format("int8"))
    assert chain.cost.parameters == 4 * 2 + 2 * 5
    assert chain.cost.bytes == 4 * 2 + 2 * 5 + 4 * (2 + 5)
    assert chain.cost.operations == 4 * 2 + 2 * 5


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Chain((Linear.of(np.ones((4, 2))), Linear.of(np.ones((3, 5)))))
