"""Rounding with error feedback, against optimal brain quantisation written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.numbers import Format, encode

MOST = {"int4": 15, "int2": 3}


def _covariance(seed, size, rows=None):
    generator = np.random.default_rng([seed, size])
    mix = generator.standard_normal((size, size)) / np.sqrt(size) + np.eye(size) / 2
    x = generator.standard_normal((rows or 4 * size, size)) @ mix + generator.standard_normal(size)
    return x.T @ x / len(x)


def _weight(seed, *shape):
    return np.random.default_rng([seed, 1, *shape]).standard_normal(shape)


def _obq(matrix, hessian, format, compute):
    """Round input by input; each leaves the inverse covariance (Frantar et al. 2022).

    The remaining inputs move by `−e · H⁻¹[j, i] / H⁻¹[i, i]`, and `H⁻¹` of those that remain is
    that of all minus the outer product of the input's row.
    """
    size = len(matrix)
    inverse = np.linalg.inv(hessian + 0.01 * np.trace(hessian) / size * np.eye(size))
    left, found = matrix.copy(), np.empty_like(matrix)
    for i in range(size):
        if i % (format.group or size) == 0:
            part = left[i : i + (format.group or size)]
            # the grid of a group as it is when its turn comes
            grid = encode(part, Format(format.kind), compute)
            scale = grid.scales[0].astype(np.float64)
            zero = 0 if grid.zero_points is None else grid.zero_points[0].astype(np.float64)
        if format.kind == "int8":
            code = np.clip(np.rint(left[i] / scale), -127, 127)
        else:
            code = np.clip(np.rint(left[i] / scale) + zero, 0, MOST[format.kind])
        found[i] = (code - zero) * scale
        wrong = left[i] - found[i]
        left[i + 1 :] -= np.outer(inverse[i + 1 :, i] / inverse[i, i], wrong)
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return found


@pytest.mark.parametrize("kind", ["int8", "int4", "int2"])
@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize("inputs", [1, 20, 40, 150, 300])
def test_feedback_is_optimal_brain_quantisation_in_order(kind, group, inputs):
    chosen = Format.parse(kind, group, "gptq")
    matrix, hessian = _weight(0, inputs, 5), _covariance(1, inputs)
    found = encode(matrix, chosen, np.float32, hessian=hessian[None]).decode()
    expected = _obq(matrix, hessian, chosen, np.float32)
    assert np.allclose(found, expected, atol=1e-9)


def _output_error(difference, hessian):
    return np.trace(difference.T @ hessian @ difference)


@settings(deadline=None, max_examples=40)
@given(
    inputs=st.integers(16, 160),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["int8", "int4"]),
    group=st.sampled_from([0, 32]),
)
def test_outputs_are_closer_than_by_the_nearest(inputs, seed, kind, group):
    matrix, hessian = _weight(seed, inputs, 24), _covariance(seed, inputs)
    nearest = encode(matrix, Format.parse(kind, group), np.float64).decode()
    fed = encode(
        matrix, Format.parse(kind, group, "gptq"), np.float64, hessian=hessian[None]
    ).decode()
    assert _output_error(fed - matrix, hessian) < _output_error(nearest - matrix, hessian)
    assert np.linalg.norm(fed - matrix) > np.linalg.norm(nearest - matrix)  # at that price


@settings(deadline=None, max_examples=40)
@given(
    inputs=st.integers(1, 150),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from(["int8", "int4", "int2"]),
    group=st.sampled_from([0, 32]),
)
def test_independent_inputs_are_rounded_to_the_nearest(inputs, seed, kind, group):
    matrix = _weight(seed, inputs, 3)
    hessian = np.diag(np.random.default_rng(seed).random(inputs) + 0.1)
    nearest = encode(matrix, Format.parse(kind, group))
    fed = encode(matrix, Format.parse(kind, group, "gptq"), hessian=hessian[None])
    assert np.array_equal(nearest.codes, fed.codes)
    assert np.array_equal(nearest.scales, fed.scales)
    assert kind == "int8" or np.array_equal(nearest.zero_points, fed.zero_points)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("group", [0, 32])
def test_groups_of_a_convolution_have_inputs_of_their_own(kind, group):
    kernel = _weight(0, 6, 4, 3, 4)  # three groups of two outputs, 48 inputs each
    hessians = np.stack([_covariance(seed, 48) for seed in range(3)])
    chosen = Format.parse(kind, group, "gptq")
    whole = encode(kernel, chosen, kernel=True, hessian=hessians)
    assert whole.codes.shape == kernel.shape
    assert whole.scales.shape == (6, 2 if group else 1)
    for part in range(3):
        own = kernel[2 * part : 2 * part + 2].reshape(2, -1).T
        expected = _obq(own, hessians[part], chosen, np.float32)
        found = whole.decode()[2 * part : 2 * part + 2].reshape(2, -1).T
        assert np.allclose(found, expected, atol=1e-9)


def test_a_stack_shares_its_covariance():
    stack, hessian = _weight(0, 2, 3, 40, 4), _covariance(0, 40)
    chosen = Format.parse("int4", 32, "gptq")
    found = encode(stack, chosen, hessian=hessian[None])
    assert found.scales.shape == found.zero_points.shape == (2, 3, 2, 4)
    for i in range(2):
        for j in range(3):
            expected = _obq(stack[i, j], hessian, chosen, np.float32)
            assert np.allclose(found.decode()[i, j], expected, atol=1e-9)


def test_without_a_covariance_rounding_is_to_the_nearest():
    matrix = _weight(0, 50, 6)
    fed, nearest = (encode(matrix, Format.parse("int4", 32, r)) for r in ("gptq", "nearest"))
    assert np.array_equal(fed.codes, nearest.codes)


@pytest.mark.parametrize("hessian", [np.zeros((9, 9)), np.ones((9, 9)), 1e-30 * np.ones((9, 9))])
def test_covariances_without_full_rank_are_damped(hessian):
    """Dead inputs, and inputs that are all the same, of any size."""
    matrix = _weight(0, 9, 4)
    found = encode(matrix, Format.parse("int8", 0, "gptq"), hessian=hessian[None]).decode()
    assert np.isfinite(found).all()
    if not hessian.any():
        assert np.array_equal(found, encode(matrix, Format("int8")).decode())
    else:  # only the sum of the inputs counts
        sums, nearest = found.sum(axis=0), encode(matrix, Format("int8")).decode().sum(axis=0)
        assert np.linalg.norm(sums - matrix.sum(axis=0)) < np.linalg.norm(
            nearest - matrix.sum(axis=0)
        )
