"""Fronts, limits of a sweep, and searches that go on from what was built."""

from __future__ import annotations

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxlr.errors import UsageError
from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.menu import Menu
from onnxlr.planning.auto.outcomes import Built, Measurement, best
from onnxlr.planning.auto.rounds import search
from onnxlr.planning.auto.solving import Item
from onnxlr.planning.auto.sweeping import front, limits_of

POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=12)


@given(POINTS)
def test_the_front_is_what_no_weighing_of_levels_excludes(points: list[tuple[int, ...]]) -> None:
    """A point is on the front if no other lies in the box between it and the origin."""
    costs = np.array(points, float).reshape(-1, 3)
    taken = np.zeros((5, 5, 5), bool)
    for x, y, z in points:
        taken[x, y, z] = True
    expected = []
    for x, y, z in points:
        box = taken[: x + 1, : y + 1, : z + 1].copy()
        box[x, y, z] = False
        expected.append(not box.any())
    assert front([tuple(row) for row in costs]) == expected


def test_equals_are_both_on_the_front() -> None:
    assert front([(1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (1.0, 2.0, 4.0)]) == [True, True, False]


@pytest.mark.parametrize("measure", ["cosine", "relout", "top1", "os.path:getsize"])
def test_there_are_usual_limits(measure: str) -> None:
    drops = [limit.drop for limit in limits_of(measure, ())]
    assert len(drops) == 5
    assert drops == sorted(set(drops))
    assert {limit.measure for limit in limits_of(measure, ())} == {measure}


def test_distances_of_usual_limits_are_those_of_the_cosines() -> None:
    """Of unit vectors at distance d the cosine is 1 − d²/2."""
    cosines = [limit.drop for limit in limits_of("cosine", ())]
    distances = [limit.drop for limit in limits_of("relout", ())]
    assert np.square(distances) / 2 == pytest.approx(cosines, rel=0.3)


def test_limits_rise_and_each_is_there_once() -> None:
    found = limits_of("cosine", (0.1, 0.01, 0.1, 0))
    assert [limit.drop for limit in found] == [0.0, 0.01, 0.1]


@pytest.mark.parametrize(
    ("measure", "budgets", "words"),
    [
        ("cosin", (), "did you mean 'cosine'"),
        ("cosine", (2.0,), "at most 1"),
        ("top1", (-0.1,), "not negative"),
        ("relout", (inf,), "finite"),
        ("relout", (float("nan"),), "finite"),
    ],
)
def test_limits_that_mean_nothing_are_refused(
    measure: str, budgets: tuple[float, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        limits_of(measure, budgets)


def _menu(layers: int) -> Menu:
    """Return layers of one hundred bytes that can be written in ever fewer at ever more damage."""
    choices = [Item(100.0, 1.0, 0.0)]
    choices += [Item(90.0 - 10 * n, 1.0 - 0.05 * n, 1e-5 * 4.0**n) for n in range(8)]
    return Menu([choices] * layers, 100.0 * layers + 50, 1.0 * layers)


GOALS = [Goal("size", (Limit("cosine", drop),)) for drop in (1e-4, 1e-3, 1e-2, 1e-1)]


class _Builder:
    """Measures models whose outputs lose another multiple of what single layers say."""

    def __init__(self, menu: Menu, wrong: float) -> None:
        self.menu, self.wrong = menu, wrong
        self.built: set[tuple[int, ...]] = set()

    def __call__(self, chosen: tuple[int, ...]) -> Measurement:
        self.built.add(chosen)
        found = self.menu.predicted(chosen)
        return Measurement(found.size, found.seconds, {"cosine": self.wrong * found.damage / 2})


@pytest.mark.parametrize("wrong", [0.2, 1.0, 5.0])
def test_searches_that_go_on_find_nearly_the_least(wrong: float) -> None:
    menu = _menu(3)
    build = _Builder(menu, wrong)
    pool: list[Built] = []
    for goal in GOALS:
        pool += search(menu, goal, build, seen=pool)
    for goal in GOALS:
        found = best(goal, pool)
        assert found is not None
        assert found.found.drops["cosine"] <= goal.limits[0].drop
        assert found.cost(goal) <= 1.05 * _least(menu, goal, wrong)


def test_searches_that_go_on_build_less() -> None:
    menu, together, apart = _menu(3), 0, 0
    for wrong in (0.2, 1.0, 5.0):
        build, pool = _Builder(menu, wrong), list[Built]()
        for goal in GOALS:
            alone = _Builder(menu, wrong)
            search(menu, goal, alone)
            apart += len(alone.built)
            pool += search(menu, goal, build, seen=pool)
        together += len(build.built)
    assert together < apart


def test_a_search_builds_nothing_twice() -> None:
    menu = _menu(2)
    first = search(menu, GOALS[2], _Builder(menu, 1.0))
    again = _Builder(menu, 1.0)
    search(menu, GOALS[2], again, seen=first)
    assert not again.built & {built.chosen for built in first}


def _least(menu: Menu, goal: Goal, wrong: float) -> float:
    """Return the least cost within a goal by trying every choice there is."""
    costs = []
    for chosen in product(*(range(len(row)) for row in menu.layers)):
        found = menu.predicted(chosen)
        if wrong * found.damage / 2 <= goal.limits[0].drop:
            costs.append(found.size + 0.02 * found.seconds)
    return min(costs)
