"""Ternary grids: nearest values by trying all trits, scales by least squares, published errors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize, special

from onnxlr.numbers import Encoded, Format, encode

computes = st.sampled_from(["float16", "float32", "float64"])


def _normal(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def _ternary(group=None, terms=1, rounding="nearest"):
    return Format("ternary", group, rounding, terms)


def _all_values(scales):
    """Return every sum of scaled trits, `(3ᵗ, …)`, of scales `(terms, …)`."""
    trits = np.array(list(product((-1, 0, 1), repeat=len(scales))))
    return np.tensordot(trits, scales.astype(np.float64), 1)


@st.composite
def _numbers(draw):
    """Return numbers, whether they are a kernel, and a format."""
    inputs = draw(st.sampled_from([1, 2, 31, 32, 33, 63, 65, 128, 129, 200]))
    outputs, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**16))
    layout = draw(st.sampled_from(["matrix", "stack", "kernel"]))
    shape = {
        "matrix": (inputs, outputs),
        "stack": (2, inputs, outputs),
        "kernel": (outputs, inputs, 3),
    }[layout]
    values = _normal(seed, *shape) * np.exp(2 * _normal(seed + 1, *shape))
    values[np.random.default_rng(seed).random(shape) < draw(st.sampled_from([0, 0.5]))] = 0
    group = draw(st.sampled_from([None, 32, 64, 128]))
    return values, layout == "kernel", _ternary(group, draw(st.integers(1, 3)))


def _by_inputs(encoded, values):
    """Return numbers and values as `(inputs, columns)`, scales as `(terms, groups, columns)`."""
    found, scales = encoded.decode(), encoded.scales.astype(np.float64)
    if encoded.kernel:
        return *(a.reshape(len(a), -1).T for a in (values, found)), scales.transpose(2, 1, 0)
    if values.ndim == 3:
        scales = np.concatenate(list(scales), axis=-1)
        return *(np.concatenate(list(a), axis=-1) for a in (values, found)), scales
    return values, found, scales


@settings(deadline=None, max_examples=100)
@given(_numbers(), computes)
def test_every_entry_has_the_nearest_value_of_its_group(given_numbers, compute):
    values, kernel, chosen = given_numbers
    encoded = encode(values, chosen, compute, kernel=kernel)
    assert encoded.codes.dtype == np.uint8
    assert encoded.codes.shape == values.shape
    assert encoded.codes.max() < 3**chosen.terms
    assert encoded.zero_points is None
    assert encoded.scales.dtype == compute
    assert (encoded.scales >= np.finfo(compute).tiny).all()
    matrix, found, scales = _by_inputs(encoded, values)
    size = chosen.group or len(matrix)
    assert scales.shape == (chosen.terms, -(-len(matrix) // size), matrix.shape[1])
    for group, start in enumerate(range(0, len(matrix), size)):
        rows = slice(start, start + size)
        every = _all_values(scales[:, group])
        nearest = np.abs(every[:, None] - matrix[rows]).min(axis=0)
        assert np.allclose(np.abs(found[rows] - matrix[rows]), nearest, rtol=1e-9, atol=1e-300)
    assert (np.sign(found) * np.sign(matrix) >= 0).all()


@settings(deadline=None, max_examples=60)
@given(_numbers(), computes)
def test_bytes_are_two_bits_a_trit_and_the_scales(given_numbers, compute):
    values, kernel, chosen = given_numbers
    encoded = encode(values, chosen, compute, kernel=kernel)
    expected = -(-values.size * 2 * chosen.terms // 8) + encoded.scales.nbytes
    assert encoded.nbytes == expected


@settings(deadline=None, max_examples=60)
@given(_numbers())
def test_no_other_scales_of_the_same_trits_are_better(given_numbers):
    values, kernel, chosen = given_numbers
    encoded = encode(values, chosen, np.float64, kernel=kernel)
    matrix, found, _ = _by_inputs(encoded, values)
    trits = encoded.trits.astype(np.float64)
    size = chosen.group or len(matrix)
    if kernel:
        trits = trits.reshape(*trits.shape[:2], -1).swapaxes(1, 2)
    elif values.ndim == 3:
        trits = np.concatenate(list(trits.swapaxes(0, 1)), axis=-1)
    for start in range(0, len(matrix), size):
        rows = slice(start, start + size)
        for column in range(matrix.shape[1]):
            least = linalg.lstsq(trits[:, rows, column].T, matrix[rows, column])[0]
            fitted = trits[:, rows, column].T @ least
            best = np.sum((fitted - matrix[rows, column]) ** 2)
            error = np.sum((found[rows, column] - matrix[rows, column]) ** 2)
            # alternation stops after a few rounds: what is left to win is little
            assert error <= 1.1 * best + 1e-4 * np.sum(matrix[rows, column] ** 2)


def _least_error(numbers, terms):
    """Return the least squared error of any scales for a few numbers, trying all trits."""
    best = np.inf
    every = np.array(list(product((-1.0, 0.0, 1.0), repeat=terms)))
    for rows in product(range(len(every)), repeat=len(numbers)):
        trits = every[list(rows)]
        scales = linalg.lstsq(trits, numbers)[0]
        best = min(best, float(np.sum((trits @ scales - numbers) ** 2)))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_one_term_of_a_few_numbers_is_the_best_there_is(seed):
    numbers = _normal(seed, 6)
    found = encode(numbers[:, None], _ternary(), np.float64).decode()[:, 0]
    assert np.isclose(np.sum((found - numbers) ** 2), _least_error(numbers, 1), rtol=1e-9)


def test_two_terms_of_a_few_numbers_are_near_the_best_there_is():
    matrix = _normal(0, 4, 12)
    found = encode(matrix, _ternary(terms=2), np.float64).decode()
    least = sum(_least_error(column, 2) for column in matrix.T)
    assert least < np.sum((found - matrix) ** 2) + 1e-12
    assert np.sum((found - matrix) ** 2) <= 1.5 * least + 0.01 * np.sum(matrix**2)


def _error_of_best_threshold():
    """Return the relative error of one term for normal numbers: `1 − 2 φ(t)² / Q(t)`, squared."""

    def squared(threshold):
        density = np.exp(-(threshold**2) / 2) / np.sqrt(2 * np.pi)
        return 1 - 2 * density**2 / special.ndtr(-threshold)

    return np.sqrt(optimize.minimize_scalar(squared, bounds=(0.1, 2), method="bounded").fun)


def test_one_term_of_gaussian_numbers_reaches_the_best_threshold():
    matrix = _normal(0, 4096, 50)
    found = encode(matrix, _ternary(), np.float32).decode()
    error = np.linalg.norm(found - matrix) / np.linalg.norm(matrix)
    assert abs(error - _error_of_best_threshold()) < 2e-3


def test_each_term_of_gaussian_numbers_leaves_a_third():
    matrix = _normal(0, 128, 500)
    for terms, most in ((1, 0.437), (2, 0.165), (3, 0.058)):
        found = encode(matrix, _ternary(128, terms), np.float32).decode()
        error = np.linalg.norm(found - matrix) / np.linalg.norm(matrix)
        assert error < most


@settings(deadline=None, max_examples=60)
@given(
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    group=st.sampled_from([None, 32, 128]),
    compute=computes,
)
def test_scaled_trits_are_exact(inputs, outputs, seed, group, compute):
    generator = np.random.default_rng([seed, inputs, outputs])
    count = -(-inputs // (group or inputs))
    scales = (generator.random((1, count, outputs)) + 0.1).astype(compute)
    trits = generator.integers(-1, 2, (1, inputs, outputs)).astype(np.int8)
    exact = Encoded.of_trits(trits, scales, group).decode()
    for terms in (1, 2):
        found = encode(exact, _ternary(group, terms), compute).decode()
        assert np.allclose(found, exact, rtol=1e-6 if compute == "float64" else 2e-3, atol=1e-30)
        if terms == 1:
            assert np.allclose(found, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.25, 2.0**-30])
def test_equal_weights_are_exact(terms, value):
    matrix = np.full((40, 3), value)
    assert np.allclose(encode(matrix, _ternary(32, terms), np.float32).decode(), matrix, rtol=1e-6)


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("compute", ["float16", "float32", "float64"])
def test_extremes_stay_finite_and_zeros_are_zeros(terms, compute):
    limits = np.finfo(compute)
    largest, tiny = float(limits.max), float(limits.tiny)
    column = np.array([largest, -largest, 0.0, largest / 3])
    matrix = np.stack([column, np.abs(column), column * 0, column / largest * tiny / 8], axis=1)
    encoded = encode(matrix, _ternary(None, terms), compute)
    found = encoded.decode()
    assert np.isfinite(found).all()
    assert (np.abs(found - matrix)[:, :2] <= 0.7 * largest).all()
    assert not found[:, 2:].any()
    assert (encoded.trits[:, :, 2] == 0).all()
    assert encoded.scales.min() >= tiny


def test_a_bad_outlier_does_not_cost_all_others():
    matrix = _normal(0, 128, 8)
    matrix[5] = 400.0
    for terms in (2, 3):
        found = encode(matrix, _ternary(128, terms), np.float32).decode()
        rest = np.delete(np.arange(128), 5)
        wrong = np.linalg.norm((found - matrix)[rest]) / np.linalg.norm(matrix[rest])
        assert wrong < 0.5
        assert np.allclose(found[5], 400, atol=4)
