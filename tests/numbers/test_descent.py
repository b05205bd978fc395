"""Ternary rounding with feedback and descent, against least squares and all there is to try."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from onnxlr.numbers import Encoded, Format, encode


def _covariance(seed, size):
    generator = np.random.default_rng([seed, size])
    mix = generator.standard_normal((size, size)) / np.sqrt(size) + np.eye(size) / 2
    x = generator.standard_normal((4 * size, size)) @ mix + generator.standard_normal(size)
    return x.T @ x / len(x)


def _weight(seed, *shape):
    return np.random.default_rng([seed, 1, *shape]).standard_normal(shape)


def _fed(group=None, terms=1):
    return Format("ternary", group, "gptq", terms)


def _damped(hessian):
    return hessian + 0.01 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))


def _errors(difference, hessian):
    return np.einsum("io,ij,jo->o", difference, hessian, difference)


shapes = {
    "inputs": st.integers(1, 160),
    "outputs": st.integers(1, 12),
    "seed": st.integers(0, 2**16),
    "terms": st.integers(1, 3),
    "group": st.sampled_from([None, 32, 64, 128]),
}


@settings(deadline=None, max_examples=40)
@given(**shapes)
def test_outputs_are_closer_than_by_the_nearest(inputs, outputs, seed, terms, group):
    matrix, hessian = _weight(seed, inputs, outputs), _covariance(seed, inputs)
    nearest = encode(matrix, Format("ternary", group, "nearest", terms), np.float64).decode()
    found = encode(matrix, _fed(group, terms), np.float64, hessian=hessian[None]).decode()
    damped = _damped(hessian)
    error, other = (_errors(w - matrix, damped) for w in (found, nearest))
    assert (error <= other * (1 + 1e-9) + 1e-12).all()


def test_feedback_takes_a_third_off_the_error_of_outputs():
    matrix, hessian = _weight(0, 128, 64), _covariance(0, 128)
    for terms in (1, 2, 3):
        nearest = encode(matrix, Format("ternary", 64, "nearest", terms)).decode()
        found = encode(matrix, _fed(64, terms), hessian=hessian[None]).decode()
        error, other = (_errors(w - matrix, hessian).sum() for w in (found, nearest))
        assert error < 0.67**2 * other


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("group", [32, 64, None])
def test_no_scales_and_no_single_code_are_much_better(terms, group):
    inputs, outputs = 96, 4
    matrix, hessian = _weight(1, inputs, outputs), _covariance(2, inputs)
    encoded = encode(matrix, _fed(group, terms), np.float64, hessian=hessian[None])
    found, damped = encoded.decode(), _damped(hessian)
    errors = _errors(found - matrix, damped)
    size = group or inputs
    root = np.linalg.cholesky(damped).T
    for column in range(outputs):
        # all scales of the column at once, by least squares under the covariance
        basis = np.zeros((inputs, terms, -(-inputs // size)))
        for row in range(inputs):
            basis[row, :, row // size] = encoded.trits[:, row, column]
        basis = basis.reshape(inputs, -1)
        scales = linalg.lstsq(root @ basis, root @ matrix[:, column])[0]
        least = np.sum((root @ (basis @ scales - matrix[:, column])) ** 2)
        assert errors[column] <= 1.1 * least
    trits = np.array(list(product((-1, 0, 1), repeat=terms)))
    for row in range(inputs):
        values = trits @ encoded.scales[:, row // size]
        steps = values - found[row]
        pull = damped[row] @ (matrix - found)
        gains = 2 * steps * pull - np.square(steps) * damped[row, row]
        assert (gains.max(axis=0) <= 0.03 * errors).all()


def _least_error(numbers, hessian):
    """Return the least error of one term under a covariance, trying all trits."""
    best = np.inf
    for row in product((-1.0, 0.0, 1.0), repeat=len(numbers)):
        trits = np.array(row)
        length = trits @ hessian @ trits
        scale = trits @ hessian @ numbers / length if length > 0 else 0.0
        best = min(best, _errors((scale * trits - numbers)[:, None], hessian)[0])
    return best


def test_a_few_numbers_are_near_the_best_there_is():
    hessian = _covariance(3, 6)
    damped = _damped(hessian)
    matrix = _weight(4, 6, 20)
    found = encode(matrix, _fed(), np.float64, hessian=hessian[None]).decode()
    errors = _errors(found - matrix, damped)
    least = np.array([_least_error(column, damped) for column in matrix.T])
    assert (errors >= least * (1 - 1e-9)).all()
    assert errors.sum() <= 1.7 * least.sum()


@settings(deadline=None, max_examples=30)
@given(**{name: shapes[name] for name in ("inputs", "outputs", "seed", "group")})
def test_scaled_trits_are_kept(inputs, outputs, seed, group):
    generator = np.random.default_rng([seed, inputs, outputs])
    scales = generator.random((1, -(-inputs // (group or inputs)), outputs)) + 0.1
    trits = generator.integers(-1, 2, (1, inputs, outputs)).astype(np.int8)
    exact = Encoded.of_trits(trits, scales.astype(np.float32), group).decode()
    hessian = _covariance(seed, inputs)[None]
    found = encode(exact, _fed(group), np.float32, hessian=hessian).decode()
    assert np.allclose(found, exact, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("terms", [1, 3])
def test_stacks_and_parts_are_rounded_each_by_its_own_inputs(terms):
    stack, hessian = _weight(5, 2, 40, 6), _covariance(6, 40)
    found = encode(stack, _fed(32, terms), hessian=hessian[None])
    assert found.scales.shape == (2, terms, 2, 6)
    for one, whole in zip(stack, found.decode(), strict=True):
        alone = encode(one, _fed(32, terms), hessian=hessian[None]).decode()
        assert np.array_equal(alone, whole)
    kernel = _weight(7, 6, 4, 3, 3)
    parts = np.stack([_covariance(8, 36), _covariance(9, 36)])
    found = encode(kernel, _fed(32, terms), kernel=True, hessian=parts)
    assert found.scales.shape == (6, 2, terms)
    for part, outputs in enumerate((slice(0, 3), slice(3, 6))):
        matrix = kernel[outputs].reshape(3, 36).T
        alone = encode(matrix, _fed(32, terms), hessian=parts[part][None]).decode()
        assert np.array_equal(alone.T.reshape(3, 4, 3, 3), found.decode()[outputs])


@pytest.mark.parametrize("compute", ["float16", "float32", "float64"])
def test_dead_inputs_and_outputs_are_no_trouble(compute):
    matrix, hessian = _weight(10, 70, 5), _covariance(11, 70)
    matrix[:, 1] = 0
    matrix[3] = 0
    hessian[5] = hessian[:, 5] = 0
    for covariance in (hessian, hessian * 0, np.ones((70, 70))):
        for terms in (1, 2, 3):
            found = encode(matrix, _fed(32, terms), compute, hessian=covariance[None])
            assert np.isfinite(found.decode()).all()
            assert np.isfinite(found.scales).all()
            assert (found.scales >= np.finfo(compute).tiny).all()
            assert not found.decode()[:, 1].any()


def test_the_same_bytes_every_time():
    matrix, hessian = _weight(12, 150, 30), _covariance(13, 150)
    first, second = (encode(matrix, _fed(64, 2), hessian=hessian[None]) for _ in range(2))
    assert first.codes.tobytes() == second.codes.tobytes()
    assert first.scales.tobytes() == second.scales.tobytes()
