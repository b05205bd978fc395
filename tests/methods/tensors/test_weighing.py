"""Marginals of metrics: partial traces by hand, exact where the metric is a product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.methods.tensors import Network
from onnxlr.methods.tensors.weighing import AxisWeighings
from onnxlr.metrics import Activation, FisherRows, Frobenius, Kfac
from tests.onelayer import distance


def _covariance(generator, size):
    root = generator.standard_normal((size, size + 2))
    return root @ root.T / size


def test_marginals_are_partial_traces():
    generator = np.random.default_rng(0)
    whole = _covariance(generator, 6)
    metric = Activation(whole, shrinkage=0)
    first, second, third = AxisWeighings.of(metric, 0, None, (2, 3), (4,)).roots
    apart = whole.reshape(2, 3, 2, 3)
    expected = [sum(apart[:, i, :, i] for i in range(3)), sum(apart[i, :, i, :] for i in range(2))]
    for root, marginal in zip((first, second), expected, strict=True):
        scaled = marginal / np.trace(marginal) * len(marginal)
        assert distance(root.T @ root, scaled) < 1e-10
        assert np.array_equal(root, np.triu(root))
    assert third is None


@pytest.mark.parametrize("outputs", [False, True])
def test_a_metric_that_is_a_product_is_measured_exactly(outputs):
    generator = np.random.default_rng(1)
    a, b, g = (_covariance(generator, size) for size in (3, 4, 5))
    metric = (
        Kfac(np.kron(a, b), g, shrinkage=0) if outputs else Activation(np.kron(a, b), shrinkage=0)
    )
    weighing = AxisWeighings.of(metric, 0, None, (3, 4), (5,))
    ratios = []
    for _ in range(4):
        tensor = generator.standard_normal((3, 4, 5))
        ratios.append(
            np.sum(weighing.weigh(tensor) ** 2) / metric.squared(tensor.reshape(12, 5), None)
        )
    assert np.allclose(ratios, ratios[0])


def test_each_group_has_marginals_of_its_own():
    generator = np.random.default_rng(2)
    both = np.stack([_covariance(generator, 6), _covariance(generator, 6)])
    gradients = _covariance(generator, 8)
    metric = Kfac(both, gradients, shrinkage=0)
    for part in range(2):
        own = AxisWeighings.of(metric, part, 2, (2, 3), (4,)).roots
        block = gradients[4 * part : 4 * part + 4][:, 4 * part : 4 * part + 4]
        alone = AxisWeighings.of(Kfac(both[part], block, shrinkage=0), 0, None, (2, 3), (4,)).roots
        for one, other in zip(own, alone, strict=True):
            assert distance(one, other) < 1e-12


def test_importance_weighs_by_its_sums():
    kernel = np.random.default_rng(3).random((8, 3, 2))
    metric = FisherRows(kernel)
    roots = AxisWeighings.of(metric, 1, 2, (3, 2), (4,)).roots
    sums = kernel[4:].sum(axis=(0, 2))
    assert np.allclose(roots[0] ** 2, sums / sums.mean())
    sums = kernel[4:].sum(axis=(0, 1))
    assert np.allclose(roots[1] ** 2, sums / sums.mean())
    assert roots[2] is None


def test_nothing_is_weighed_in_the_frobenius_norm():
    weighing = AxisWeighings.of(Frobenius(), 0, None, (3, 4), (5,))
    assert weighing.roots == (None, None, None)
    tensor = np.random.default_rng(4).standard_normal((3, 4, 5))
    assert np.array_equal(weighing.weigh(tensor), tensor)


@given(shape=st.tuples(*[st.integers(1, 4)] * 3), rank=st.integers(1, 3), seed=st.integers(0, 99))
def test_what_is_weighed_can_be_restored(shape, rank, seed):
    generator = np.random.default_rng(seed)
    covariance = _covariance(generator, shape[0] * shape[1])
    metric = Kfac(covariance, _covariance(generator, shape[2]))
    weighing = AxisWeighings.of(metric, 0, None, shape[:2], shape[2:])
    factors = [generator.standard_normal((size, rank)) for size in shape]
    network = Network(tuple(factors), ((0, 3), (1, 3), (2, 3)), (0, 1, 2))
    restored = weighing.restore(network)
    assert distance(weighing.weigh(restored.dense()), network.dense()) < 1e-9
