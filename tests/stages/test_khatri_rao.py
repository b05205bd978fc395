"""Khatri-Rao products against scipy's, and what they cost by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from onnxlr.numbers import Format
from onnxlr.stages import Chain, Cost, KhatriRao
from tests.onelayer import distance


def _factors(seed, sizes, count):
    generator = np.random.default_rng([seed, count, *sizes])
    return [generator.standard_normal((size, count)) for size in sizes]


def _product(factors):
    whole = factors[0]
    for factor in factors[1:]:
        whole = linalg.khatri_rao(whole, factor)
    return whole


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    count=st.integers(1, 5),
    gathers=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_the_khatri_rao_product(sizes, count, gathers, seed):
    factors = _factors(seed, sizes, count)
    stage = KhatriRao.of_factors(factors, gathers)
    expected = _product(factors) if gathers else _product(factors).T
    assert stage.shape == expected.shape
    assert distance(stage.dense(), expected) < 1e-12
    x = np.random.default_rng(seed).standard_normal((2, 3, expected.shape[0]))
    assert distance(stage.apply(x), x @ expected) < 1e-12
    before = np.random.default_rng(seed).standard_normal((4, expected.shape[0]))
    assert distance(stage.after(before), before @ expected) < 1e-12


def test_numbers_are_those_of_the_factors_and_arithmetic_that_of_the_product():
    stage = KhatriRao.of_factors(_factors(0, (4, 6), 5), gathers=True)
    assert stage.cost == Cost(5 * 10, 8 * 50, 24 * 5, 24 * 5)
    half = stage.encoded(Format("float16"), np.float32)
    assert half.cost == Cost(50, 100, 120, 120)
    assert (half.parameters, half.nbytes) == (50, 100)
    back = KhatriRao.of_factors(_factors(0, (3, 3), 5), gathers=False)
    assert Chain((stage, back)).reconstruct().shape == (24, 9)


def test_factors_are_rounded_one_by_one():
    factors = _factors(1, (5, 7), 4)
    stage = KhatriRao.of_factors(factors, gathers=False).encoded(Format("float16"), np.float32)
    rounded = [factor.astype(np.float16).astype(np.float64) for factor in factors]
    assert distance(stage.dense(), _product(rounded).T) < 1e-15
    assert stage.format == Format("float16")
    with pytest.raises(ValueError, match="are floats, not int8"):
        stage.encoded(Format("int8"), np.float32)
