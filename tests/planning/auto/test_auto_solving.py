"""Choices of candidates, against all choices tried one by one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from math import inf, isfinite, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog

from onnxlr.planning.auto.highs import solve_binary
from onnxlr.planning.auto.solving import Item, choose

FREE = Item(inf, inf, inf)
Layers = Sequence[Sequence[Item]]


def sums(layers: Layers, choice: Sequence[int]) -> tuple[Fraction, Fraction, Fraction]:
    """Return the exact sums of a choice."""
    chosen = [layer[item] for layer, item in zip(layers, choice, strict=True)]
    size, seconds, damage = (
        sum((Fraction(getattr(item, field)) for item in chosen), Fraction(0))
        for field in ("size", "seconds", "damage")
    )
    return size, seconds, damage


def cost(layers: Layers, choice: Sequence[int], weights: Item) -> Fraction:
    """Return the exact weighted sum of a choice."""
    return sum(
        (
            Fraction(weight) * total
            for weight, total in zip(weights.values, sums(layers, choice), strict=True)
        ),
        Fraction(0),
    )


def holds(layers: Layers, choice: Sequence[int], limits: Item) -> bool:
    """Return whether a choice keeps to the limits, exactly."""
    return all(
        limit == inf or total <= Fraction(limit)
        for total, limit in zip(sums(layers, choice), limits.values, strict=True)
    )


def least(layers: Layers, weights: Item, limits: Item) -> Fraction | None:
    """Return the least cost of all choices, None if none keeps to the limits."""
    places = [[k for k, item in enumerate(layer) if isfinite(item.damage)] for layer in layers]
    allowed = [c for c in itertools.product(*places) if holds(layers, c, limits)]
    return min((cost(layers, choice, weights) for choice in allowed), default=None)


# Powers of two scale integers without rounding, so that limits are met or not met exactly.
SCALES = (2.0**-30, 2.0**-7, 1.0, 2.0**30)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[list[Item]], Item, Item]:
    """Draw layers, weights and limits; each of the three sums has a scale of its own."""
    scales = [draw(st.sampled_from(SCALES)) for _ in range(3)]
    offset = draw(st.sampled_from((0, 10**6)))
    top = draw(st.sampled_from((3, 30, 10**5)))
    whole = st.integers(0, top)
    number = st.tuples(*[whole] * 3)
    layers = draw(st.lists(st.lists(number, min_size=1, max_size=4), min_size=1, max_size=5))
    items = [
        [Item(*(s * (v + offset) for s, v in zip(scales, item, strict=True))) for item in layer]
        for layer in layers
    ]
    if draw(st.booleans()):
        items[0][0] = Item(items[0][0].size, items[0][0].seconds, inf)
    free = draw(st.tuples(*[st.booleans()] * 3))
    room = [draw(st.integers(0, top * len(layers))) + offset * len(layers) for _ in range(3)]
    limits = [inf if f else s * r for f, s, r in zip(free, scales, room, strict=True)]
    weights = [draw(st.sampled_from((0.0, 1.0, 3.0))) / s for s in scales]
    return items, Item(*weights), Item(*limits)


@settings(max_examples=300, deadline=None)
@given(problems())
def test_it_is_the_best_of_all_choices(problem):
    layers, weights, limits = problem
    expected = least(layers, weights, limits)
    found = choose(layers, weights, limits)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert holds(layers, found, limits)
    assert all(isfinite(layer[item].damage) for layer, item in zip(layers, found, strict=True))
    assert cost(layers, found, weights) == expected
    assert choose(layers, weights, limits) == found


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**20))
def test_limits_may_be_met_exactly(problem, pick):
    layers, weights, _ = problem
    finite = [[item for item in layer if isfinite(item.damage)] for layer in layers]
    if not all(finite):
        return
    choice = [pick % len(layer) for layer in finite]
    limits = Item(*(float(total) for total in sums(finite, choice)))
    found = choose(finite, weights, limits)
    assert found is not None
    assert holds(finite, found, limits)
    assert cost(finite, found, weights) == least(finite, weights, limits)


def test_sums_that_round_are_within_their_limit():
    layers = [[Item(0.1, 1, 0), Item(0.0, 2, 0)], [Item(0.2, 1, 0), Item(0.0, 2, 0)]]
    assert 0.1 + 0.2 > 0.3
    assert choose(layers, Item(0, 1, 0), Item(0.3, inf, inf)) == [0, 0]
    assert choose(layers, Item(0, 1, 0), Item(0.3 - 1e-9, inf, inf)) == [0, 1]


def test_numbers_of_any_magnitude_together():
    """Bytes beside seconds beside damages, and one candidate that would be a disaster."""
    layers = [
        [Item(4e9, 2e-9, 0), Item(1e9, 1e-9, 3e-9), Item(0.5e9, 1e-9, 1e9)],
        [Item(4e9, 2e-9, 0), Item(1e9, 1e-9, 2e-9), Item(0.5e9, 1e-9, 1e9)],
        [Item(4e3, 2e-12, 0), Item(1e3, 1e-12, 1e-15), Item(0.5e3, 1e-12, 1e9)],
    ]
    for weights, limits in (
        (Item(0, 0, 1), Item(5e9 + 2e3, inf, inf)),
        (Item(0, 1, 0), Item(inf, inf, 3e-9)),
        (Item(1, 0, 0), Item(inf, inf, 5.0000011e-9)),
        (Item(1, 0, 0), Item(inf, inf, 4.999999e-9)),
        (Item(1e-9, 1e9, 1e9), Item(6e9, 3.0011e-9, 6e-9)),
    ):
        found = choose(layers, weights, limits)
        assert found is not None
        assert holds(layers, found, limits)
        assert cost(layers, found, weights) == least(layers, weights, limits)


def test_a_disaster_does_not_blur_small_differences():
    """Costs of 1e9 that are not chosen, beside costs that differ by 1e-9."""
    layers = [[Item(2, 0, 1e-9 * k), Item(1, 0, 1e9)] for k in (1, 2)]
    layers += [[Item(2, 0, 0), Item(1, 0, (5 + k) * 1e-9)] for k in (3, 1, 2)]
    found = choose(layers, Item(0, 0, 1), Item(9, inf, inf))
    assert found == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("over", [2e-12, 1e-11, 1e-9, 1e-7, 1e-5])
def test_what_the_solver_tolerates_is_not_taken(over):
    """Fifty layers alike: half of them would fit, but for a little."""
    layers = [[Item(0, 1, 0), Item(1 + over, 0, 0)] for _ in range(50)]
    found = choose(layers, Item(0, 1, 0), Item(25, inf, inf))
    assert found == [0] * 26 + [1] * 24


def test_nothing_is_found_where_nothing_fits():
    layers = [[Item(2, 1, 0), Item(1, 2, 0)]] * 2
    assert choose(layers, Item(1, 0, 0), Item(2, 4, inf)) == [1, 1]
    assert choose(layers, Item(1, 0, 0), Item(1.999, inf, inf)) is None
    assert choose(layers, Item(1, 0, 0), Item(2, 3.999, inf)) is None
    assert choose(layers, Item(1, 0, 0), Item(-1, inf, inf)) is None
    assert choose([*layers, []], Item(1, 0, 0), FREE) is None
    assert choose([[Item(0, 0, inf)]], Item(1, 0, 0), FREE) is None


def test_without_layers_there_is_nothing_to_choose():
    assert choose([], Item(1, 1, 1), Item(0, 0, 0)) == []
    assert choose([], Item(1, 1, 1), Item(-1, 0, 0)) is None


def test_ties_go_to_the_first():
    same = Item(3, 2, 1)
    assert choose([[same, same, same]] * 4, Item(1, 1, 1), Item(12, 8, 4)) == [0] * 4
    # None is better than another, and both fit.
    trade = [Item(1, 5, 3), Item(1, 3, 5)]
    assert choose([trade, trade[::-1]], Item(1, 0, 0), Item(inf, 20, 20)) == [0, 0]
    # Only one of three layers alike may stay as it is: the first does.
    alike = [[Item(5, 0, 0), Item(1, 1, 0)]] * 3
    assert choose(alike, Item(0, 1, 0), Item(7, inf, inf)) == [0, 1, 1]


def test_of_what_costs_the_same_the_one_that_is_nowhere_worse():
    layer = [Item(1, 5, 5), Item(1, 5, 4), Item(1, 6, 4)]
    assert choose([layer], Item(1, 0, 0), Item(inf, inf, 9)) == [1]


@pytest.mark.parametrize(
    "wrong",
    [Item(nan, 0, 0), Item(inf, 0, 0), Item(0, nan, 0), Item(0, -inf, 0), Item(0, 0, nan)],
)
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="found Item"):
        choose([[Item(0, 0, 0), wrong]], Item(1, 0, 0), FREE)


def test_weights_and_limits_that_mean_nothing_are_refused():
    layers = [[Item(0, 0, 0)]]
    for weights in (Item(nan, 0, 0), Item(inf, 0, 0), Item(-1, 0, 0)):
        with pytest.raises(ValueError, match="weights"):
            choose(layers, weights, FREE)
    for limits in (Item(nan, 0, 0), Item(0, 0, -inf)):
        with pytest.raises(ValueError, match="limits"):
            choose(layers, Item(1, 0, 0), limits)


def large(layers: int, candidates: int, seed: int = 0) -> list[list[Item]]:
    """Return candidates whose numbers are like measured ones."""
    random = np.random.default_rng(seed)
    weight = np.exp(random.normal(0, 1.2, layers))[:, None] * 1e6
    kept = np.sort(random.uniform(0.1, 1, (layers, candidates)))[:, ::-1]
    seconds = 1e-9 * weight**0.8 * random.uniform(0.3, 1.2, kept.shape) * (0.4 + 0.6 * kept)
    damage = np.exp(random.normal(0, 1.5, layers))[:, None] * 1e-4 / kept**3
    damage *= np.exp(random.normal(0, 0.5, kept.shape))
    damage[:, 0] = 0
    stacked = np.stack([weight * kept, seconds, damage], axis=2)
    return [[Item(*map(float, item)) for item in layer] for layer in stacked]


def lower_bound(layers: Layers, weights: Item, limits: Item) -> float:
    """Return what no choice costs less than: the best mixture of candidates."""
    values = np.array([item.values for layer in layers for item in layer])
    bounds = np.array(limits.values)
    used = np.isfinite(bounds)
    counts = [len(layer) for layer in layers]
    owners = np.repeat(np.arange(len(layers)), counts)
    own = values @ np.array(weights.values)
    found = linprog(
        own / own.mean(),
        A_ub=(values[:, used] / bounds[used]).T,
        b_ub=np.ones(used.sum()),
        A_eq=(owners == np.arange(len(layers))[:, None]).astype(float),
        b_eq=np.ones(len(layers)),
    )
    assert found.status == 0
    return float(found.fun * own.mean())


@pytest.mark.parametrize("seed", range(2))
def test_hundreds_of_layers(seed):
    layers = large(200, 15, seed)
    full = [sum(layer[0].values[k] for layer in layers) for k in range(3)]
    for weights, limits in (
        (Item(1 / full[0], 0, 0), Item(inf, inf, 0.02)),
        (Item(0, 0, 1), Item(0.35 * full[0], 0.6 * full[1], inf)),
        (Item(1 / full[0], 1 / full[1], 0), Item(0.5 * full[0], 0.6 * full[1], 1.0)),
    ):
        found = choose(layers, weights, limits)
        assert found is not None
        assert holds(layers, found, limits)
        bound = lower_bound(layers, weights, limits)
        assert bound * (1 - 1e-6) <= cost(layers, found, weights) <= bound * 1.005


def test_standard_output_is_left_alone():
    """Some versions of HiGHS print there what their authors looked for."""
    code = (
        "import os; from tests.planning.auto.test_auto_solving import *\n"
        "os.write(1, b'before;')\n"
        "layers = large(120, 12, 2); full = [sum(l[0].values[k] for l in layers) for k in (0, 1)]\n"
        "assert choose(layers, Item(0, 0, 1), Item(.35 * full[0], .6 * full[1], inf))\n"
        "os.write(1, b'after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"before;after"


def test_the_solver_works_without_a_standard_output():
    code = (
        "import os; os.close(1)\n"
        "from onnxlr.planning.auto.solving import *\n"
        "layers = [[Item(5, 0, 0), Item(1, 1, 0)], [Item(5, 0, 0), Item(1, 2, 0)]]\n"
        "assert choose(layers, Item(0, 1, 0), Item(7, 9, 9)) == [1, 0]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_constraints_that_nothing_meets():
    impossible = [LinearConstraint(np.ones((1, 3)), 4, 4)]
    assert solve_binary(np.ones(3), impossible, 10) is None
    two = solve_binary(np.array([3.0, 1.0, 2.0]), [LinearConstraint(np.ones((1, 3)), 2, 2)], 10)
    assert two is not None
    np.testing.assert_allclose(two, [0, 1, 1], atol=1e-6)
