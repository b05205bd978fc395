"""Sums of scaled −1, 0 and 1 under training."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training.placement import Placement  # noqa: E402
from onnxlr.training.ternary.codes import TernaryCodes  # noqa: E402

Array = np.ndarray[Any, Any]


def codes(
    stack: Array, terms: int = 1, group: int | None = None, trained: bool = False, seed: int = 0
) -> TernaryCodes:
    """Return a stack with scales of 1, ½ … and trits that are drawn."""
    parts, inputs, outputs = stack.shape
    rng = np.random.default_rng(seed)
    blocks = -(-inputs // (group or inputs))
    scales = np.ones((parts, terms, blocks, outputs)) * 0.5 ** np.arange(terms)[:, None, None]
    scales *= rng.uniform(0.7, 1.3, scales.shape)
    trits = rng.integers(-1, 2, (terms, *stack.shape)).astype(np.int8)
    placement = Placement(None, stack.shape, np.arange(stack.size), stack.shape)
    return TernaryCodes(stack, trits, scales, group, placement, trained)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numpy_of(tensor: Any) -> Array:
    return np.asarray(tensor.detach().numpy())


def nearest(value: float, scales: Array) -> float:
    """Return the nearest of all values that scales make."""
    every = [float(np.dot(trits, scales)) for trits in product((-1, 0, 1), repeat=len(scales))]
    return min(every, key=lambda one: abs(one - value))


def test_it_begins_as_given() -> None:
    stack = normal(2, 6, 3)
    module = codes(stack, terms=2, group=4)
    scales, trits = numpy_of(module.scales), numpy_of(module.trits)
    found = numpy_of(module())
    for part, row, column in product(range(2), range(6), range(3)):
        expected = np.dot(scales[:, part, row // 4, column], trits[:, part, row, column])
        assert found[part, row, column] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    terms=st.integers(1, 3),
    group=st.sampled_from([None, 4]),
    inputs=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_trits_of_trained_scales_are_the_nearest(
    terms: int, group: int | None, inputs: int, seed: int
) -> None:
    module = codes(normal(1, inputs, 2, seed=seed), terms, group, trained=True, seed=seed)
    module.settle()
    scales, found = numpy_of(module.scales), numpy_of(module())
    for row, column in product(range(inputs), range(2)):
        own = scales[:, 0, row // (group or inputs), column].astype(np.float64)
        value = module.weight[0, row, column].item()
        expected = nearest(value, own)
        assert abs(found[0, row, column] - value) == pytest.approx(abs(expected - value), abs=1e-5)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_solved_scales_are_those_of_least_squares(terms: int) -> None:
    module = codes(normal(1, 40, 3), terms, group=16)
    module.settle()
    trits, scales = module.numbers()
    for block, column in product(range(3), range(3)):
        rows = slice(16 * block, 16 * block + 16)
        matrix = trits[:, 0, rows, column].T.astype(np.float64)
        wanted = numpy_of(module.weight)[0, rows, column]
        expected, *_ = np.linalg.lstsq(matrix, wanted, rcond=None)
        np.testing.assert_allclose(scales[0, :, block, column], expected, atol=1e-4)
    assert (scales >= 0).all()


def test_scales_that_would_be_negative_turn_their_trits() -> None:
    turned = 0
    for seed in range(40):
        module = codes(normal(1, 4, 8, seed=seed), terms=3, trained=True, seed=seed)
        module.settle()
        before = numpy_of(module.trits).copy()
        module.trained = False
        module.settle()
        trits, scales = module.numbers()
        turned += int((trits != before).any())
        wanted = numpy_of(module.weight)[0].astype(np.float64)
        value = np.einsum("tin,tn->in", trits[:, 0].astype(np.float64), scales[0, :, 0])
        for column in range(8):
            matrix = before[:, 0, :, column].T.astype(np.float64)
            best, *_ = np.linalg.lstsq(matrix, wanted[:, column], rcond=None)
            least = np.linalg.norm(matrix @ best - wanted[:, column])
            found = np.linalg.norm(value[:, column] - wanted[:, column])
            assert found == pytest.approx(least, abs=1e-3)
    assert turned


def test_settling_again_and_again_comes_nearer() -> None:
    module = codes(normal(1, 64, 4), terms=2)
    errors = []
    for _ in range(12):
        module.settle()
        errors.append((module.weight - module()).square().sum().item())
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]


def test_the_threshold_of_one_term_is_half_the_scale() -> None:
    stack = np.array([[[0.49], [-0.51], [0.51], [-3.0], [0.0]]], np.float32)
    placement = Placement(None, (1, 5, 1), np.arange(5), (1, 5, 1))
    trits, scales = np.zeros((1, 1, 5, 1), np.int8), np.ones((1, 1, 1, 1))
    module = TernaryCodes(stack, trits, scales, None, placement, trained=True)
    module.settle()
    assert numpy_of(module.trits).reshape(-1).tolist() == [0, -1, 1, -1, 0]


class TestGradients:
    def test_straight_through(self) -> None:
        module = codes(normal(1, 6, 3), terms=2)
        upstream = torch.from_numpy(normal(1, 6, 3, seed=4))
        (module() * upstream).sum().backward()
        np.testing.assert_allclose(numpy_of(module.weight.grad), numpy_of(upstream), rtol=1e-6)
        assert module.scales.grad is None

    def test_of_trained_scales(self) -> None:
        module = codes(normal(1, 6, 3), terms=2, group=4, trained=True)
        upstream = normal(1, 6, 3, seed=4)
        (module() * torch.from_numpy(upstream)).sum().backward()
        np.testing.assert_allclose(numpy_of(module.weight.grad), upstream, rtol=1e-6)
        trits = numpy_of(module.trits)
        by_hand = np.stack(
            [(trits * upstream)[:, :, :4].sum(axis=2), (trits * upstream)[:, :, 4:].sum(axis=2)],
            axis=2,
        )
        np.testing.assert_allclose(numpy_of(module.scales.grad), by_hand, rtol=1e-5, atol=1e-6)


def test_a_negative_scale_is_a_positive_one_of_opposite_trits() -> None:
    module = codes(normal(1, 6, 3), terms=2, trained=True)
    with torch.no_grad():
        module.scales[1] *= -1
    trits, scales = module.numbers()
    value = np.einsum("tpin,ptbn->pin", trits.astype(np.float64), scales)
    np.testing.assert_allclose(value, numpy_of(module()), atol=1e-6)
    assert (scales >= 0).all()


def test_a_state_is_all_that_there_is() -> None:
    module, other = codes(normal(1, 9, 4), terms=2), codes(normal(1, 9, 4, seed=1), terms=2, seed=5)
    module.settle()
    other.restore({name: value.clone() for name, value in module.state().items()})
    np.testing.assert_array_equal(numpy_of(other()), numpy_of(module()))
    for one in (module, other):
        with torch.no_grad():
            one.weight += torch.from_numpy(normal(1, 9, 4, seed=3))
        one.settle()
    np.testing.assert_array_equal(numpy_of(other()), numpy_of(module()))
