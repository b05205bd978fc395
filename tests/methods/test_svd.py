"""Singular value decomposition against numpy's and scipy's, over shapes, ranks and budgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import linalg

import onnxlr
from onnxlr.methods import SvdOptions
from onnxlr.methods.svd import Spectrum
from onnxlr.metrics import Frobenius
from tests.onelayer import distance, truncated

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**16)


def _weight(seed, *shape, decay=0.0, dtype="float64"):
    """Return a random matrix whose singular values fall off exponentially."""
    generator = np.random.default_rng([seed, *shape])
    u, s, vt = np.linalg.svd(generator.standard_normal(shape), full_matrices=False)
    return ((u * (s * np.exp(-decay * np.arange(s.shape[-1])))[..., None, :]) @ vt).astype(dtype)


@settings(deadline=None, max_examples=100)
@given(
    inputs=sizes,
    outputs=sizes,
    rank=sizes,
    seed=seeds,
    batch=st.lists(st.integers(1, 3), max_size=2),
)
def test_every_rank_is_the_best_approximation(inputs, outputs, rank, seed, batch):
    weight = _weight(seed, *batch, inputs, outputs)
    chain = onnxlr.decompose(weight, rank=rank)
    used = min(rank, inputs, outputs)
    assert [s.shape for s in chain.stages] == [(*batch, inputs, used), (*batch, used, outputs)]
    assert distance(chain.reconstruct(), truncated(weight, rank)) < 1e-9
    assert np.array_equal(chain.approximation, chain.reconstruct())
    x = np.random.default_rng(seed).standard_normal((*batch, 3, inputs))
    assert distance(chain.apply(x), x @ truncated(weight, rank)) < 1e-9


@settings(deadline=None, max_examples=100)
@given(inputs=sizes, outputs=sizes, seed=seeds, decay=st.floats(0, 0.5))
def test_spectrum_energies_and_errors_agree_with_numpy(inputs, outputs, seed, decay):
    weight = _weight(seed, inputs, outputs, decay=decay)
    values = np.linalg.svd(weight, compute_uv=False)
    spectrum = Spectrum.of(weight, Frobenius())
    total = np.sum(values**2)
    assert np.allclose(spectrum.values, values, atol=1e-7 * values[0])
    assert np.allclose(spectrum.energies(), np.cumsum(values**2) / total, atol=1e-9)
    errors = [np.sqrt(np.sum(values[r:] ** 2) / total) for r in range(1, len(values) + 1)]
    assert np.allclose(spectrum.errors(), errors, atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(inputs=sizes, outputs=sizes, seed=seeds, energy=st.floats(0.05, 1), limit=st.floats(0, 0.9))
def test_energy_and_error_budgets_take_the_least_rank(inputs, outputs, seed, energy, limit):
    weight = _weight(seed, inputs, outputs, decay=0.1)
    squares = np.linalg.svd(weight, compute_uv=False) ** 2
    share = np.cumsum(squares) / squares.sum()
    assume(np.abs(share - energy).min() > 1e-9)
    assume(np.abs(1 - share - limit**2).min() > 1e-9)
    by_energy = onnxlr.decompose(weight, energy=energy).stages[0].shape[-1]
    assert by_energy == np.argmax(share >= energy) + 1
    by_error = onnxlr.decompose(weight, max_error=limit).stages[0].shape[-1]
    assert by_error == np.argmax(np.sqrt(np.maximum(1 - share, 0)) <= limit) + 1


@settings(deadline=None, max_examples=60)
@given(inputs=st.integers(4, 60), outputs=st.integers(4, 60), ratio=st.floats(0.3, 1.2))
def test_ratio_and_bits_are_upper_bounds_that_are_used_up(inputs, outputs, ratio):
    weight = _weight(1, inputs, outputs, dtype="float32")
    assume(ratio * inputs * outputs >= inputs + outputs)
    chain = onnxlr.decompose(weight, ratio=ratio)
    rank = chain.stages[0].shape[-1]
    assert chain.cost.parameters <= ratio * weight.size + 1e-6
    assert rank == min(inputs, outputs) or (rank + 1) * (inputs + outputs) > ratio * weight.size
    bits = 32 * ratio
    assert 8 * onnxlr.decompose(weight, bits=bits).cost.bytes <= bits * weight.size + 1e-6
    assume(bits * weight.size / 8 >= inputs + outputs + 4 * (outputs + 1))
    packed = onnxlr.decompose(weight, bits=bits, format="int8")
    assert 8 * packed.cost.bytes <= bits * weight.size + 1e-6
    assert {s.weight.codes.dtype.name for s in packed.stages} == {"int8"}


@settings(deadline=None, max_examples=40)
@given(
    inputs=st.integers(8, 40), outputs=st.integers(8, 40), seed=seeds, limit=st.floats(0.02, 0.4)
)
def test_an_error_budget_counts_the_rounding_of_int8_factors(inputs, outputs, seed, limit):
    weight = _weight(seed, inputs, outputs, decay=0.05, dtype="float32")
    chain = onnxlr.decompose(weight, max_error=limit, format="int8")
    assert distance(chain.reconstruct(), weight.astype("float64")) <= limit
    assert (
        chain.stages[0].shape[-1] >= onnxlr.decompose(weight, max_error=limit).stages[0].shape[-1]
    )


def test_an_error_below_the_rounding_is_refused():
    with pytest.raises(onnxlr.UsageError, match="rounding to int8 alone"):
        onnxlr.decompose(_weight(0, 30, 30), max_error=1e-4, format="int8")


@settings(deadline=None, max_examples=60)
@given(inputs=st.integers(2, 20), outputs=st.integers(2, 20), rank=st.integers(1, 20), seed=seeds)
def test_covariance_gives_the_least_output_error(inputs, outputs, rank, seed):
    """Compare with the closed form by Cholesky whitening, and with plain truncation."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((inputs, outputs))
    x = generator.standard_normal((200, inputs)) @ generator.standard_normal((inputs, inputs))
    covariance = x.T @ x / len(x)
    found = onnxlr.decompose(weight, rank=rank, covariance=covariance).reconstruct()
    scale = np.trace(covariance) / inputs
    shrunk = 0.98 * covariance + 0.02 * scale * np.eye(inputs)
    root = linalg.cholesky(shrunk)  # upper: rootᵀ root = C
    best = linalg.solve_triangular(root, truncated(root @ weight, rank))
    assert np.linalg.norm(root @ (found - best)) <= 1e-6 * np.linalg.norm(root @ weight)
    plain = truncated(weight, rank)
    error, other = (np.linalg.norm(root @ (w - weight)) for w in (found, plain))
    assert error <= other * (1 + 1e-9) + 1e-9


def test_importance_weights_rows_as_fwsvd_says():
    generator = np.random.default_rng(0)
    weight, importance = generator.standard_normal((12, 9)), generator.random((12, 9)) ** 4
    found = onnxlr.decompose(weight, rank=3, importance=importance).reconstruct()
    diagonal = np.sqrt(importance.sum(axis=1))[:, None]
    assert distance(found, truncated(weight * diagonal, 3) / diagonal) < 1e-9


@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((5, 4)),
        np.outer(np.arange(6.0), np.ones(4)),
        np.ones((1, 7)),
        np.ones((7, 1)),
        np.diag([1e-30, 1.0, 1e30]),
    ],
    ids=["zero", "rank one", "one row", "one column", "extreme"],
)
def test_degenerate_weights_are_reconstructed(weight):
    chain = onnxlr.decompose(weight, rank=min(weight.shape))
    assert np.isfinite(chain.reconstruct()).all()
    assert distance(chain.reconstruct(), weight) < 1e-12
    least = onnxlr.decompose(weight, max_error=0.01)
    assert distance(least.reconstruct(), weight) <= 0.01


def test_factors_are_deterministic_with_fixed_signs():
    weight = _weight(3, 40, 30, dtype="float32")
    first, second = (onnxlr.decompose(weight, rank=7) for _ in range(2))
    for one, two in zip(first.stages, second.stages, strict=True):
        assert one.weight.codes.tobytes() == two.weight.codes.tobytes()
    left = first.stages[0].weight.codes
    assert (left[np.abs(left).argmax(axis=0), np.arange(7)] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "ratio": 0.5}, "rank and ratio are both given"),
        ({"rank": 0}, "at least 1"),
        ({"ratio": -1.0}, "above 0"),
        ({"ratio": float("nan")}, "above 0"),
        ({"energy": 1.5}, "at most 1"),
        ({"max_error": 1.0}, "below 1"),
        ({"ratio": 0.01}, "less than rank 1"),
        ({"ranks": 2}, "has no option 'ranks'"),
        ({"rank": 2, "format": "int5"}, "format 'int5' is unknown"),
        ({"rank": 2, "covariance": np.eye(3)}, "for 3 inputs, the weight has 8"),
        ({"rank": 2, "covariance": -np.eye(8)}, "no positive diagonal"),
        ({"rank": 2, "covariance": np.full((8, 8), np.nan)}, "NaN"),
        ({"rank": 2, "covariance": np.ones((8, 7))}, "square"),
        ({"rank": 2, "importance": np.ones((3, 6))}, "for 3 inputs, the weight has 8"),
        ({"rank": 2, "importance": -np.ones((8, 6))}, "none negative"),
        ({"rank": 2, "importance": np.zeros((8, 6))}, "zero everywhere"),
        ({"rank": 2, "importance": np.ones((8, 6)), "covariance": np.eye(8)}, "either"),
        ({"method": "svdd"}, "did you mean 'svd'"),
        ({"method": "keep"}, "nothing to decompose"),
    ],
)
def test_arguments_that_cannot_be_followed_are_refused(arguments, message):
    with pytest.raises(onnxlr.UsageError, match=message):
        onnxlr.decompose(_weight(0, 8, 6), **arguments)


@pytest.mark.parametrize("weight", [np.ones(3), np.ones((0, 3)), np.array([[np.nan, 1.0]])])
def test_weights_that_cannot_be_factorized_are_refused(weight):
    with pytest.raises(onnxlr.UsageError, match="weight has"):
        onnxlr.decompose(weight, rank=1)


def test_budget_without_a_field_is_the_default_error():
    assert SvdOptions().limits_error
    assert SvdOptions().error_limit == 0.05
    assert str(SvdOptions()) == "max_error 0.05"
