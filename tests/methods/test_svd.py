"""Singular value decomposition against numpy's and scipy's, over shapes, ranks and budgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize

import onnxlr
from onnxlr.methods import SvdOptions
from onnxlr.methods.spectrum import Spectrum, energies
from onnxlr.metrics import Weighing
from onnxlr.numbers import encode
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
    spectrum = Spectrum.of(weight, [Weighing()])
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
@given(inputs=st.integers(4, 60), outputs=st.integers(4, 60), ratio=st.floats(0.3, 1.0))
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
        ({"rank": 2, "importance": np.ones((3, 6))}, r"shape \(3, 6\), the weight \(8, 6\)"),
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


# -- metrics ---------------------------------------------------------------------------------------


def _correlated(seed, rows, size):
    generator = np.random.default_rng([seed, rows, size])
    return generator.standard_normal((rows, size)) @ generator.standard_normal((size, size)) + 1


def _second(x):
    return x.T @ x / len(x)


def _shrunk(covariance):
    """Return a covariance moved 2 % towards its mean diagonal."""
    size = len(covariance)
    return 0.98 * covariance + 0.02 * np.trace(covariance) / size * np.eye(size)


def _root(covariance):
    """Return the symmetric square root."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values)) @ vectors.T


@settings(deadline=None, max_examples=60)
@given(inputs=st.integers(1, 20), outputs=st.integers(1, 20), rank=st.integers(1, 20), seed=seeds)
def test_outputs_are_those_of_the_closed_form_by_the_symmetric_root(inputs, outputs, rank, seed):
    """`T⁻ᵀ [Tᵀ W]_r` for another root T of the covariance, on data that have that covariance."""
    weight, x = _weight(seed, inputs, outputs), _correlated(seed, 80, inputs)
    # rows that make up for the shrinking: together with them the covariance is the shrunk one
    rest = np.sqrt(0.02 * np.trace(_second(x)) / inputs) * np.eye(inputs)
    data = np.concatenate([np.sqrt(0.98 / len(x)) * x, rest])
    found = onnxlr.decompose(weight, rank=rank, covariance=_second(x)).reconstruct()
    root = _root(_shrunk(_second(x)))
    best = np.linalg.solve(root, truncated(root @ weight, rank))
    scale = np.linalg.norm(data @ weight)
    assert np.linalg.norm(data @ (found - best)) <= 1e-6 * scale
    lost = np.linalg.svd(data @ weight, compute_uv=False)[rank:]
    error = np.linalg.norm(data @ (found - weight))
    assert abs(error - np.linalg.norm(lost)) <= 1e-6 * scale


@settings(deadline=None, max_examples=60)
@given(inputs=st.integers(1, 15), outputs=st.integers(1, 15), rank=st.integers(1, 15), seed=seeds)
def test_kfac_is_the_best_approximation_in_the_norm_of_both_sides(inputs, outputs, rank, seed):
    """Eckart and Young for `C^½ W G^½`."""
    weight = _weight(seed, inputs, outputs)
    c, g = _second(_correlated(seed, 60, inputs)), _second(_correlated(seed + 1, 60, outputs))
    chain = onnxlr.decompose(weight, rank=rank, covariance=c, output_covariance=g)
    left, right = _root(_shrunk(c)), _root(_shrunk(g))
    best = truncated(left @ weight @ right, rank)
    assert distance(left @ chain.reconstruct() @ right, best) < 1e-6


def test_kfac_is_not_bettered_by_descent():
    """From its factors and from random ones, scipy finds nothing better."""
    generator = np.random.default_rng(0)
    weight, rank = generator.standard_normal((7, 5)), 2
    c, g = (_shrunk(_second(_correlated(seed, 40, size))) for seed, size in ((0, 7), (1, 5)))
    chain = onnxlr.decompose(weight, rank=rank, covariance=c, output_covariance=g, metric="kfac")
    c, g = _shrunk(c), _shrunk(g)

    def loss(flat):
        left, right = flat[: 7 * rank].reshape(7, rank), flat[7 * rank :].reshape(rank, 5)
        off = left @ right - weight
        slope = c @ off @ g
        return np.sum(slope * off), 2 * np.append(slope @ right.T, left.T @ slope)

    own = np.concatenate([stage.dense().ravel() for stage in chain.stages])
    value, slope = loss(own)
    assert np.abs(slope).max() < 1e-9 * value
    for _ in range(5):
        found = optimize.minimize(loss, generator.standard_normal(own.size), jac=True, tol=1e-12)
        assert value <= found.fun * (1 + 1e-6)


@pytest.mark.parametrize("solver", ["als", "em", "adam-sgd", None])
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (2, 9, 7)])
def test_entry_by_entry_is_no_worse_than_by_rows(solver, shape):
    generator = np.random.default_rng(0)
    weight, importance = generator.standard_normal(shape), generator.lognormal(0, 1.5, shape)

    def lost(**arguments):
        chain = onnxlr.decompose(weight, rank=3, importance=importance, **arguments)
        return np.sum(importance * (chain.reconstruct() - weight) ** 2)

    by_rows = lost(metric="fisher-rows")
    assert by_rows == lost()  # the default for importance
    by_entries = lost(metric="fisher", solver=solver)
    assert by_entries <= by_rows * (1 + 1e-12)
    assert solver == "em" or by_entries < 0.9 * by_rows


def test_a_covariance_is_shared_by_a_stack():
    stack, x = _weight(0, 3, 8, 6), _correlated(0, 50, 8)
    found = onnxlr.decompose(stack, rank=3, covariance=_second(x)).reconstruct()
    for one, matrix in zip(found, stack, strict=True):
        alone = onnxlr.decompose(matrix, rank=3, covariance=_second(x)).reconstruct()
        assert distance(one, alone) < 1e-9


def test_inputs_that_were_always_zero_or_equal_are_no_trouble():
    x = np.zeros((20, 6))
    x[:, :2] = 1.0
    weight = _weight(0, 6, 5)
    chain = onnxlr.decompose(weight, rank=1, covariance=_second(x))
    assert np.isfinite(chain.reconstruct()).all()
    whole = np.linalg.norm(x @ weight)
    assert np.linalg.norm(x @ (chain.reconstruct() - weight)) < 0.05 * whole


# -- factors of few bits ---------------------------------------------------------------------------


def _stored(rows, columns, kind, group, scale):
    """Return the bytes of a matrix of codes, scales, and zero points."""
    bits = {"int8": 8, "int4": 4, "int2": 2}[kind]
    count = columns * -(-rows // (group or rows))
    zeros = 0 if kind == "int8" else -(-count * bits // 8)
    return -(-rows * columns * bits // 8) + count * scale + zeros


@settings(deadline=None, max_examples=80)
@given(
    inputs=st.integers(4, 150),
    outputs=st.integers(4, 150),
    bits=st.floats(0.3, 6),
    kind=st.sampled_from(["int8", "int4", "int2"]),
    group=st.sampled_from([0, 32, 64, 128]),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_a_budget_in_bits_holds_for_what_is_stored(inputs, outputs, bits, kind, group, dtype):
    weight = _weight(2, inputs, outputs, dtype=dtype)

    def size(rank):
        scale = np.dtype(dtype).itemsize
        return _stored(inputs, rank, kind, group, scale) + _stored(
            rank, outputs, kind, group, scale
        )

    available = bits * weight.size / 8
    arguments = {"bits": bits, "format": kind, "group_size": group}
    if size(1) > available:
        assume(size(1) > available + 4)
        with pytest.raises(onnxlr.UsageError, match="less than rank 1"):
            onnxlr.decompose(weight, **arguments)
        return
    chain = onnxlr.decompose(weight, **arguments)
    rank = chain.stages[0].shape[-1]
    assert chain.cost.bytes == size(rank) <= available
    assert rank == min(inputs, outputs) or size(rank + 1) > available


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_second_factor_makes_up_for_the_first_ones_rounding(kind, rounding):
    weight, x = _weight(0, 48, 40, decay=0.1), _correlated(0, 400, 48)
    arguments = {"rank": 12, "format": kind, "rounding": rounding}
    found = onnxlr.decompose(weight, covariance=_second(x), **arguments)
    exact = onnxlr.decompose(weight, covariance=_second(x), rank=12)
    first, second = (stage.weight for stage in found.stages)
    data = np.concatenate([np.sqrt(0.98 / len(x)) * x, _rest(x)])
    behind = data @ first.decode()
    solved, *_ = np.linalg.lstsq(behind, data @ weight, rcond=None)
    if rounding == "nearest":
        again = encode(solved, second.format, weight.dtype)
        assert np.mean(again.codes != second.codes) < 0.01
    left, right = (stage.weight.decode() for stage in exact.stages)
    plainly = [encode(factor, second.format, weight.dtype).decode() for factor in (left, right)]
    error = np.linalg.norm(data @ (found.reconstruct() - weight))
    assert error < np.linalg.norm(data @ (plainly[0] @ plainly[1] - weight))


def _rest(x):
    size = x.shape[1]
    return np.sqrt(0.02 * np.trace(_second(x)) / size) * np.eye(size)


@settings(deadline=None, max_examples=12)
@given(
    inputs=st.sampled_from([256, 300, 513]),
    outputs=st.sampled_from([256, 270, 600]),
    most=st.integers(1, 140),
    seed=seeds,
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_a_few_singular_values_are_those_of_all(inputs, outputs, most, seed, dtype):
    weight = _weight(seed, inputs, outputs, decay=0.02, dtype=dtype)
    left, values, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    spectrum = Spectrum.of(weight, [Weighing()], most)
    few = min(inputs, outputs) // 2 >= most
    assert spectrum.values.shape == ((most,) if few else values.shape)
    assert spectrum.full_rank == min(inputs, outputs)
    assert np.allclose(spectrum.values[:most], values[:most], atol=1e-9 * values[0])
    factors = spectrum.factors(most)
    exact = left[:, :most] * values[:most] @ right[:most]
    assert distance(factors[0] @ factors[1], exact) < 1e-9
    total = np.sum(values**2)
    energies = np.cumsum(values**2) / total
    assert np.allclose(spectrum.energies()[:most], energies[:most], atol=1e-12)
    errors = [np.sqrt(np.sum(values[r:] ** 2) / total) for r in range(1, most + 1)]
    assert np.allclose(spectrum.errors()[:most], errors, atol=1e-7)


def test_a_few_singular_values_of_a_stack_in_a_metric():
    weight = _weight(3, 2, 260, 256)
    scales = np.linspace(0.5, 2, 260)
    weighings = [Weighing.of(scales**2)] * 2
    spectrum = Spectrum.of(weight, weighings, 7)
    assert spectrum.values.shape == (2, 7)
    approximations = spectrum.factors(7)[0] @ spectrum.factors(7)[1]
    for matrix, found in zip(weight, approximations, strict=True):
        exact = truncated(scales[:, None] * matrix, 7) / scales[:, None]
        assert distance(found, exact) < 1e-9
    squares = np.sum((scales[:, None] * weight) ** 2)
    error = np.sqrt(np.sum((scales[:, None] * (weight - approximations)) ** 2) / squares)
    assert spectrum.errors()[-1] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("kind", ["zeros", "identity", "low rank"])
def test_a_few_singular_values_of_degenerate_weights(kind):
    """Eigenvalues that are all alike, or all 0, are the hard case of inverse iteration."""
    size, most = 300, 100
    weight = {
        "zeros": np.zeros((size, size)),
        "identity": np.eye(size),
        "low rank": truncated(_weight(1, size, size), 10),
    }[kind]
    spectrum = Spectrum.of(weight, [Weighing()], most)
    left, right = spectrum.factors(most)
    assert np.allclose(spectrum.values, np.linalg.svd(weight, compute_uv=False)[:most], atol=1e-6)
    if kind == "identity":
        projection = left @ right
        assert np.allclose(projection, projection.T)
        assert np.allclose(projection @ projection, projection)
        assert np.linalg.matrix_rank(projection) == most
    else:
        assert np.allclose(left @ right, weight, atol=1e-7)


@settings(deadline=None, max_examples=60)
@given(inputs=sizes, outputs=sizes, seed=seeds, batch=st.lists(st.integers(1, 3), max_size=1))
def test_energies_alone_are_those_of_the_spectrum(inputs, outputs, seed, batch):
    weight = _weight(seed, *batch, inputs, outputs)
    squares = np.linalg.svd(weight, compute_uv=False) ** 2
    squares = squares.reshape(-1, squares.shape[-1]).sum(axis=0)
    assert np.allclose(energies(weight), np.cumsum(squares) / squares.sum(), atol=1e-9)
    assert np.array_equal(energies(np.zeros((3, 2))), np.ones(2))
