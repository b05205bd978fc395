"""Held-out inputs choose: never worse than the plain fit, and told again bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence
from onnxlr.methods import (
    Quantize,
    QuantizeOptions,
    Recipe,
    Setting,
    Svd,
    SvdOptions,
    fit_as_told,
    fit_best,
)
from onnxlr.numbers import Format
from onnxlr.stages import Sum
from tests.test_evidence import moments_of, pairs_of

SVD = SvdOptions(rank=16)


def _falling(generator, inputs, outputs, decay):
    """Return a random matrix whose singular values fall off."""
    u, _, vt = np.linalg.svd(generator.standard_normal((inputs, outputs)), full_matrices=False)
    return (u * np.exp(-decay * np.arange(u.shape[1]))) @ vt


class Case:
    """A weight, and inputs to fit to, to judge by and to be judged on."""

    def __init__(self, seed, rows=400, inputs=48, outputs=40, decay=0.03, spread=0.1, mean=0.0):
        generator = np.random.default_rng([seed, inputs, outputs])
        self.weight = _falling(generator, inputs, outputs, decay)
        basis, _ = np.linalg.qr(generator.standard_normal((inputs, inputs)))
        root = (basis * np.exp(-spread / 2 * np.arange(inputs))).T
        shift = mean * generator.standard_normal(inputs)
        calibration, self.others = (
            generator.standard_normal((count, inputs)) @ root + shift for count in (rows, 10_000)
        )
        held = np.arange(rows) % 4 == 0
        self.seen, self.held = calibration[~held], calibration[held]

    def evidence(self, holdout=True, **known):
        fit, held = (moments_of([x[:, None]]) for x in (self.seen, self.held))
        return Evidence(fit, held if holdout else None, **known)

    def error(self, fit, x=None):
        """Return the relative error of the outputs on data, by default on others than were seen."""
        x = self.others if x is None else x
        bias = 0 if fit.corrections is None else fit.corrections[0]
        wanted = x @ self.weight
        found = x @ fit.chain.reconstruct() + bias
        return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def _best(case, recipe, options=SVD, method=None, format=None, **known):
    setting = Setting.for_array(case.weight, format)
    return fit_best(method or Svd(), case.weight, options, setting, case.evidence(**known), recipe)


def _told(case, recipe, options=SVD, method=None, format=None, **known):
    setting = Setting.for_array(case.weight, format)
    evidence = case.evidence(**known)
    return fit_as_told(method or Svd(), case.weight, options, setting, evidence, recipe)


def _stages(chain):
    for stage in chain.stages:
        if isinstance(stage, Sum):
            for branch in stage.branches:
                yield from _stages(branch)
        else:
            yield stage.weight


def _content(chain):
    return [
        (w.codes.tobytes(), w.codes.shape, None if w.scales is None else w.scales.tobytes())
        for w in _stages(chain)
    ]


# -- few rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spread", "mean"), [(0.005, 0.0), (0.02, 0.0), (0.02, 0.1), (0.02, 0.3), (0.05, 0.0)]
)
def test_few_rows_are_never_worse_than_the_plain_fit(spread, mean):
    """32 rows for 256 inputs, judged on 10,000 others."""
    asked, options = Recipe("activation", bias_correction=True), SvdOptions(rank=64)
    for seed in range(20):
        case = Case(seed, 32, 256, 256, decay=0.02, spread=spread, mean=mean)
        found, plain = _best(case, asked, options), _told(case, Recipe(), options)
        assert case.error(found) <= case.error(plain) * (1 + 1e-9)


def test_few_rows_alone_would_have_been_worse():
    """So that the test above has something to guard against."""
    case = Case(0, 32, 256, 256, decay=0.02, spread=0.005)
    options = SvdOptions(rank=64)
    own, plain = (
        case.error(_told(case, Recipe(metric), options)) for metric in ("activation", "frobenius")
    )
    assert own > 1.05 * plain


def test_enough_rows_are_fitted_to():
    case = Case(0, rows=4000)
    found, plain = _best(case, Recipe("activation")), _told(case, Recipe())
    assert found.recipe.metric == "activation"
    assert case.error(found) < 0.9 * case.error(plain)


# -- errors are those of the data ------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_error_is_that_of_the_held_out_inputs(rounding, mean):
    case = Case(1, mean=mean)
    recipe = Recipe("activation", rounding, bias_correction=True)
    chosen = Format.parse("int4", 32, rounding)
    found = _best(case, recipe, format=chosen)
    assert np.isclose(found.error, case.error(found, case.held), rtol=1e-6)
    plain = _told(case, Recipe(), format=Format.parse("int4", 32))
    assert np.isclose(found.plain_error, case.error(plain, case.held), rtol=1e-6)
    assert found.error <= found.plain_error
    told = _told(case, Recipe("activation"), format=chosen)
    assert np.isclose(told.error, case.error(told, case.held), rtol=1e-6)


# -- bias correction -------------------------------------------------------------------------------


def test_a_large_mean_is_corrected():
    case = Case(2, rows=4000, mean=3.0)
    found = _best(case, Recipe("frobenius", bias_correction=True))
    assert found.recipe.bias_correction
    missing = case.seen.mean(axis=0) @ (case.weight - found.chain.reconstruct())
    assert np.allclose(found.corrections, missing[None], atol=1e-10)
    assert case.error(found) < 0.7 * case.error(_told(case, Recipe()))


def test_a_correction_takes_the_centred_covariance():
    case = Case(2, rows=4000, mean=0.5)
    asked = Recipe("activation", bias_correction=True)
    found = _best(case, asked)
    assert found.recipe == asked
    x = case.seen - case.seen.mean(axis=0)
    c = x.T @ x / len(x)
    c = 0.98 * c + 0.02 * np.trace(c) / len(c) * np.eye(len(c))
    root = np.linalg.cholesky(c)
    lost = np.linalg.svd(root.T @ case.weight, compute_uv=False)[16:]
    error = np.linalg.norm(root.T @ (found.chain.reconstruct() - case.weight))
    assert np.isclose(error, np.linalg.norm(lost), rtol=1e-6)


def test_a_correction_of_nothing_is_left_out():
    for seed in range(5):
        case = Case(seed, rows=4000, mean=0.0)
        for metric in ("frobenius", "activation"):
            found = _best(case, Recipe(metric, bias_correction=True))
            assert found.corrections is None
            assert not found.recipe.bias_correction


def test_a_correction_that_is_not_asked_for_is_not_made():
    case = Case(2, rows=4000, mean=3.0)
    for metric in ("frobenius", "activation"):
        assert _best(case, Recipe(metric)).corrections is None


def test_a_stack_of_matrices_has_no_bias():
    case = Case(2, mean=3.0)
    stack = np.stack([case.weight, case.weight[::-1]])
    asked = Recipe("activation", bias_correction=True)
    setting = Setting.for_array(stack)
    found = fit_best(Svd(), stack, SVD, setting, case.evidence(), asked)
    assert found.corrections is None


# -- rounding --------------------------------------------------------------------------------------


def test_feedback_is_kept_where_it_helps():
    case = Case(3, rows=4000)
    chosen = Format.parse("int4", 32, "gptq")
    options = QuantizeOptions()
    found = _best(case, Recipe("activation", "gptq"), options, Quantize(), chosen)
    assert found.recipe.rounding == "gptq"
    assert found.error < 0.9 * found.plain_error


def test_feedback_of_few_rows_gives_way_to_the_nearest():
    """Five rows to fit to, that are not at all like the others."""
    case = Case(3, rows=400)
    generator = np.random.default_rng(0)
    case.seen = np.outer(generator.standard_normal(5), generator.standard_normal(48))
    chosen = Format.parse("int4", 32, "gptq")
    found = _best(case, Recipe("activation", "gptq"), QuantizeOptions(), Quantize(), chosen)
    assert found.recipe.rounding == "nearest"
    assert found.error == found.plain_error
    nearest = _told(case, Recipe(), QuantizeOptions(), Quantize(), Format.parse("int4", 32))
    assert _content(found.chain) == _content(nearest.chain)


# -- without what is needed ------------------------------------------------------------------------


def test_without_held_out_inputs_it_is_as_asked_without_a_bias():
    case = Case(4, mean=1.0)
    found = _best(case, Recipe("activation", bias_correction=True), holdout=False)
    assert found.recipe == Recipe("activation")
    assert (found.corrections, found.error, found.plain_error) == (None, None, None)
    told = _told(case, Recipe("activation"), holdout=False)
    assert _content(found.chain) == _content(told.chain)


def test_what_heeds_no_metric_is_plain():
    case = Case(4)
    found = _best(case, Recipe("activation"), QuantizeOptions(), Quantize(), "int8")
    assert found.recipe == Recipe()
    assert found.error == found.plain_error


def test_without_statistics_a_metric_of_them_is_refused():
    case = Case(4)
    setting = Setting.for_array(case.weight)
    for fit in (fit_best, fit_as_told):
        with pytest.raises(UsageError, match="needs statistics of its inputs"):
            fit(Svd(), case.weight, SVD, setting, Evidence(), Recipe("activation"))


# -- told again ------------------------------------------------------------------------------------

RECIPES = [
    Recipe(metric, rounding, bias, "em" if metric == "fisher" else None)
    for metric in ("frobenius", "activation", "fisher-rows", "fisher", "kfac")
    for rounding in ("nearest", "gptq")
    for bias in (False, True)
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("kind", ["float32", "int4"])
@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_a_recorded_recipe_gives_the_same_chain_again(recipe, kind, mean):
    if kind == "float32" and recipe.rounding != "nearest":
        return
    case = Case(5, mean=mean)
    generator = np.random.default_rng(0)
    gradients = generator.standard_normal((50, 40))
    known = {
        "importance": generator.lognormal(0, 1, case.weight.shape),
        "output_covariance": gradients.T @ gradients / 50,
    }
    chosen = Format.parse(kind, None, recipe.rounding)
    for options in (SvdOptions(rank=8), SvdOptions(ratio=0.7), SvdOptions(max_error=0.4)):
        found = _best(case, recipe, options, format=chosen, **known)
        again = _told(case, found.recipe, found.options, format=chosen, **known)
        assert _content(again.chain) == _content(found.chain)
        assert again.error == found.error
        for one, other in ((again.corrections, found.corrections),):
            assert one is other or np.array_equal(one, other)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_recorded_correction_gives_the_same_sum_again(rounding):
    case = Case(5, mean=1.0)
    options, chosen = QuantizeOptions(correction_rank=4), Format.parse("int4", 32, rounding)
    asked = Recipe("activation", rounding, bias_correction=True)
    found = _best(case, asked, options, Quantize(), chosen)
    again = _told(case, found.recipe, found.options, Quantize(), chosen)
    assert _content(again.chain) == _content(found.chain)
    assert len(_content(found.chain)) == 3
    assert again.error == found.error


def test_a_kernel_is_fitted_in_the_form_that_is_recorded():
    generator = np.random.default_rng(6)
    kernel = _falling(generator, 12, 18, 0.2).reshape(12, 2, 3, 3)
    patches = generator.standard_normal((600, 2, 18)) @ generator.standard_normal((18, 18)) + 1
    evidence = Evidence(moments_of([patches[:400]]), moments_of([patches[400:]]))
    setting = Setting.for_array(kernel, groups=2)
    asked = Recipe("activation", bias_correction=True)
    found = fit_best(Svd(), kernel, SvdOptions(ratio=0.6), setting, evidence, asked)
    again = fit_as_told(Svd(), kernel, found.options, setting, evidence, found.recipe)
    assert found.options.form is not None
    assert _content(again.chain) == _content(found.chain)
    bias = 0 if found.corrections is None else found.corrections[0]
    dense = found.chain.reconstruct().reshape(12, -1)

    def outputs(weight):
        parts = np.split(weight, 2)
        return np.concatenate([patches[400:, g] @ part.T for g, part in enumerate(parts)], axis=1)

    wanted = outputs(kernel.reshape(12, -1))
    error = np.linalg.norm(outputs(dense) + bias - wanted) / np.linalg.norm(wanted)
    assert np.isclose(found.error, error, rtol=1e-6)


# -- by importance, and behind rewritten layers ----------------------------------------------------


def test_the_gain_by_importance_is_that_of_the_weighted_error():
    case = Case(7)
    importance = np.random.default_rng(0).lognormal(0, 2, case.weight.shape)
    found = _best(case, Recipe("fisher"), holdout=False, importance=importance)
    plain = _told(case, Recipe(), holdout=False)
    own, other = (
        np.sqrt(np.sum(importance * (f.chain.reconstruct() - case.weight) ** 2))
        for f in (found, plain)
    )
    assert np.isclose(found.importance_gain, 1 - own / other)
    assert found.importance_gain > 0.3
    assert found.importance_variance > 0


def test_behind_rewritten_layers_the_original_outputs_are_aimed_at():
    case = Case(8, rows=4000)
    generator = np.random.default_rng(0)
    mix = np.eye(48) + 0.2 * generator.standard_normal((48, 48)) / np.sqrt(48)
    pairs = [pairs_of((x @ mix)[:, None], x[:, None]) for x in (case.seen, case.held)]
    setting = Setting.for_array(case.weight)
    told = {
        sequential: fit_as_told(
            Svd(), case.weight, SvdOptions(rank=30), setting, evidence, Recipe("activation")
        )
        for sequential, evidence in ((True, Evidence(*pairs)), (False, case.evidence()))
    }
    wanted = case.others @ case.weight
    errors = {
        sequential: np.linalg.norm(case.others @ mix @ fit.chain.reconstruct() - wanted)
        for sequential, fit in told.items()
    }
    assert errors[True] < 0.8 * errors[False]
    held = case.held @ mix @ told[True].chain.reconstruct() - case.held @ case.weight
    error = np.linalg.norm(held) / np.linalg.norm(case.held @ case.weight)
    assert np.isclose(told[True].error, error, rtol=1e-6)
