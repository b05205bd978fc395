"""Ranges and corrections that come with a chain, against sampled data."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import onnxlr
from onnxlr.methods.adjusting import adjustments
from onnxlr.stages import Chain, Convolution, Linear, Scale
from tests.onelayer import distance, model_of, run
from tests.test_evidence import moments_of


def _seen(sites, weight):
    """Return moments of matrix rows, with the ranges of the data and of the output."""
    moments = moments_of([site[:, None] for site in sites])
    return replace(
        moments,
        low=np.array([x.min() for x in sites]),
        high=np.array([x.max() for x in sites]),
        output_low=np.array([(x @ weight).min() for x in sites]),
        output_high=np.array([(x @ weight).max() for x in sites]),
    )


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=3, max_size=5),
    means=st.lists(st.floats(-5, 5), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_ranges_contain_what_flows_between_stages(sizes, means, seed):
    """Also at sites whose data differ in their means and spread."""
    generator = np.random.default_rng(seed)
    matrices = [generator.standard_normal(shape) for shape in itertools.pairwise(sizes)]
    chain = Chain(tuple(Linear.of(matrix) for matrix in matrices))
    mix = generator.standard_normal((sizes[0], sizes[0]))
    sites = [
        (1 + i) * generator.standard_normal((400, sizes[0])) @ mix + mean
        for i, mean in enumerate(means)
    ]
    moments = _seen(sites, chain.reconstruct())
    found = adjustments(chain, len(sites), None, moments)
    assert len(found) == len(sites)
    for x, adjustment in zip(sites, found, strict=True):
        assert adjustment.correction is None
        assert len(adjustment.ranges) == len(sizes)
        for index, (low, high) in enumerate(adjustment.ranges):
            value = x
            for matrix in matrices[:index]:
                value = value @ matrix
            slack = 1e-9 * (1 + np.abs(value).max())
            assert low - slack <= value.min() <= value.max() <= high + slack


def test_ranges_are_no_wider_than_six_deviations():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((500, 6)) @ generator.standard_normal((6, 6)) + 3
    first, second = generator.standard_normal((6, 4)), generator.standard_normal((4, 5))
    chain = Chain((Linear.of(first), Linear.of(second)))
    (found,) = adjustments(chain, 1, None, _seen([x], first @ second))
    between = x @ first
    mean, deviation = between.mean(axis=0), between.std(axis=0)
    assert np.isclose(found.ranges[1][0], (mean - 6 * deviation).min())
    assert np.isclose(found.ranges[1][1], (mean + 6 * deviation).max())
    assert found.ranges[0] == (x.min(), x.max())
    assert np.allclose(found.ranges[2], ((between @ second).min(), (between @ second).max()))


def test_one_stage_needs_no_ranges_between():
    kernel = Convolution.of(np.ones((2, 3, 1)), 1, (0,))
    for chain in (Chain((Linear.of(np.ones((3, 2))),)), Chain((kernel,))):
        (found,) = adjustments(chain, 1, None, _seen([np.eye(3)], np.ones((3, 2))))
        assert found.ranges == ((0.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("end", ["low", "high", "output_low", "output_high"])
def test_ranges_that_are_not_all_known_are_none(end):
    moments = _seen([np.eye(3), np.eye(3)], np.ones((3, 2)))
    moments = replace(moments, **{end: np.array([np.nan, 1.0])})
    chain = Chain((Linear.of(np.ones((3, 2))),))
    assert [a.ranges is None for a in adjustments(chain, 2, None, moments)] == [True, False]


def test_ranges_behind_stacks_are_not_known():
    moments = _seen([np.eye(3)], np.ones((3, 2)))
    chain = Chain(tuple(Linear.of(stack) for stack in (np.ones((5, 3, 2)), np.ones((5, 2, 4)))))
    assert [a.ranges for a in adjustments(chain, 1, None, moments)] == [None]


@pytest.mark.parametrize("form", ["channel", "input", "spatial", "spatial_swapped"])
@pytest.mark.parametrize("groups", [1, 2])
def test_ranges_contain_what_flows_between_convolutions(form, groups):
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((6, 4, 3, 2))
    data = generator.standard_normal((20, 4 * groups, 7, 7)) + 3
    chain = onnxlr.decompose(kernel, rank=2, form=form, groups=groups)
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 2), axis=(2, 3))
    patches = windows.reshape(20, groups, 4, 5, 6, 3, 2).transpose(0, 3, 4, 1, 2, 5, 6)
    moments = moments_of([patches.reshape(-1, groups, 24)])
    moments = replace(moments, low=np.array([data.min()]), high=np.array([data.max()]))
    (found,) = adjustments(chain, 1, None, moments)
    between = chain.stages[0].apply(data)
    low, high = found.ranges[1]
    assert low <= between.min() <= between.max() <= high
    deviations = between.std(axis=(0, 2, 3)).max()
    assert high - low < np.ptp(between.mean(axis=(0, 2, 3))) + 13 * deviations


def test_corrections_are_of_each_site_or_of_all():
    chain = Chain((Linear.of(np.ones((3, 2))),))
    each = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = adjustments(chain, 2, each, None)
    assert [a.correction.tolist() for a in found] == each.tolist()
    assert [a.ranges for a in found] == [None, None]
    shared = adjustments(chain, 3, each[:1], None)
    assert [a.correction.tolist() for a in shared] == [[1.0, 2.0]] * 3
    none = adjustments(chain, 2, None, None)
    assert [(a.correction, a.ranges) for a in none] == [(None, None)] * 2


# --- factors of the inputs before the first stage ------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    mean=st.floats(-5, 5),
    seed=st.integers(0, 2**16),
)
def test_ranges_behind_factors_of_the_inputs(sizes, mean, seed):
    """The ranges are those of the chain in which the first matrix has taken the factors up."""
    generator = np.random.default_rng(seed)
    factors = generator.choice([-1, 1], sizes[0]) * generator.uniform(0.01, 100, sizes[0])
    matrices = [generator.standard_normal(shape) for shape in itertools.pairwise(sizes)]
    x = generator.standard_normal((400, sizes[0])) + mean
    taken = [factors[:, None] * matrices[0], *matrices[1:]]
    moments = _seen([x], Chain(tuple(Linear.of(matrix) for matrix in taken)).reconstruct())
    (expected,) = adjustments(Chain(tuple(map(Linear.of, taken))), 1, None, moments)
    chain = Chain((Scale(factors), *map(Linear.of, matrices)))
    (found,) = adjustments(chain, 1, None, moments)
    assert len(found.ranges) == len(chain.stages) + 1
    assert found.ranges[0] == expected.ranges[0]
    np.testing.assert_allclose(found.ranges[2:], expected.ranges[1:], rtol=1e-6, atol=1e-6)
    low, high = found.ranges[1]
    scaled, slack = x * factors, 1e-9 * (1 + np.abs(x * factors).max())
    assert low - slack <= scaled.min() <= scaled.max() <= high + slack
    ends = np.multiply.outer(factors, [x.min(), x.max()])
    assert ends.min() - slack <= low <= high <= ends.max() + slack
    far = (scaled.mean(axis=0) + 6 * scaled.std(axis=0)).max()
    assert high <= far + slack


def test_scaled_data_that_is_never_negative_has_no_negative_range():
    x = np.maximum(np.random.default_rng(0).standard_normal((500, 4)), 0)
    factors = np.array([1.0, 2.0, 4.0, 8.0])
    chain = Chain((Scale(factors), Linear.of(np.ones((4, 2))), Linear.of(np.ones((2, 3)))))
    (found,) = adjustments(chain, 1, None, _seen([x], chain.reconstruct()))
    assert found.ranges[1][0] == 0
    assert found.ranges[2][0] < 0  # sums are not observed


@pytest.mark.parametrize("form", ["channel", "input", "spatial"])
@pytest.mark.parametrize("groups", [1, 2])
def test_ranges_behind_factors_of_channels(form, groups):
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((6, 4, 3, 2))
    data = generator.standard_normal((20, 4 * groups, 7, 7)) + 3
    factors = generator.uniform(0.1, 10, 4 * groups)
    plain = onnxlr.decompose(kernel, rank=2, form=form, groups=groups)
    chain = Chain((Scale(factors, 2, groups), *plain.stages))
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 2), axis=(2, 3))
    patches = windows.reshape(20, groups, 4, 5, 6, 3, 2).transpose(0, 3, 4, 1, 2, 5, 6)
    moments = moments_of([patches.reshape(-1, groups, 24)])
    ends = {name: np.array([0.0]) for name in ("output_low", "output_high")}
    moments = replace(moments, low=np.array([data.min()]), high=np.array([data.max()]), **ends)
    (found,) = adjustments(chain, 1, None, moments)
    scaled = data * factors.reshape(-1, 1, 1)
    between = plain.stages[0].apply(scaled)
    for (low, high), value in zip(found.ranges[1:3], (scaled, between), strict=True):
        assert low <= value.min() <= value.max() <= high
        deviations = value.std(axis=(0, 2, 3)).max()
        assert high - low < np.ptp(value.mean(axis=(0, 2, 3))) + 13 * deviations


def test_static_int8_data_of_scaled_chains_stays_near_the_layer(tmp_path):
    """A model whose inputs differ a hundredfold, run with ranges behind their factors."""
    generator = np.random.default_rng(0)
    spread = np.geomspace(0.1, 10, 64)
    weight = generator.standard_normal((64, 48)).astype(np.float32)
    rows = (generator.standard_normal((600, 64)) * spread + spread).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    model = model_of([node], {"x": rows[:40]}, ["y"], {"w": weight})
    result = onnxlr.rewrite(
        model,
        tmp_path / "o.onnx",
        method="ternary_svd",
        rank=60,
        activations="static_int8",
        calibration={"x": rows},
        data={"x": rows[:40]},
        tolerance="cosine>=0.9",
        isolate=False,
    )
    (record,) = result.layers
    assert record.choice.activations == "static_int8"
    written = onnx.load(tmp_path / "o.onnx")
    kinds = [n.op_type for n in written.graph.node]
    assert kinds.count("QuantizeLinear") == 2
    assert "Mul" in kinds
    (found,) = run(written, {"x": rows[:40]})
    plan = result.plan.layers["layer"]
    exact = onnxlr.rewrite(
        model,
        tmp_path / "f.onnx",
        method="ternary_svd",
        rank=60,
        activations="float",
        calibration={"x": rows},
        data={"x": rows[:40]},
        tolerance="cosine>=0.9",
        isolate=False,
    )
    assert exact.plan.layers["layer"].options == plan.options
    (expected,) = run(onnx.load(tmp_path / "f.onnx"), {"x": rows[:40]})
    assert distance(found, expected.astype(np.float64)) < 0.05
