"""Alternating least squares against direct solutions, in every metric."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from onnxlr.methods.tensors import Network
from onnxlr.methods.tensors.preconditioning import preconditioner
from onnxlr.methods.tensors.refining import curvature, refine
from onnxlr.methods.tensors.weighing import AxisWeighings
from onnxlr.metrics import Activation, Fisher, FisherRows, Frobenius, Kfac
from tests.onelayer import distance


def _covariance(generator, size):
    root = generator.standard_normal((size, size + 2)) * np.exp(-0.3 * np.arange(size))[:, None]
    return root @ root.T / size


def _metrics(seed, inputs, outputs):
    generator = np.random.default_rng([seed, inputs, outputs])
    importance = generator.random((inputs, outputs))
    covariance = _covariance(generator, inputs)
    return {
        "frobenius": Frobenius(),
        "activation": Activation(covariance),
        "kfac": Kfac(covariance, _covariance(generator, outputs)),
        "fisher-rows": FisherRows(importance),
        "fisher": Fisher(importance),
    }


NAMES = ("frobenius", "activation", "kfac", "fisher-rows", "fisher")


def _components(generator, shape, rank):
    factors = [generator.standard_normal((size, rank)) for size in shape]
    return Network(tuple(factors), ((0, 3), (1, 3), (2, 3)), (0, 1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_the_curvature_is_that_of_the_metric(name):
    metric = _metrics(0, 6, 5)[name]
    difference = np.random.default_rng(0).standard_normal((6, 5))
    weigh = curvature(metric, 0, None)
    weighed = difference if weigh is None else weigh(difference)
    assert np.vdot(difference, weighed) == pytest.approx(metric.squared(difference, None))


@pytest.mark.parametrize("name", NAMES)
def test_the_curvature_of_groups_adds_up_to_the_metric(name):
    generator = np.random.default_rng(1)
    kernel = generator.standard_normal((8, 3, 2))
    both = np.stack([_covariance(generator, 6), _covariance(generator, 6)])
    importance = generator.random(kernel.shape)
    metric = {
        "frobenius": Frobenius(),
        "activation": Activation(both),
        "kfac": Kfac(both, _covariance(generator, 8)),
        "fisher-rows": FisherRows(importance),
        "fisher": Fisher(importance),
    }[name]
    total = 0.0
    for part in range(2):
        difference = kernel[4 * part : 4 * part + 4].reshape(4, 6).T
        weigh = curvature(metric, part, 2)
        total += np.vdot(difference, difference if weigh is None else weigh(difference))
    assert total == pytest.approx(metric.squared(kernel, 2))


def _solved_directly(network, position, target, metric):
    """Return the least error that another core in one place can give, by dense least squares."""
    core = network.cores[position]
    columns = []
    for index in range(core.size):
        unit = np.zeros(core.size)
        unit[index] = 1
        columns.append(network.with_core(position, unit.reshape(core.shape)).dense().ravel())
    basis = np.stack(columns, axis=1)
    size = target.size
    weigh = curvature(metric, 0, None)
    quadratic = np.eye(size)
    if weigh is not None:
        units = np.eye(size).reshape(size, *target.shape)
        quadratic = np.stack([weigh(unit).ravel() for unit in units])
    root = linalg.cholesky(quadratic + 1e-12 * np.eye(size)).real
    left = root @ (basis @ np.linalg.lstsq(root @ basis, root @ target.ravel(), rcond=None)[0])
    return float(np.sum((root @ target.ravel() - left) ** 2))


@pytest.mark.parametrize("name", NAMES)
def test_one_core_reaches_its_least_squares(name, monkeypatch):
    monkeypatch.setattr("onnxlr.methods.tensors.refining._STEPS", 200)
    monkeypatch.setattr("onnxlr.methods.tensors.refining._NEAR", 1e-16)
    generator = np.random.default_rng(2)
    metric = _metrics(2, 12, 5)[name]
    target = generator.standard_normal((12, 5))
    network = _components(generator, (3, 4, 5), 2)
    roots = AxisWeighings.of(metric, 0, None, (3, 4), (5,)).roots
    # The last core comes first, the first one last: what is left then is its least squares.
    refined = refine(network, target, curvature(metric, 0, None), 1, roots)
    reached = metric.squared(target - refined.dense().reshape(12, 5), None)
    assert reached == pytest.approx(_solved_directly(refined, 0, target, metric), rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(NAMES),
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    rank=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_the_error_never_grows(name, shape, rank, seed):
    generator = np.random.default_rng(seed)
    inputs, outputs = shape[0] * shape[1], shape[2]
    metric = _metrics(seed, inputs, outputs)[name]
    target = generator.standard_normal((inputs, outputs))
    network = _components(generator, shape, rank)
    roots = AxisWeighings.of(metric, 0, None, shape[:2], shape[2:]).roots
    last = metric.squared(target - network.dense().reshape(inputs, outputs), None)
    for sweeps in (1, 3):
        refined = refine(network, target, curvature(metric, 0, None), sweeps, roots)
        error = metric.squared(target - refined.dense().reshape(inputs, outputs), None)
        assert error <= last * (1 + 1e-9) + 1e-12
        last = error


def test_the_exact_network_stays_as_it_is():
    network = _components(np.random.default_rng(3), (3, 4, 5), 2)
    target = network.dense().reshape(12, 5)
    refined = refine(network, target, None, 3)
    assert distance(refined.dense(), network.dense()) < 1e-12


def test_no_sweeps_change_nothing():
    network = _components(np.random.default_rng(4), (3, 4, 5), 2)
    assert refine(network, np.zeros((12, 5)), None, 0) is network


NETWORKS = {
    "components": (((3, 2), (4, 2), (5, 2)), ((0, 3), (1, 3), (2, 3))),
    "tucker": (((2, 3, 2), (3, 2), (4, 3), (5, 2)), ((3, 4, 5), (0, 3), (1, 4), (2, 5))),
    "ring": (((2, 3, 3), (3, 4, 2), (2, 5, 2)), ((3, 0, 4), (4, 1, 5), (5, 2, 3))),
    "core with an open axis": (((2, 4, 3), (3, 2), (5, 3)), ((3, 1, 4), (0, 3), (2, 4))),
}


@pytest.mark.parametrize("kind", sorted(NETWORKS))
@pytest.mark.parametrize("weighed", [False, True])
def test_the_preconditioner_inverts_the_normal_equations_of_a_product(kind, weighed):
    """In a metric that is a Kronecker product it is the very inverse."""
    generator = np.random.default_rng(5)
    shapes, labels = NETWORKS[kind]
    network = Network(
        tuple(generator.standard_normal(shape) for shape in shapes), labels, (0, 1, 2)
    )
    a, b, c = (_covariance(generator, size) + np.eye(size) for size in (3, 4, 5))
    roots = [linalg.cholesky(m) for m in (a, b, c)] if weighed else [None] * 3
    if weighed:  # a diagonal is a vector
        b = np.diag(np.diag(b))
        roots[1] = np.sqrt(np.diag(b))
    whole = np.kron(np.kron(a, b), c) if weighed else np.eye(60)
    for position, core in enumerate(network.cores):
        step = generator.standard_normal(core.shape)
        forward = network.with_core(position, step).dense().ravel()
        back = network.adjoint(position, (whole @ forward).reshape(12, 5))
        assert distance(preconditioner(network, position, roots)(back), step) < 1e-5


def test_cores_of_too_many_inner_indices_are_left_to_the_gradients(monkeypatch):
    monkeypatch.setattr("onnxlr.methods.tensors.preconditioning._LARGEST", 1)
    network = _components(np.random.default_rng(6), (3, 4, 5), 2)
    gradient = np.random.default_rng(7).standard_normal((3, 2))
    assert np.array_equal(preconditioner(network, 0, [None] * 3)(gradient), gradient)
