"""Element-weighted low rank against closed forms, planted matrices and scipy's L-BFGS."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from onnxlr.errors import UsageError
from onnxlr.methods.weighted import SOLVERS, fisher_variance, fit_weighted


def _error(weight, importance, left, right):
    loss = (importance * (weight - left @ right) ** 2).sum()
    return np.sqrt(loss / (importance * weight**2).sum())


def _fwsvd(weight, importance, rank):
    """Return FWSVD's factors, and its error by the singular values it leaves out."""
    d = np.sqrt(importance.sum(axis=1, keepdims=True))
    u, s, vt = np.linalg.svd(d * weight, full_matrices=False)
    return (u[:, :rank] * s[:rank]) / d, vt[:rank]


def _decaying(generator, rows, columns, decay):
    u, s, vt = np.linalg.svd(generator.standard_normal((rows, columns)), full_matrices=False)
    return (u * np.exp(-decay * np.arange(len(s)))) @ vt


def _minimize(weight, importance, left, right):
    """Return the relative error that scipy's L-BFGS comes to from these factors."""
    share = importance / (importance * weight**2).sum()
    cut = left.size

    def loss(x):
        a, b = x[:cut].reshape(left.shape), x[cut:].reshape(right.shape)
        residual = weight - a @ b
        pull = share * residual
        gradient = [(-2 * pull @ b.T).ravel(), (-2 * a.T @ pull).ravel()]
        return (pull * residual).sum(), np.concatenate(gradient)

    start = np.concatenate([left.ravel(), right.ravel()])
    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-12}
    return np.sqrt(optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun)


@settings(deadline=None, max_examples=150)
@given(
    solver=st.sampled_from(SOLVERS),
    rows=st.integers(1, 14),
    columns=st.integers(1, 14),
    rank=st.integers(1, 14),
    spread=st.floats(0, 6),
    dead=st.sampled_from([0.0, 0.3, 0.9]),
    scale=st.sampled_from([1e-200, 1e-12, 1.0, 1e150]),
    seed=st.integers(0, 2**16),
)
def test_never_worse_than_the_start_and_errors_are_what_they_say(
    solver, rows, columns, rank, spread, dead, scale, seed
):
    generator = np.random.default_rng([seed, rows, columns])
    rank = min(rank, rows, columns)
    weight = generator.standard_normal((rows, columns))
    importance = generator.lognormal(0, spread, (rows, columns))
    importance[generator.random((rows, columns)) < dead] = 0
    importance[0, 0] = 1
    left, right = (
        generator.standard_normal((rows, rank)),
        generator.standard_normal((rank, columns)),
    )
    fit = fit_weighted(weight, importance * scale, left, right, solver, iterations=25)
    assert fit.left.shape == (rows, rank)
    assert fit.right.shape == (rank, columns)
    assert np.isfinite(fit.left).all()
    assert np.isfinite(fit.right).all()
    assert 1 <= len(fit.errors) <= 26
    assert fit.errors[0] == pytest.approx(_error(weight, importance, left, right), rel=1e-9)
    found = _error(weight, importance, fit.left, fit.right)
    assert found == pytest.approx(fit.error, rel=1e-6, abs=1e-9)
    assert fit.error == min(fit.errors)
    if solver == "als":
        assert (np.diff(fit.errors) <= 1e-9 * fit.errors[0]).all()


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (12, 12)])
def test_equal_importance_gives_the_truncated_singular_value_decomposition(shape):
    generator = np.random.default_rng(0)
    weight = _decaying(generator, *shape, 0.2)
    values = np.linalg.svd(weight, compute_uv=False)
    best = np.sqrt((values[5:] ** 2).sum() / (values**2).sum())
    start = generator.standard_normal((shape[0], 5)), generator.standard_normal((5, shape[1]))
    importance = np.full(shape, 0.37)
    als = fit_weighted(weight, importance, *start, "als", iterations=500, tolerance=0)
    assert als.error == pytest.approx(best, rel=1e-9)
    em = fit_weighted(weight, importance, *start, "em", iterations=1)
    assert em.error == pytest.approx(best, rel=1e-9)
    near = start[0] / 5, start[1] / 5
    adam = fit_weighted(weight, importance, *near, "adam-sgd", iterations=2000)
    assert adam.error == pytest.approx(best, rel=1e-2)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    for solver in SOLVERS:
        fit = fit_weighted(weight, importance, u[:, :5] * s[:5], vt[:5], solver)
        assert fit.error == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("of", ["rows", "columns", "both"])
def test_importance_of_rank_one_has_a_closed_form(solver, of):
    generator = np.random.default_rng(1)
    weight = _decaying(generator, 18, 26, 0.3)
    rows = generator.lognormal(0, 1, 18) if of != "columns" else np.ones(18)
    columns = generator.lognormal(0, 1, 26) if of != "rows" else np.ones(26)
    scaled = np.sqrt(rows)[:, None] * weight * np.sqrt(columns)
    values = np.linalg.svd(scaled, compute_uv=False)
    best = np.sqrt((values[4:] ** 2).sum() / (values**2).sum())
    importance = np.outer(rows, columns)
    start = _fwsvd(weight, importance, 4)
    if of == "rows":
        assert _error(weight, importance, *start) == pytest.approx(best, rel=1e-9)
    fit = fit_weighted(weight, importance, *start, solver, iterations=1000, tolerance=0)
    assert fit.error >= best * (1 - 1e-9)
    assert fit.error == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_alternation_ends_where_an_independent_optimiser_finds_nothing_better(seed):
    generator = np.random.default_rng([7, seed])
    rows, columns, rank = 14, 10, 3
    weight = _decaying(generator, rows, columns, 0.3)
    importance = generator.lognormal(0, 1.2, (rows, columns))
    start = _fwsvd(weight, importance, rank)
    fit = fit_weighted(weight, importance, *start, iterations=5000, tolerance=1e-9)
    assert fit.error < 0.95 * fit.errors[0]
    # a local minimum: nothing is left to gain from here
    assert _minimize(weight, importance, fit.left, fit.right) == pytest.approx(fit.error, rel=1e-4)
    assert fit.error <= 1.05 * _minimize(weight, importance, *start)
    random = [
        _minimize(
            weight,
            importance,
            generator.standard_normal((rows, rank)),
            generator.standard_normal((rank, columns)),
        )
        for _ in range(8)
    ]
    assert fit.error <= 1.05 * min(random)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_every_solver_improves_on_fwsvd_under_heavy_tails(solver, spread):
    generator = np.random.default_rng(2)
    weight = _decaying(generator, 48, 96, 0.03)
    importance = generator.lognormal(0, spread, weight.shape)
    start = _fwsvd(weight, importance, 16)
    fit = fit_weighted(weight, importance, *start, solver)
    assert _error(weight, importance, fit.left, fit.right) < (
        0.85 if spread == 1 else 0.6
    ) * _error(weight, importance, *start)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_planted_matrix_is_found_under_noise_that_importance_knows(solver):
    generator = np.random.default_rng(3)
    planted = generator.standard_normal((60, 4)) @ generator.standard_normal((4, 80))
    importance = generator.lognormal(0, 3, planted.shape)
    # maximum likelihood: the variance of each entry is the inverse of its importance
    weight = planted + 0.3 * generator.standard_normal(planted.shape) / np.sqrt(importance)
    start = _fwsvd(weight, importance, 4)
    fit = fit_weighted(weight, importance, *start, solver, iterations=500)
    size = np.linalg.norm(planted)
    assert np.linalg.norm(start[0] @ start[1] - planted) > 0.5 * size
    assert np.linalg.norm(fit.approximation - planted) < 0.1 * size


@pytest.mark.parametrize("solver", SOLVERS)
def test_missing_entries_are_filled_in(solver):
    generator = np.random.default_rng(4)
    planted = generator.standard_normal((40, 2)) @ generator.standard_normal((2, 50))
    known = generator.random(planted.shape) < 0.5
    weight = np.where(known, planted, 1e3)
    start = _fwsvd(np.where(known, planted, 0), known.astype(float), 2)
    fit = fit_weighted(weight, known, *start, solver, iterations=1500, tolerance=0)
    assert np.abs(fit.approximation - planted).max() < 1e-2 * np.abs(planted).max()


@pytest.mark.parametrize("solver", SOLVERS)
def test_scales_change_nothing_but_the_scale(solver):
    generator = np.random.default_rng(5)
    weight = _decaying(generator, 12, 16, 0.1)
    importance = generator.lognormal(0, 1.5, weight.shape)
    left, right = _fwsvd(weight, importance, 4)
    fit = fit_weighted(weight, importance, left, right, solver, iterations=20)
    large = fit_weighted(
        weight * 2.0**40, importance * 2.0**-300, left * 2.0**40, right, solver, iterations=20
    )
    assert large.errors == fit.errors
    assert np.array_equal(large.left, fit.left * 2.0**40)
    assert np.array_equal(large.right, fit.right)
    # the same start written with other factors
    mixing = generator.standard_normal((4, 4))
    other = fit_weighted(
        weight, importance, left @ mixing, np.linalg.solve(mixing, right), solver, iterations=20
    )
    assert np.allclose(other.errors, fit.errors, rtol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_of_zeros_is_left(solver):
    generator = np.random.default_rng(6)
    weight = _decaying(generator, 15, 20, 0.2)
    importance = generator.lognormal(0, 1, weight.shape)
    zeros = np.zeros((15, 3)), np.zeros((3, 20))
    fits = [
        fit_weighted(weight, importance, *zeros, solver, iterations=300, seed=seed)
        for seed in (0, 0, 1)
    ]
    reached = _minimize(weight, importance, *_fwsvd(weight, importance, 3))
    for fit in fits:
        assert fit.errors[0] == 1
        assert fit.error < 1.1 * reached
    assert np.array_equal(fits[0].left, fits[1].left)
    assert (fits[0].errors != fits[2].errors) == (solver == "adam-sgd")


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_and_columns_without_importance_take_no_part_and_get_least_squares(solver):
    generator = np.random.default_rng(8)
    weight = _decaying(generator, 12, 15, 0.1)
    importance = generator.lognormal(0, 1.5, weight.shape)
    importance[[2, 7]] = 0
    importance[:, [0, 9, 14]] = 0
    rows, columns = importance.any(axis=1), importance.any(axis=0)
    left, right = _fwsvd(weight, importance + 1e-3, 3)
    fit = fit_weighted(weight, importance, left, right, solver)
    wild = weight.copy()
    wild[~rows], wild[:, ~columns] = 1e3, -1e3
    far = np.where(rows[:, None], left, 1e12), np.where(columns, right, -1e12)
    other = fit_weighted(wild, importance, *far, solver)
    alive = np.ix_(rows, columns)
    assert np.allclose(other.approximation[alive], fit.approximation[alive], rtol=1e-3, atol=1e-5)
    a, b = fit.left, fit.right
    expected, *_ = np.linalg.lstsq(b[:, columns].T, weight[:, columns][~rows].T, rcond=None)
    assert np.allclose(a[~rows], expected.T)
    expected, *_ = np.linalg.lstsq(a, weight[:, ~columns], rcond=None)
    assert np.allclose(b[:, ~columns], expected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (5, 5), (4, 9)])
def test_full_rank_is_exact(solver, shape):
    generator = np.random.default_rng(9)
    weight = generator.standard_normal(shape)
    importance = generator.lognormal(0, 1, shape)
    rank = min(shape)
    fit = fit_weighted(weight, importance, *_fwsvd(weight, importance, rank), solver)
    assert fit.error < 1e-12
    assert np.allclose(fit.approximation, weight)
    if solver != "adam-sgd":
        start = generator.standard_normal((shape[0], rank)), np.ones((rank, shape[1]))
        fit = fit_weighted(weight, importance, *start, solver, iterations=500, tolerance=0)
        assert np.allclose(fit.approximation, weight, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_weight_of_zeros(solver):
    importance = np.random.default_rng(10).lognormal(0, 1, (6, 8))
    zero = np.zeros((6, 8))
    fit = fit_weighted(zero, importance, np.zeros((6, 2)), np.zeros((2, 8)), solver)
    assert fit.errors == (0.0,)
    assert not fit.approximation.any()
    fit = fit_weighted(zero, importance, np.ones((6, 2)), np.ones((2, 8)), solver)
    assert fit.errors[0] == pytest.approx(
        np.sqrt(4 * importance.sum() / 2 ** np.frexp(importance.max())[1])
    )
    assert np.isfinite(fit.approximation).all()
    assert fit.error < 0.1 * fit.errors[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"importance": -np.ones((4, 5))}, "negative"),
        ({"importance": np.full((4, 5), np.nan)}, "finite"),
        ({"importance": np.full((4, 5), np.inf)}, "finite"),
        ({"importance": np.zeros((4, 5))}, "zero everywhere"),
        ({"importance": np.ones((5, 4))}, r"importance has shape \(5, 4\)"),
        ({"weight": np.full((4, 5), np.nan)}, "weight has NaN"),
        ({"weight": np.ones(5), "importance": np.ones(5)}, r"weight has shape \(5,\)"),
        ({"weight": np.ones((0, 5)), "importance": np.ones((0, 5))}, "weight has shape"),
        ({"left": np.ones((4, 3))}, "factors have shapes"),
        ({"left": np.ones((4, 5)), "right": np.ones((5, 5))}, "rank of 1 to 4"),
        ({"left": np.ones((4, 0)), "right": np.ones((0, 5))}, "rank of 1 to 4"),
        ({"right": np.full((2, 5), np.inf)}, "right has NaN or infinite"),
        ({"solver": "newton"}, "als, em, adam-sgd"),
    ],
)
def test_what_cannot_be_fitted_is_said(change, message):
    arguments = {
        "weight": np.ones((4, 5)),
        "importance": np.ones((4, 5)),
        "left": np.ones((4, 2)),
        "right": np.ones((2, 5)),
    }
    fit_weighted(**arguments)
    with pytest.raises(UsageError, match=message):
        fit_weighted(**(arguments | change))


def test_fisher_variance_is_that_of_known_distributions_at_any_scale():
    generator = np.random.default_rng(11)
    assert fisher_variance(np.full((3, 4), 2.5)) == 0
    assert fisher_variance(np.zeros((3, 4))) == 0
    for spread in (0.3, 0.7):
        values = generator.lognormal(0, spread, (1000, 1000))
        assert fisher_variance(values) == pytest.approx(np.exp(spread**2) - 1, rel=0.02)
        for scale in (1e-300, 1e-20, 1e300):
            assert fisher_variance(values * scale) == pytest.approx(fisher_variance(values))
    # a share p of equal entries among zeros: 1/p − 1
    assert fisher_variance(np.arange(20) < 4) == pytest.approx(4)


@pytest.mark.parametrize("importance", [[[-1.0]], [[np.nan]], [[np.inf]], []])
def test_fisher_variance_of_no_importance(importance):
    with pytest.raises(UsageError, match="importance must be"):
        fisher_variance(np.array(importance))
