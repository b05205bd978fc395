"""Ternary SVD of arrays: budgets, forms, edges, and what inputs are known to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import onnxlr
from onnxlr.errors import ModelError, UsageError
from onnxlr.methods import Setting, TernarySvd, TernarySvdOptions, find_method
from onnxlr.numbers import Format
from onnxlr.planning import Request
from onnxlr.stages import Convolution, Linear, Scale
from tests.classifier import classifier

Array = np.ndarray[Any, Any]


def _weight(seed, *shape, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _distance(found, wanted):
    wanted = wanted.astype(np.float64)
    return float(np.linalg.norm((found - wanted).ravel()) / np.linalg.norm(wanted.ravel()))


def _decompose(weight, **arguments):
    return onnxlr.decompose(weight, "ternary_svd", **arguments)


def _by_hand(chain):
    """Return the product of a chain of matrices from trits and scales."""
    product = None
    for stage in chain.stages:
        if isinstance(stage, Scale):
            matrix = np.diag(stage.factors.astype(np.float64))
        else:
            kept = stage.weight
            assert kept.format.is_ternary
            assert set(np.unique(kept.trits)) <= {-1, 0, 1}
            assert kept.trits.shape[0] == 1
            matrix = kept.trits[0] * kept.scales[..., 0, :, :].astype(np.float64)
        product = matrix if product is None else product @ matrix
    return product


@settings(deadline=None, max_examples=30)
@given(
    shape=st.sampled_from(
        [(1, 1), (1, 40), (40, 1), (3, 120), (120, 3), (17, 23), (2, 9, 12), (2, 3, 7, 8)]
    ),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    budget=st.sampled_from(
        [{"ratio": 3.0}, {"rank": 5}, {"rank": 60}, {"max_error": 0.2}, {"energy": 0.97}, {}]
    ),
    fit=st.sampled_from([None, "published"]),
)
def test_two_ternary_stages_that_keep_the_budget(shape, dtype, budget, fit):
    weight = _weight(0, *shape, dtype=dtype)
    rows, columns = shape[-2:]
    most = max(int(16 * rows * columns / (rows + columns)), 1)
    if fit is not None and "max_error" not in budget and "energy" not in budget and not budget:
        budget = {"max_error": 0.3}
    if 3 * rows * columns < rows + columns and "ratio" in budget:
        budget = {"rank": 5}
    chain = _decompose(weight, fit=fit, **budget)
    first, second = chain.stages
    rank = first.shape[-1]
    assert first.shape == (*shape[:-1], rank)
    assert second.shape == (*shape[:-2], rank, columns)
    assert np.allclose(chain.reconstruct(), _by_hand(chain), rtol=1e-9, atol=1e-12)
    assert first.weight.scales.dtype == weight.dtype
    assert (first.weight.scales > 0).all()
    error = _distance(chain.reconstruct(), weight)
    if "ratio" in budget:
        assert rank <= 3 * rows * columns / (rows + columns)
    elif "rank" in budget:
        assert rank <= min(budget["rank"], most)
    else:
        limit = budget.get("max_error", np.sqrt(1 - budget.get("energy", 1 - 0.05**2)))
        assert error <= limit * (1 + 2e-3 if dtype == "float16" else 1 + 1e-5)
    found = _decompose(weight, fit=fit, **budget)
    assert found.reconstruct().tobytes() == chain.reconstruct().tobytes()


@settings(deadline=None, max_examples=25)
@given(
    shape=st.sampled_from([(64, 48), (30, 100), (2, 40, 40)]),
    dtype=st.sampled_from(["float16", "float32"]),
    bits=st.floats(3, 12),
    known=st.booleans(),
)
def test_stored_bits_are_within_the_budget_and_near_it(shape, dtype, bits, known):
    weight = _weight(1, *shape, dtype=dtype)
    covariance = np.diag(np.linspace(1, 2, shape[-2])) if known else None
    chain = _decompose(weight, bits=bits, covariance=covariance)
    used = chain.cost.bytes * 8
    # A budget a rounding error below a whole number of bits is that number.
    assert used <= bits * weight.size * (1 + 1e-12)
    rows, columns = shape[-2:]
    # One more rank: its trits in whole bytes, and a scale
    parts = weight.size // (rows * columns)
    one = parts * (2 * (rows + columns) + 8 * weight.dtype.itemsize + 8 * columns)
    assert used > bits * weight.size - one


@pytest.mark.parametrize("shape", [(80, 100), (40, 30), (2, 70, 66)])
@pytest.mark.parametrize("fit", [None, "published"])
@pytest.mark.parametrize("known", [False, True])
def test_a_spectral_tolerance_is_kept_in_the_weight_as_it_is(shape, fit, known):
    weight = _weight(2, *shape)
    scale = np.linspace(0.5, 3, shape[-2]) ** 2
    covariance = np.diag(scale) if known else None
    chain = _decompose(weight, tolerance_spectral=0.12, fit=fit, covariance=covariance)
    wrong = weight - chain.reconstruct()
    for part, whole in zip(
        wrong.reshape(-1, *shape[-2:]), weight.reshape(-1, *shape[-2:]), strict=True
    ):
        assert np.linalg.norm(part, 2) <= 0.12 * np.linalg.norm(whole, 2) * (1 + 1e-4)
    assert (len(chain.stages) == 3) == (known and fit is None)


def test_the_same_rank_gives_the_same_chain_as_the_budget_did():
    weight = _weight(3, 24, 20)
    method = find_method("ternary_svd")
    covariance = np.diag(np.linspace(0.1, 4, 24))
    low = _weight(3, 24, 2) @ _weight(4, 2, 20)
    exact = np.outer(*np.random.default_rng(0).integers(-1, 2, (2, 24)))[:, :20].astype("f4")
    for one in (weight, low, exact, np.zeros((24, 20), np.float32)):
        for budget in (
            {"ratio": 2.0},
            {"bits": 6.0},
            {"max_error": 0.1},
            {"tolerance_spectral": 0.1},
            {"rank": 4000},
            {"ratio": 2.0, "fit": "published"},
            {"ratio": 2.0, "sweeps": 0},
        ):
            for known in (None, covariance):
                chain = _decompose(one, covariance=known, **budget)
                settled = method.settle(TernarySvdOptions(**budget), chain)
                told = {k: v for k, v in vars(settled).items() if v is not None}
                assert "rank" in told
                again = _decompose(one, covariance=known, **told)
                assert again.reconstruct().tobytes() == chain.reconstruct().tobytes()
                assert [s.shape for s in again.stages] == [s.shape for s in chain.stages]


def test_zeros_stay_zeros():
    chain = _decompose(np.zeros((30, 20), np.float32), ratio=2)
    assert not chain.reconstruct().any()
    assert chain.stages[0].shape == (30, 1)
    for budget in ({"max_error": 0.1}, {"tolerance_spectral": 0.1}, {"fit": "published"}):
        assert not _decompose(np.zeros((70, 90), np.float32), **budget).reconstruct().any()
    weight = _weight(5, 40, 30)
    weight[[3, 7]], weight[:, [0, 9]] = 0, 0
    found = _decompose(weight, ratio=6).reconstruct()
    assert _distance(found, weight) < 0.02
    assert np.abs(found[[3, 7]]).max() < 0.1
    assert np.abs(found[:, [0, 9]]).max() < 0.1


def test_a_weight_of_low_rank_and_one_of_few_ternary_terms():
    low = _weight(6, 80, 2) @ _weight(7, 2, 60)
    assert _distance(_decompose(low, ratio=3).reconstruct(), low) < 0.03
    generator = np.random.default_rng(8)
    left, right = generator.integers(-1, 2, (80, 2)), generator.integers(-1, 2, (2, 60))
    few = ((left * [4, 0.5]) @ right).astype(np.float32)
    chain = _decompose(few, ratio=8)
    assert _distance(chain.reconstruct(), few) < 1e-4
    assert chain.stages[0].shape[1] < 8 * 80 * 60 / 140 / 2


def test_a_rank_without_end_is_cut_where_nothing_is_left():
    weight = _weight(9, 10, 12)
    chain = _decompose(weight, rank=10**9)
    assert chain.stages[0].shape[1] <= 16 * 120 / 22
    assert _distance(chain.reconstruct(), weight) < 1e-3
    assert _decompose(weight, ratio=1e12).stages[0].shape[1] <= 16 * 120 / 22


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float64", 1e200),
        ("float64", 1e-200),
        ("float32", 1e37),
        ("float32", 1e-36),
        ("float16", 1e4),
        ("float16", 1e-3),
    ],
)
def test_magnitudes_at_the_ends_of_the_type(dtype, scale):
    """float16 has strengths below its smallest normal number here."""
    base = np.clip(_weight(10, 24, 20, dtype="float64"), -3, 3)
    weight = (base * scale).astype(dtype)
    for arguments in ({}, {"covariance": np.eye(24)}):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            chain = _decompose(weight, ratio=4, **arguments)
        found = chain.reconstruct() / scale
        assert _distance(found, weight.astype(np.float64) / scale) < 0.08


@pytest.mark.parametrize("size", [1e-12, 1e-40, 1.0, 1e8])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_inputs_of_any_size_have_finite_scales(size, dtype):
    weight = _weight(11, 32, 24, dtype=dtype)
    chain = _decompose(weight, ratio=4, covariance=size * np.diag(np.linspace(1, 2, 32)))
    factors = chain.stages[0].factors
    assert factors.dtype == dtype
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    assert _distance(chain.reconstruct(), weight) < 0.08


def test_parts_of_very_different_sizes():
    weight = _weight(12, 3, 20, 16)
    weight[1] *= np.float32(1e-30)
    found = _decompose(weight, ratio=4).reconstruct()
    for part in range(3):
        # In units of its own, so that squares do not vanish
        unit = np.abs(weight[part]).max()
        assert _distance(found[part] / unit, weight[part] / unit) < 0.1


def _inputs(seed, rows, size, spread=1.5):
    generator = np.random.default_rng([seed, rows, size])
    mixed = np.random.default_rng([seed, size]).standard_normal((size, size)) / np.sqrt(size)
    scales = np.exp(spread * np.random.default_rng([seed, size, 1]).standard_normal(size))
    return generator.standard_normal((rows, size)) @ (mixed + np.eye(size)) * scales


def test_outputs_are_much_closer_where_inputs_are_known_to_differ():
    weight = _weight(13, 96, 64)
    x, fresh = np.split(_inputs(0, 4000, 96), 2)
    known = _decompose(weight, ratio=2, covariance=x.T @ x / len(x))
    plain = _decompose(weight, ratio=2)
    errors = [_distance(fresh @ c.reconstruct(), fresh @ weight) for c in (known, plain)]
    assert errors[0] < 0.5 * errors[1]
    assert known.stages[1].shape == plain.stages[0].shape


def test_the_scale_is_one_over_the_root_of_the_variance():
    weight = _weight(14, 30, 20)
    x = _inputs(2, 500, 30)
    covariance = x.T @ x / len(x)
    scale, first, second = _decompose(weight, ratio=4, covariance=covariance).stages
    assert isinstance(scale, Scale)
    assert isinstance(first, Linear)
    assert isinstance(second, Linear)
    diagonal = np.diagonal(covariance)
    # The metric moves it 2 % towards its mean
    moved = 0.98 * diagonal + 0.02 * diagonal.mean()
    assert np.allclose(scale.factors, 1 / np.sqrt(moved), rtol=1e-5)
    assert (scale.axes, scale.groups) == (None, 1)


def test_an_input_that_never_moves():
    weight = _weight(15, 30, 20)
    x = _inputs(3, 500, 30)
    x[:, 4] = 0
    chain = _decompose(weight, ratio=4, covariance=x.T @ x / len(x))
    assert np.isfinite(chain.stages[0].factors).all()
    assert _distance(x @ chain.reconstruct(), x @ weight) < 0.1


def test_importance_of_rows_gives_scales():
    weight = _weight(16, 30, 20)
    importance = np.tile(np.linspace(0.1, 9, 30)[:, None], (1, 20))
    chain = _decompose(weight, ratio=4, importance=importance, metric="fisher-rows")
    assert isinstance(chain.stages[0], Scale)
    factors = chain.stages[0].factors.astype(np.float64)
    assert np.allclose(factors * np.sqrt(importance[:, 0]), factors[0] * np.sqrt(0.1), rtol=1e-4)
    assert _distance(chain.reconstruct(), weight) < 0.2


def _convolved(chain, kernel_shape, groups):
    """Return the kernel that a chain of convolutions computes, from its answers to impulses."""
    outputs, inputs, *window = kernel_shape
    result = np.zeros(kernel_shape)
    dense = [stage.dense() for stage in chain.stages]
    for output in range(outputs):
        group = output // (outputs // groups)
        total = None
        if len(dense) == 3:
            scale = chain.stages[0].factors.astype(np.float64).reshape(groups, inputs)[group]
            dense_first, dense_second = dense[1:]
        else:
            scale = np.ones(inputs)
            dense_first, dense_second = dense
        rank = len(dense_first) // groups
        first = dense_first[group * rank : (group + 1) * rank]
        second = dense_second[output]
        # A window is in one of both along each axis, so that their product broadcasts
        total = np.einsum("r...,ri...->i...", second, first)
        result[output] = total * scale.reshape(-1, *[1] * len(window))
    return result


@settings(deadline=None, max_examples=20)
@given(
    shape=st.sampled_from([(8, 4, 3), (12, 6, 3, 3), (6, 5, 1, 1), (8, 3, 1, 5), (10, 2, 3, 2)]),
    groups=st.sampled_from([1, 2]),
    budget=st.sampled_from([{"ratio": 3.0}, {"max_error": 0.15}, {"bits": 40.0}]),
    known=st.booleans(),
)
def test_kernels_in_whichever_form(shape, groups, budget, known):
    kernel = _weight(17, *shape)
    patch = int(np.prod(shape[1:]))
    covariance = None
    if known:
        x = _inputs(4, 400, patch)
        covariance = np.tile(x.T @ x / len(x), (groups, 1, 1))
    chain = _decompose(kernel, groups=groups, covariance=covariance, **budget)
    assert isinstance(chain.stages[0], Scale) == known
    assert all(isinstance(stage, Convolution) for stage in chain.stages[-2:])
    assert np.allclose(chain.reconstruct(), _convolved(chain, shape, groups), atol=1e-5)
    if known:
        scale = chain.stages[0]
        assert (scale.axes, scale.groups, len(scale.factors)) == (
            len(shape) - 2,
            groups,
            groups * shape[1],
        )
    elif "max_error" in budget:
        assert _distance(chain.reconstruct(), kernel) <= 0.15 * (1 + 1e-5)
    if "bits" in budget:
        assert chain.cost.bytes * 8 <= 40 * kernel.size


def test_the_cheapest_form_wins_for_an_error_and_the_closest_for_a_size():
    kernel = _weight(18, 12, 10, 3, 3)
    forms = ("channel", "input", "spatial", "spatial_swapped")
    for budget, by in (({"max_error": 0.2}, "bytes"), ({"ratio": 2.0}, "error")):
        chains = {form: _decompose(kernel, groups=1, form=form, **budget) for form in forms}
        best = _decompose(kernel, groups=1, **budget)
        cost = {
            "bytes": lambda chain: chain.cost.bytes,
            "error": lambda chain: _distance(chain.reconstruct(), kernel),
        }[by]
        assert cost(best) == min(map(cost, chains.values()))
        settled = TernarySvd().settle(TernarySvdOptions(**budget), best)
        again = _decompose(kernel, groups=1, rank=settled.rank, form=settled.form)
        assert np.array_equal(again.reconstruct(), best.reconstruct())


def test_a_whole_window_stays_in_one_stage():
    kernel = _weight(19, 8, 6, 3, 3)
    held = Setting(Format("ternary"), kernel.dtype, groups=1, stored="float32", whole_window=True)
    chain = TernarySvd().factorize(kernel, TernarySvdOptions(ratio=2), held)
    windows = [stage.window for stage in chain.stages]
    assert sorted(map(len, windows)) == [0, 2]


def test_what_makes_no_sense_is_refused_by_name():
    weight = _weight(20, 12, 10)
    refused = [
        ({"fit": "best"}, "fit 'best' is unknown; expected one of alternating, published"),
        ({"rank": 3, "ratio": 2.0}, "rank and ratio are both given"),
        ({"max_error": 0.1, "tolerance_spectral": 0.1}, "max_error and tolerance_spectral are bo"),
        ({"tolerance_spectral": 0.0}, "tolerance_spectral 0.0 is not above 0 and below 1"),
        ({"tolerance_spectral": 1.0}, "tolerance_spectral 1.0 is not above 0 and below 1"),
        ({"tolerance_spectral": float("nan")}, "tolerance_spectral nan is not"),
        ({"sweeps": -1}, "sweeps -1 is not a whole number"),
        ({"sweeps": 1.5}, "sweeps 1.5 is not a whole number"),
        ({"rank": 0}, "rank 0 is not a whole number of at least 1"),
        ({"ratio": 0.01}, "ratio 0.01 leaves less than rank 1 of a 12×10 weight"),
        ({"bits": 0.5}, "bits 0.5 leaves less than rank 1"),
        ({"energy": 1.0}, "energy 1 is not reached with 16 trits for each entry of the 12×10"),
        ({"max_error": 0.0}, "max_error 0 is not reached"),
        ({"format": "int8"}, "makes ternary numbers, found format 'int8'"),
        ({"group_size": 32}, "rounds nothing in groups"),
        ({"rounding": "gptq", "covariance": np.eye(12)}, "rounds nothing in groups"),
        ({"form": "channel"}, "form 'channel' is for convolutions"),
        ({"terms": 2}, "terms"),
    ]
    for arguments, message in refused:
        with pytest.raises(UsageError, match=message):
            _decompose(weight, **arguments)
    with pytest.raises(UsageError, match="NaN or infinite"):
        _decompose(np.full((4, 4), np.nan), ratio=2)


def test_metrics_of_entries_and_of_outputs_are_refused():
    weight = _weight(21, 12, 10)
    ones = np.ones((12, 10))
    with pytest.raises(UsageError, match="fits in metric frobenius, activation, fisher-rows, not"):
        _decompose(weight, ratio=2, importance=ones, metric="fisher")
    with pytest.raises(UsageError, match="not kfac"):
        _decompose(weight, ratio=2, covariance=np.eye(12), output_covariance=np.eye(10))


def test_tables_and_other_formats_are_refused():
    weight = _weight(22, 12, 10)
    own = Setting.for_array(weight, "ternary")
    table = Setting(own.format, own.compute, is_table=True)
    with pytest.raises(UsageError, match="table of rows has no product"):
        TernarySvd().factorize(weight, TernarySvdOptions(), table)
    with pytest.raises(UsageError, match="one scale for each rank"):
        TernarySvd().factorize(weight, TernarySvdOptions(), Setting.for_array(weight, "int8"))
    with pytest.raises(UsageError, match="makes ternary numbers, found format 'int8'"):
        Request("ternary_svd", TernarySvdOptions(), format="int8").check()


def test_a_model_whose_weight_is_not_a_number(tmp_path):
    model = classifier()
    broken = numpy_helper.to_array(model.graph.initializer[0]).copy()
    name = model.graph.initializer[0].name
    broken[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, name))
    onnx.save(model, tmp_path / "m.onnx")
    arguments: dict[str, Any] = {"method": "ternary_svd", "ratio": 2.0, "isolate": False}
    with pytest.raises(ModelError, match="weight 'w1' has 1 entries that are NaN or infinite"):
        onnxlr.rewrite(
            tmp_path / "m.onnx", tmp_path / "o.onnx", tolerance="cosine>=-1", **arguments
        )
    assert not (tmp_path / "o.onnx").exists()


def test_published_knows_no_inputs():
    weight = _weight(23, 30, 20)
    known = _decompose(weight, ratio=2, fit="published", covariance=np.diag(np.arange(1.0, 31)))
    plain = _decompose(weight, ratio=2, fit="published")
    assert known.reconstruct().tobytes() == plain.reconstruct().tobytes()
    method = TernarySvd()
    setting = Setting.for_array(weight, "ternary")
    assert not method.heeds_metric(TernarySvdOptions(fit="published"), setting)
    assert method.heeds_metric(TernarySvdOptions(), setting)


def test_additions_are_counted_by_entries_and_multiplications_by_rank():
    weight = _weight(24, 60, 40)
    chain = _decompose(weight, ratio=2, covariance=np.eye(60))
    scale, first, second = chain.stages
    entries = sum(np.count_nonzero(stage.weight.trits) for stage in (first, second))
    rank = first.shape[1]
    assert chain.cost.nonzeros == entries
    assert entries - rank - 40 <= chain.cost.additions <= entries
    assert rank + 60 <= chain.cost.multiplications <= rank + 60 + 40
    assert scale.cost.multiplications == 60
