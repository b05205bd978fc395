"""Errors measured from moments, against sampled inputs and gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.errors import UsageError
from onnxlr.metrics import (
    Activation,
    Fisher,
    FisherRows,
    Frobenius,
    Kfac,
    Weighing,
    relative_error,
)

seeds = st.integers(0, 2**16)
sizes = st.integers(1, 8)


def _samples(generator, rows, size):
    return generator.standard_normal((rows, size)) @ generator.standard_normal((size, size)) + 1


def _second(x):
    return x.T @ x / len(x)


@settings(deadline=None, max_examples=60)
@given(inputs=sizes, outputs=sizes, batch=st.sampled_from([(), (3,), (2, 2)]), seed=seeds)
def test_activation_is_the_mean_squared_norm_of_the_outputs_error(inputs, outputs, batch, seed):
    generator = np.random.default_rng(seed)
    x = _samples(generator, 30, inputs)
    difference = generator.standard_normal((*batch, inputs, outputs))
    expected = np.sum((x @ difference) ** 2) / 30
    found = Activation(_second(x), shrinkage=0).squared(difference, None)
    assert np.isclose(found, expected, rtol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(1, 3), inputs=sizes, outputs=st.integers(1, 4), taps=st.integers(1, 3),
    seed=seeds,
)  # fmt: skip
def test_groups_of_a_convolution_have_patches_of_their_own(groups, inputs, outputs, taps, seed):
    generator = np.random.default_rng(seed)
    patches = [_samples(generator, 30, inputs * taps * 2) for _ in range(groups)]
    difference = generator.standard_normal((groups * outputs, inputs, taps, 2))
    expected = 0.0
    for group, x in enumerate(patches):
        for kernel in difference[group * outputs : (group + 1) * outputs]:
            expected += np.mean((x @ kernel.ravel()) ** 2)
    metric = Activation(np.stack([_second(x) for x in patches]), shrinkage=0)
    assert np.isclose(metric.squared(difference, groups), expected, rtol=1e-9)
    metric.expect(difference, groups)


@settings(deadline=None, max_examples=60)
@given(inputs=sizes, outputs=sizes, seed=seeds)
def test_kfac_is_the_kronecker_form(inputs, outputs, seed):
    generator = np.random.default_rng(seed)
    c, g = (_second(_samples(generator, 20, size)) for size in (inputs, outputs))
    difference = generator.standard_normal((inputs, outputs))
    entries = difference.ravel()  # row by row, so that the inputs' side comes first
    expected = entries @ np.kron(c, g) @ entries
    assert np.isclose(Kfac(c, g, shrinkage=0).squared(difference, None), expected, rtol=1e-9)


@settings(deadline=None, max_examples=30)
@given(groups=st.integers(1, 3), inputs=sizes, outputs=st.integers(1, 4), seed=seeds)
def test_kfac_of_groups_takes_the_blocks_of_their_outputs(groups, inputs, outputs, seed):
    generator = np.random.default_rng(seed)
    c = [_second(_samples(generator, 20, 2 * inputs)) for _ in range(groups)]
    g = _second(_samples(generator, 40, groups * outputs))
    difference = generator.standard_normal((groups * outputs, inputs, 2))
    expected = 0.0
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        entries = difference[own].reshape(outputs, -1).T.ravel()
        expected += entries @ np.kron(c[group], g[own, own]) @ entries
    found = Kfac(np.stack(c), g, shrinkage=0).squared(difference, groups)
    assert np.isclose(found, expected, rtol=1e-9)


def test_a_stack_of_matrices_shares_both_covariances():
    generator = np.random.default_rng(0)
    c, g = (_second(_samples(generator, 20, size)) for size in (5, 4))
    difference = generator.standard_normal((2, 3, 5, 4))
    metric = Kfac(c, g, shrinkage=0)
    each = [metric.squared(one, None) for one in difference.reshape(-1, 5, 4)]
    assert np.isclose(metric.squared(difference, None), sum(each))


@settings(deadline=None, max_examples=60)
@given(inputs=sizes, outputs=sizes, seed=seeds)
def test_fisher_weights_rows_or_entries(inputs, outputs, seed):
    generator = np.random.default_rng(seed)
    importance = generator.random((inputs, outputs)) + 1e-3
    difference = generator.standard_normal((inputs, outputs))
    rows = np.diag(np.sqrt(importance.sum(axis=1)))
    expected = np.linalg.norm(rows @ difference) ** 2
    assert np.isclose(FisherRows(importance).squared(difference, None), expected)
    expected = np.linalg.norm(np.sqrt(importance) * difference) ** 2
    assert np.isclose(Fisher(importance).squared(difference, None), expected)
    assert np.isclose(Frobenius().squared(difference, None), np.linalg.norm(difference) ** 2)


def test_rows_of_a_kernel_are_its_patches():
    generator = np.random.default_rng(0)
    importance, difference = generator.random((6, 2, 3)), generator.standard_normal((6, 2, 3))
    expected = sum(
        np.sum(importance[part].sum(axis=0) * np.square(difference[part]).sum(axis=0))
        for part in (slice(0, 3), slice(3, 6))
    )
    assert np.isclose(FisherRows(importance).squared(difference, 2), expected)


def test_rows_of_no_importance_still_count_a_little():
    importance = np.array([[1.0, 1.0], [0.0, 0.0]])
    found = FisherRows(importance).squared(np.array([[0.0, 0.0], [1.0, 0.0]]), None)
    assert 0 < found < 1e-6


@settings(deadline=None, max_examples=40)
@given(size=sizes, shrinkage=st.floats(0, 1), seed=seeds)
def test_shrinking_moves_a_covariance_towards_its_mean_diagonal(size, shrinkage, seed):
    covariance = _second(_samples(np.random.default_rng(seed), 4, size))
    found = Activation(covariance, shrinkage).covariance[0]
    assert np.isclose(np.trace(found), np.trace(covariance))
    values, vectors = np.linalg.eigh(covariance)
    moved = (1 - shrinkage) * values + shrinkage * values.mean()
    assert np.allclose(found, (vectors * moved) @ vectors.T, atol=1e-9 * values.max())


def test_each_group_is_shrunk_towards_its_own_mean():
    covariances = np.stack([np.diag([2.0, 4.0]), np.diag([20.0, 60.0]), np.zeros((2, 2))])
    found = Activation(covariances, 0.5).covariance
    assert np.allclose(found[0], np.diag([2.5, 3.5]))
    assert np.allclose(found[1], np.diag([30.0, 50.0]))
    assert 0 < found[2].max() < 1e-9  # a group that saw nothing counts for next to nothing
    assert np.linalg.eigvalsh(found[2]).min() > 0


@settings(deadline=None, max_examples=60)
@given(
    inputs=sizes, outputs=sizes, seed=seeds,
    kind=st.sampled_from(["activation", "kfac", "fisher-rows", "frobenius", "singular"]),
)  # fmt: skip
def test_weighing_gives_the_metric_as_a_norm_and_is_undone(inputs, outputs, seed, kind):
    generator = np.random.default_rng(seed)
    c = _second(_samples(generator, 30, inputs))
    g = _second(_samples(generator, 30, outputs))
    difference = generator.standard_normal((inputs, outputs))
    if kind == "frobenius":
        weighing, expected = Weighing(), np.sum(difference**2)
    elif kind == "fisher-rows":
        rows = generator.random(inputs) + 0.1
        weighing, expected = Weighing.of(rows), np.sum(rows[:, None] * difference**2)
    elif kind == "kfac":
        weighing, expected = Weighing.of(c, g), np.trace(g @ difference.T @ c @ difference)
    else:
        if kind == "singular":
            x = generator.standard_normal((1, inputs))
            c = x.T @ x
        weighing, expected = Weighing.of(c), np.trace(difference.T @ c @ difference)
    weighed = weighing.weigh(difference)
    assert np.isclose(np.sum(weighed**2), expected, rtol=1e-6, atol=1e-10)
    left, right = weighing.restore(weighed, np.eye(outputs))
    assert np.allclose(left @ right, difference, atol=1e-5)
    left, right = weighing.restore(np.eye(inputs), weighed)
    if kind != "singular":
        assert np.allclose(left @ right, difference, atol=1e-5)


def test_relative_error_is_of_what_the_weight_itself_gives():
    generator = np.random.default_rng(0)
    x = _samples(generator, 50, 6)
    weight, other = generator.standard_normal((2, 6, 4))
    expected = np.linalg.norm(x @ (weight - other)) / np.linalg.norm(x @ weight)
    found = relative_error(Activation(_second(x), shrinkage=0), weight, other, None)
    assert np.isclose(found, expected)
    assert relative_error(Frobenius(), np.zeros((2, 2)), np.zeros((2, 2)), None) == 0


@pytest.mark.parametrize(
    ("metric", "weight", "groups", "message"),
    [
        (Activation(np.eye(3)), (4, 2), None, "covariance is for 3 inputs, the weight has 4"),
        (
            Activation(np.stack([np.eye(6)] * 2)), (4, 2, 3), 1,
            "is for 6 inputs in each of 2 groups, the weight has 6",
        ),
        (
            Activation(np.eye(6)), (4, 2, 3), 2,
            "is for 6 inputs, the weight has 6 in each of 2 groups",
        ),
        (Kfac(np.eye(4), np.eye(3)), (4, 2), None, "is for 3 outputs, the weight has 2"),
        (Kfac(np.stack([np.eye(6)] * 2), np.eye(2)), (4, 2, 3), 2, "2 outputs, the weight has 4"),
        (FisherRows(np.ones((4, 3))), (3, 4), None, r"shape \(4, 3\), the weight \(3, 4\)"),
        (Fisher(np.ones((4, 6))), (4, 2, 3), 1, r"shape \(4, 6\), the weight \(4, 2, 3\)"),
    ],
)  # fmt: skip
def test_metrics_of_another_weight_are_refused(metric, weight, groups, message):
    with pytest.raises(UsageError, match=message):
        metric.expect(np.zeros(weight), groups)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activation(np.ones(3)), r"shape \(3,\), expected a square matrix"),
        (lambda: Activation(np.ones((3, 2))), "expected a square matrix"),
        (lambda: Activation(np.full((2, 2), np.inf)), "covariance has NaN or infinite"),
        (lambda: Activation(np.zeros((2, 2))), "the inputs it describes are zero"),
        (lambda: Kfac(np.eye(2), np.ones((3, 2))), "output covariance has shape"),
        (lambda: Kfac(np.eye(2), np.zeros((2, 2))), "output covariance has no positive"),
        (lambda: FisherRows(np.ones(3)), "at least 2 dimensions"),
        (lambda: FisherRows(np.full((2, 2), np.nan)), "finite and none negative"),
        (lambda: Fisher(-np.ones((2, 2))), "none negative"),
        (lambda: Fisher(np.zeros((2, 2))), "zero everywhere"),
        (lambda: Fisher(np.ones((2, 2)), "sgd"), "solver 'sgd' is unknown"),
    ],
)
def test_what_measures_nothing_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
