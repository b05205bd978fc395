"""What moments say of an approximation, against the data they were made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.errors import UsageError
from onnxlr.evidence import Evidence, View
from onnxlr.metrics import Activation, Fisher, FisherRows, Frobenius, Kfac
from onnxlr.statistics import Moments, PairMoments

seeds = st.integers(0, 2**16)


def moments_of(sites):
    """Return the moments of the rows `(rows, groups, inputs)` that each site saw."""
    rows = np.concatenate(sites)
    none = np.zeros(len(sites))
    return Moments(
        counts=np.array([len(site) for site in sites]),
        means=np.stack([site.mean(axis=0) for site in sites]),
        covariance=np.einsum("ngi,ngj->gij", rows, rows) / len(rows),
        low=none - 1,
        high=none + 1,
        output_low=none,
        output_high=none,
    )


def pairs_of(changed, original):
    """Return the moments of two models' rows `(rows, groups, inputs)`."""
    count = len(changed)
    return PairMoments(
        count=count,
        covariance=np.einsum("ngi,ngj->gij", changed, changed) / count,
        cross=np.einsum("ngi,ngj->gij", changed, original) / count,
        target=np.einsum("ngi,ngj->gij", original, original) / count,
        mean=changed.mean(axis=0),
        original_mean=original.mean(axis=0),
    )


def outputs_of(rows, weight, groups):
    """Return what a layer makes of rows `(rows, groups, inputs)`: `(rows, outputs)`."""
    if groups is None:
        stack = weight.reshape(-1, *weight.shape[-2:])
        return np.concatenate([rows[:, 0] @ matrix for matrix in stack], axis=1)
    width = len(weight) // groups
    parts = [
        rows[:, g] @ weight[g * width : (g + 1) * width].reshape(width, -1).T for g in range(groups)
    ]
    return np.concatenate(parts, axis=1)


def unfolded(weight, groups):
    """Return matrices `(parts, inputs, outputs)`."""
    if groups is None:
        return weight.reshape(-1, *weight.shape[-2:])
    parts = np.split(weight, groups)
    return np.stack([part.reshape(len(part), -1).T for part in parts])


def agree(error, found, wanted, bias):
    """Check an error; it is a small difference of squares that round to 1e-16 of their size."""
    total = np.sum(wanted**2)
    size = np.sum(found**2) + total + len(wanted) * np.sum(bias**2)
    assert abs(error**2 * total - np.sum((found - wanted) ** 2)) <= 1e-12 * size


@st.composite
def layers(draw):
    """Return a generator, a weight, another of its shape, and its groups."""
    generator = np.random.default_rng(draw(seeds))
    inputs, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["matrix", "stack", "convolution"]))
    groups = draw(st.integers(1, 3)) if kind == "convolution" else None
    shape = {
        "matrix": (inputs, outputs),
        "stack": (3, inputs, outputs),
        "convolution": (outputs * (groups or 1), inputs, 2, 1),
    }[kind]
    weight = generator.standard_normal(shape)
    return generator, weight, weight + 0.3 * generator.standard_normal(shape), groups


def rows_of(generator, count, weight, groups):
    size = weight.shape[-2] if groups is None else weight[0].size
    shift = 2 * generator.standard_normal((groups or 1, size))
    mix = generator.standard_normal((size, size))
    return generator.standard_normal((count, groups or 1, size)) @ mix + shift


@settings(deadline=None, max_examples=80)
@given(layer=layers(), counts=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_errors_and_corrections_are_those_of_the_data(layer, counts):
    generator, weight, other, groups = layer
    sites = [rows_of(generator, count, weight, groups) for count in counts]
    view, none = Evidence(moments_of(sites)).views(weight, groups)
    assert none is None
    parts = unfolded(other, groups)
    wanted = [outputs_of(site, weight, groups) for site in sites]
    found = [outputs_of(site, other, groups) for site in sites]

    missing = np.stack([(w - f).mean(axis=0) for w, f in zip(wanted, found, strict=True)])
    corrections = view.corrections(parts)
    assert np.allclose(corrections, missing, atol=1e-9)
    some = generator.standard_normal(missing.shape)
    for bias in (None, missing, some):
        added = np.zeros_like(missing) if bias is None else bias
        biased = [f + b for f, b in zip(found, added, strict=True)]
        agree(view.error(parts, bias), *map(np.concatenate, (biased, wanted)), added)
    assert view.error(parts, corrections) <= view.error(parts) + 1e-9
    assert view.error(unfolded(weight, groups)) < 1e-6


@settings(deadline=None, max_examples=80)
@given(layer=layers(), count=st.integers(1, 40))
def test_behind_rewritten_layers_the_original_output_is_wanted(layer, count):
    generator, weight, other, groups = layer
    original = rows_of(generator, count, weight, groups)
    changed = original + 0.3 * generator.standard_normal(original.shape) + 0.2
    view, _ = Evidence(pairs_of(changed, original)).views(weight, groups)
    parts = unfolded(other, groups)
    wanted, found = outputs_of(original, weight, groups), outputs_of(changed, other, groups)
    missing = (wanted - found).mean(axis=0)[None]
    assert np.allclose(view.corrections(parts), missing, atol=1e-9)
    for bias in (None, missing):
        added = np.zeros_like(missing) if bias is None else bias
        agree(view.error(parts, bias), found + added, wanted, added)


@settings(deadline=None, max_examples=40)
@given(layer=layers())
def test_the_target_is_the_damped_least_squares_weight(layer):
    """Least squares with rows added that pull towards the weight itself."""
    generator, weight, _, groups = layer
    original = rows_of(generator, 60, weight, groups)
    changed = original + 0.3 * generator.standard_normal(original.shape)
    view = View.of_pairs(pairs_of(changed, original), unfolded(weight, groups))
    target = view.target(unfolded(weight, groups))
    for part, matrix in enumerate(unfolded(weight, groups)):
        group = part if groups is not None else 0
        x, y = changed[:, group], original[:, group] @ matrix
        size = x.shape[1]
        pull = np.sqrt(0.02 * np.sum(x**2) / size) * np.eye(size)
        rows, wanted = np.concatenate([x, pull]), np.concatenate([y, pull @ matrix])
        expected, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
        assert np.allclose(target[part], expected, atol=1e-7)


def test_the_target_on_the_original_inputs_is_the_weight():
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((5, 1, 8)), generator.standard_normal((8, 3))
    view, _ = Evidence(pairs_of(x, x)).views(weight, None)
    assert np.allclose(view.target(weight[None])[0], weight)


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=seeds)
def test_centred_is_what_is_left_when_each_site_corrects_its_mean(counts, seed):
    generator = np.random.default_rng(seed)
    sites = [generator.standard_normal((n, 2, 3)) + generator.standard_normal(3) for n in counts]
    moments = moments_of(sites)
    rows = np.concatenate([site - site.mean(axis=0) for site in sites])
    expected = np.einsum("ngi,ngj->gij", rows, rows) / len(rows)
    assert np.allclose(moments.centred, expected)
    assert np.allclose(moments.mean, np.concatenate(sites).mean(axis=0))
    assert moments.count == sum(counts)


def test_a_site_that_was_not_seen_counts_for_nothing():
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((30, 1, 4)) + 1, generator.standard_normal((4, 3))
    one = moments_of([x])
    two = Moments(
        np.array([30, 0]),
        np.concatenate([one.means, np.zeros((1, 1, 4))]),
        one.covariance,
        *(np.array([value, np.nan]) for value in (-1.0, 1.0, 0.0, 0.0)),
    )
    (view, _), (other, _) = (Evidence(m).views(weight, None) for m in (one, two))
    parts = weight[None] + 0.1
    assert np.isclose(view.error(parts), other.error(parts))
    assert np.allclose(other.corrections(parts)[1], 0)
    pairs = [v.error(parts, v.corrections(parts)) for v in (view, other)]
    assert np.isclose(*pairs)


def test_inputs_of_zeros_have_no_error():
    view, _ = Evidence(moments_of([np.zeros((4, 1, 3))])).views(np.ones((3, 2)), None)
    assert view.error(np.zeros((1, 3, 2))) == 0


def test_metrics_are_made_of_what_is_known():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((40, 1, 4)) + 2
    moments = moments_of([x])
    importance, gradients = generator.random((4, 3)), np.eye(3)
    evidence = Evidence(moments, None, importance, gradients)
    assert evidence.default_metric == "activation"
    assert Evidence().default_metric == "frobenius"
    found = {name: evidence.metric(name) for name in ("frobenius", "fisher-rows", "fisher", "kfac")}
    kinds = {"frobenius": Frobenius, "fisher-rows": FisherRows, "fisher": Fisher, "kfac": Kfac}
    assert {name: type(metric) for name, metric in found.items()} == kinds
    assert evidence.metric("fisher", solver="em").solver == "em"
    for centred, expected in ((False, moments.covariance), (True, moments.centred)):
        metric = evidence.metric("activation", centred)
        assert np.allclose(metric.covariance, Activation(expected).covariance)


@pytest.mark.parametrize(
    ("evidence", "arguments", "message"),
    [
        (Evidence(), ("activation",), "needs statistics"),
        (Evidence(), ("fisher",), "metric fisher needs the importance"),
        (Evidence(), ("fisher-rows",), "metric fisher-rows needs the importance"),
        (Evidence(moments_of([np.ones((2, 1, 3))])), ("kfac",), "output's gradients"),
        (Evidence(), ("l1",), "metric 'l1' is unknown"),
        (Evidence(), ("frobenius", False, "als"), "solver 'als' is for metric fisher"),
    ],
)
def test_metrics_of_what_is_not_known_are_refused(evidence, arguments, message):
    with pytest.raises(UsageError, match=message):
        evidence.metric(*arguments)
