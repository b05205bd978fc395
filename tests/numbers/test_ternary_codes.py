"""Ternary numbers as codes: what they stand for, their terms, their bytes."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.numbers import MOST_TERMS, Encoded, Format


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Draw trits `(terms, *batch, inputs, outputs)`, scales and a group size."""
    terms, inputs, outputs = (draw(st.integers(1, most)) for most in (MOST_TERMS, 140, 5))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    group = draw(st.sampled_from([None, 32, 64, 128]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    trits = rng.integers(-1, 2, (terms, *batch, inputs, outputs)).astype(np.int8)
    groups = -(-inputs // (group or inputs))
    scales = rng.standard_normal((*batch, terms, groups, outputs)).astype(np.float32)
    return trits, scales, group


def _dense(trits, scales, group):
    """Return the sum of scaled trits, entry by entry."""
    terms, *batch, inputs, outputs = trits.shape
    found = np.zeros((*batch, inputs, outputs))
    for entry in np.ndindex(*found.shape):
        *stack, k, n = entry
        g = k // (group or inputs)
        for t in range(terms):
            found[entry] += float(scales[(*stack, t, g, n)]) * int(trits[(t, *entry)])
    return found


@given(given_numbers=matrices())
def test_matrices(given_numbers):
    trits, scales, group = given_numbers
    if trits.size > 4000:
        trits, scales = trits[..., :1], scales[..., :1]
    encoded = Encoded.of_trits(trits, scales, group)
    assert encoded.format == Format("ternary", group, terms=len(trits))
    assert encoded.shape == trits.shape[1:]
    assert encoded.codes.dtype == np.uint8
    np.testing.assert_array_equal(encoded.trits, trits)
    dense = _dense(trits, scales, group)
    np.testing.assert_allclose(encoded.decode(), dense, atol=1e-12)
    for kind in ("int8", "int2"):
        terms = encoded.terms(kind)
        assert all(term.format == Format(kind, group) for term in terms)
        np.testing.assert_allclose(sum(term.decode() for term in terms), dense, atol=1e-12)


@given(
    terms=st.integers(1, MOST_TERMS),
    outputs=st.integers(1, 4),
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    group=st.sampled_from([None, 32, 64]),
    seed=st.integers(0, 2**16),
)
def test_kernels(terms, outputs, shape, group, seed):
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (terms, outputs, *shape)).astype(np.int8)
    inputs = prod(shape)
    groups = -(-inputs // (group or inputs))
    scales = rng.standard_normal((outputs, groups, terms)).astype(np.float32)
    encoded = Encoded.of_trits(trits, scales, group, kernel=True)
    matrix = trits.reshape(terms, outputs, inputs).transpose(0, 2, 1)
    dense = _dense(matrix, scales.transpose(2, 1, 0), group)
    np.testing.assert_array_equal(encoded.trits, trits)
    np.testing.assert_allclose(encoded.decode().reshape(outputs, -1).T, dense, atol=1e-12)
    for kind in ("int8", "int2"):
        found = sum(term.decode() for term in encoded.terms(kind))
        np.testing.assert_allclose(found.reshape(outputs, -1).T, dense, atol=1e-12)


def test_digits_are_to_the_base_3():
    trits = np.array([[[-1, 0, 1]], [[1, -1, 0]]], np.int8)
    encoded = Encoded.of_trits(trits, np.ones((2, 1, 3), np.float32))
    np.testing.assert_array_equal(encoded.codes, [[0 + 6, 1 + 0, 2 + 3]])


@pytest.mark.parametrize(("terms", "group"), [(1, None), (2, 32), (5, 64)])
def test_bytes(terms, group):
    trits = np.zeros((terms, 100, 7), np.int8)
    groups = -(-100 // (group or 100))
    encoded = Encoded.of_trits(trits, np.ones((terms, groups, 7), np.float32), group)
    expected = -(-100 * 7 * 2 * terms // 8) + 4 * terms * groups * 7
    assert encoded.nbytes == expected
    assert encoded.format.bytes(100, 7, 4) == expected


def test_other_numbers_have_no_terms():
    encoded = Encoded.of_trits(np.zeros((1, 4, 4), np.int8), np.ones((1, 1, 4), np.float32))
    with pytest.raises(ValueError, match="no terms of int4"):
        encoded.terms("int4")
