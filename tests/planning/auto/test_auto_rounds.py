"""The search over whole models, against worlds in which it is known what every choice comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import inf, nan, sqrt

import numpy as np
import pytest

from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.menu import Menu
from onnxlr.planning.auto.outcomes import Built, Measurement, Rival, best, cost_of, holds
from onnxlr.planning.auto.rounds import ROUNDS, search
from onnxlr.planning.auto.solving import Item

SIZE, SECONDS = 1000.0, 1e-3
"""Of the original; its layers are nine tenths of both."""


def ladder(layers: int, steps: int, seed: int = 0, sensitivity: float = 1e-3) -> Menu:
    """Return layers whose candidates are the smaller and the faster, the more they damage."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, layers)
    weights *= 0.9 / weights.sum()
    rows = []
    for weight in weights:
        size, seconds = weight * SIZE, weight * SECONDS
        row = [Item(size, seconds, 0.0)]
        scale = sensitivity * rng.uniform(0.3, 3)
        for step in range(1, steps + 1):
            part = 1 - 0.8 * step / steps
            row.append(Item(size * part, seconds * (0.5 + part / 2), scale * 4.0**step / 4**steps))
        rows.append(row)
    return Menu(rows, SIZE, SECONDS)


class World:
    """Knows what each choice is, and counts how often it is asked.

    Parameters
    ----------
    menu
        What is predicted.
    power
        Of the true damage, as a multiple of what is predicted.
    gain
        Part of the time that layers save which the whole does save.
    header
        Size, as a fraction of the original's, that no layer accounts for.
    """

    def __init__(
        self,
        menu: Menu,
        power: float = 1.0,
        gain: float = 1.0,
        header: float = 0.0,
        measure: str = "cosine",
        broken: Callable[[tuple[int, ...]], bool] = lambda _: False,
    ) -> None:
        self.menu, self.power, self.gain, self.header = menu, power, gain, header
        self.measure_name, self.broken = measure, broken
        self.asked: list[tuple[int, ...]] = []

    def truth(self, chosen: tuple[int, ...]) -> Measurement:
        items = [row[place] for row, place in zip(self.menu.layers, chosen, strict=True)]
        kept = [row[0] for row in self.menu.layers]
        size = 1 - sum(k.size - i.size for k, i in zip(kept, items, strict=True)) / SIZE
        saved = sum(k.seconds - i.seconds for k, i in zip(kept, items, strict=True)) / SECONDS
        damage = self.power * sum(item.damage for item in items)
        drop = sqrt(damage) if self.measure_name == "relout" else damage / 2
        changed = any(chosen)
        return Measurement(
            size + self.header * changed, 1 - self.gain * saved, {self.measure_name: drop}
        )

    def __call__(self, chosen: tuple[int, ...]) -> Measurement:
        assert chosen not in self.asked, "a model is built again"
        self.asked.append(chosen)
        return Measurement(problem="it cannot run") if self.broken(chosen) else self.truth(chosen)

    def every(self) -> list[tuple[tuple[int, ...], Measurement]]:
        """Return all choices that can run, with what they are."""
        places = product(*(range(len(row)) for row in self.menu.layers))
        return [(chosen, self.truth(chosen)) for chosen in places if not self.broken(chosen)]


def goal(aim: str = "size", drop: float = 0.01, measure: str = "cosine", **bounds: float) -> Goal:
    return Goal(aim, (Limit(measure, drop),), **bounds)


def found_by(world: World, wanted: Goal, rival: Rival | None = None) -> Built:
    rivals = [] if rival is None else [rival]
    chosen = best(wanted, search(world.menu, wanted, world, rivals), rivals)
    assert chosen is not None
    return chosen


def least_cost(world: World, wanted: Goal) -> float:
    """Return the least cost of all choices that meet a goal, by trying every one."""
    return min(
        cost_of(wanted, found.size, found.latency)
        for _, found in world.every()
        if wanted.holds(found.drops) and wanted.fits(found.size, found.latency)
    )


# --- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["cosine", "relout"])
@pytest.mark.parametrize("power", [1e-3, 0.1, 0.5, 1.0, 2.0, 10.0, 1e3])
@pytest.mark.parametrize("aim", ["size", "latency", "balanced"])
def test_the_budget_is_found_however_wrong_predictions_are(
    aim: str, power: float, measure: str
) -> None:
    """The layers' order is predicted rightly, so the best of all choices can be found."""
    menu = ladder(5, 3, seed=3, sensitivity=1e-1 / power)
    world = World(menu, power, measure=measure)
    wanted = goal(aim, 0.01 if measure == "cosine" else 0.15, measure)
    built = found_by(world, wanted)
    assert wanted.holds(built.found.drops)
    assert len(world.asked) <= ROUNDS
    assert any(built.chosen)
    kept = cost_of(wanted, 1, 1)
    least = least_cost(world, wanted)
    assert kept - cost_of(wanted, built.found.size, built.found.latency) > 0.95 * (kept - least)


@pytest.mark.parametrize("power", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_damage_comes_near_the_limit(power: float, seed: int) -> None:
    """With many fine steps hardly any of what may be lost is left over."""
    world = World(ladder(60, 6, seed, 1e-2), power)
    built = found_by(world, goal(drop=0.01))
    assert 0.008 < built.found.drops["cosine"] <= 0.01
    assert len(world.asked) <= ROUNDS


def test_coarse_steps_far_above_the_first_budget_are_found() -> None:
    """Nothing fits what is allowed at first, as the one candidate seems a thousand times worse."""
    menu = Menu([[Item(900, 9e-4, 0), Item(100, 1e-4, 20.0)]], SIZE, SECONDS)
    assert found_by(World(menu, 1e-4), goal(drop=0.01)).chosen == (1,)


def test_steps_between_which_nothing_lies_are_passed_over() -> None:
    rows = [[Item(300, 3e-4, 0), Item(100, 1e-4, damage)] for damage in (1e-6, 1e-3, 0.9)]
    world = World(Menu(rows, SIZE, SECONDS), 0.02)
    assert found_by(world, goal(drop=0.01)).chosen == (1, 1, 1)
    assert len(world.asked) <= 4


def test_no_loss_at_all_is_allowed() -> None:
    rows = [[Item(300, 3e-4, 0), Item(100, 1e-4, d), Item(20, 1e-5, 10 * d)] for d in (0, 1e-3)]
    for measure in ("cosine", "relout"):
        world = World(Menu(rows, SIZE, SECONDS), measure=measure)
        assert found_by(world, goal(drop=0.0, measure=measure)).chosen == (2, 0)


def test_a_score_that_stays_as_it_is_lets_the_budget_grow() -> None:
    """Agreement says nothing for long: the search must not stop at its first timid budget."""
    menu = ladder(6, 4, sensitivity=0.1)

    def score(chosen: tuple[int, ...]) -> Measurement:
        total = sum(row[i].damage for row, i in zip(menu.layers, chosen, strict=True))
        found = World(menu).truth(chosen)
        return Measurement(found.size, found.latency, {"top1": 0.0 if total < 0.05 else 0.5})

    wanted = goal(measure="top1", drop=0.0)
    built = best(wanted, search(menu, wanted, score))
    assert built is not None
    assert built.predicted.damage > 0.01


def test_a_drop_that_is_no_number_is_too_much() -> None:
    menu = ladder(4, 3, sensitivity=1e-2)

    def measure(chosen: tuple[int, ...]) -> Measurement:
        found = World(menu).truth(chosen)
        bad = sum(chosen) > 5
        return Measurement(found.size, found.latency, {"cosine": nan} if bad else found.drops)

    wanted = goal(drop=0.5)
    built = best(wanted, search(menu, wanted, measure))
    assert built is not None
    assert 3 <= sum(built.chosen) <= 5


def test_two_limits_hold_at_once() -> None:
    menu = ladder(5, 4, sensitivity=1e-2)
    wanted = Goal("size", (Limit("cosine", 0.01), Limit("relout", 0.02)))

    def measure(chosen: tuple[int, ...]) -> Measurement:
        one = World(menu).truth(chosen)
        other = World(menu, measure="relout").truth(chosen)
        return Measurement(one.size, one.latency, {**one.drops, **other.drops})

    built = best(wanted, search(menu, wanted, measure))
    assert built is not None
    # The second is the one that matters: 0.0004 of damage, where the first allows 0.02.
    assert 0.015 < built.found.drops["relout"] <= 0.02


# --- what the whole takes ------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.5, 0.7, 1.0, 1.6])
def test_a_whole_that_gains_only_a_part_is_asked_for_more(gain: float) -> None:
    world = World(ladder(12, 6, sensitivity=1e-3), gain=gain)
    wanted = goal("size", 0.5, max_latency=0.85)
    built = found_by(world, wanted)
    assert built.found.latency <= 0.85
    for_accuracy = Goal(max_latency=0.85)
    world = World(world.menu, gain=gain)
    accurate = found_by(world, for_accuracy)
    # No more is given away than it takes.
    assert 0.83 < accurate.found.latency <= 0.85
    assert len(world.asked) <= 4


def test_bytes_that_no_layer_accounts_for_are_learned() -> None:
    world = World(ladder(12, 6), header=0.1)
    wanted = Goal(max_size=0.6)
    built = found_by(world, wanted)
    assert 0.57 < built.found.size <= 0.6
    assert len(world.asked) <= 3


def test_the_bound_is_met_although_damages_seem_too_much() -> None:
    """Nothing within the damage that is predicted to hold is small enough; what is, does hold."""
    world = World(ladder(6, 4, sensitivity=1.0), power=1e-3)
    built = found_by(world, goal("latency", 0.01, max_size=0.35))
    assert built.found.size <= 0.35
    assert built.found.drops["cosine"] <= 0.01


# --- without limits ------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [{"max_size": 0.6}, {"max_latency": 0.8}])
@pytest.mark.parametrize("seed", range(3))
def test_without_limits_the_least_loss_within_bounds_is_found(
    bounds: dict[str, float], seed: int
) -> None:
    world = World(ladder(5, 3, seed), measure="relout")
    wanted = Goal(**bounds)
    built = found_by(world, wanted)
    least = min(
        found.drops["relout"]
        for _, found in world.every()
        if wanted.fits(found.size, found.latency)
    )
    assert built.found.drops["relout"] == pytest.approx(least)


@pytest.mark.parametrize("limits", [(), (Limit("cosine", 0.5),)])
def test_a_size_that_nothing_has_is_recognised_without_building(limits: Sequence[Limit]) -> None:
    world = World(ladder(5, 3))
    assert search(world.menu, Goal("size", limits, max_size=0.1), world) == []
    assert world.asked == []


@pytest.mark.parametrize("limits", [(), (Limit("relout", 0.9),)])
def test_a_time_that_nothing_has_is_recognised_by_building_the_fastest(
    limits: Sequence[Limit],
) -> None:
    world = World(ladder(5, 3), measure="relout")
    wanted = Goal("size", limits, max_latency=0.2)
    rounds = search(world.menu, wanted, world)
    assert best(wanted, rounds) is None
    assert len(world.asked) == 1


def test_without_limits_a_model_that_cannot_run_is_stepped_over() -> None:
    menu = ladder(8, 4)
    first = search(menu, Goal(max_size=0.6), World(menu, measure="relout"))[0].chosen
    world = World(menu, measure="relout", broken=lambda chosen: chosen == first)
    built = found_by(world, Goal(max_size=0.6))
    assert world.asked[0] == first
    assert 0.5 < built.found.size <= 0.6


# --- models that cannot run ----------------------------------------------------------------------


def test_models_that_cannot_run_are_stepped_over() -> None:
    """The last candidate of a layer cannot run, wherever it is used."""
    world = World(ladder(6, 4, sensitivity=1e-3), broken=lambda chosen: chosen[2] == 4)
    built = found_by(world, goal(drop=0.01))
    assert world.asked[0][2] == 4
    assert built.found.problem is None
    assert built.found.size < 0.8
    assert len(world.asked) <= ROUNDS


def test_nothing_that_runs_is_nothing() -> None:
    world = World(ladder(3, 2), broken=any)
    rounds = search(world.menu, goal(), world)
    built = best(goal(), rounds)
    assert built is None or not any(built.chosen)
    assert len(world.asked) <= ROUNDS


def test_a_failure_that_others_of_its_damage_do_not_share_ends_nothing() -> None:
    """The first plan loses three times what plans of as much damage lose."""

    class Unlucky(World):
        def __call__(self, chosen: tuple[int, ...]) -> Measurement:
            found = super().__call__(chosen)
            if len(self.asked) > 1:
                return found
            return replace(found, drops={"cosine": 0.012})

    menu = ladder(40, 6, sensitivity=5e-3)
    world = Unlucky(menu, power=0.4)
    rounds = search(menu, goal("size", 0.01), world)
    first, chosen = rounds[0], best(goal("size", 0.01), rounds)
    assert chosen is not None
    assert not holds(goal("size", 0.01), first)
    assert chosen.predicted.damage > 1.3 * first.predicted.damage
    assert len(rounds) <= ROUNDS


# --- a rival -------------------------------------------------------------------------------------


def test_a_rival_is_beaten_in_both_where_that_can_be() -> None:
    menu = ladder(8, 4, sensitivity=1e-3)
    rival = Rival(0.5, 0.75)
    for aim in ("size", "latency", "balanced"):
        built = found_by(World(menu), goal(aim, 0.5), rival)
        assert built.found.size <= rival.size
        assert built.found.latency <= rival.latency


def test_a_rival_decides_what_the_aim_alone_would_not() -> None:
    """The smallest is slow: with a rival that is fast, something not so small is chosen."""
    rows = [[Item(300, 3e-4, 0), Item(100, 1e-4, 1e-4), Item(50, 6e-4, 1e-4)] for _ in range(3)]
    menu = Menu(rows, SIZE, SECONDS)
    assert found_by(World(menu), goal("size")).chosen == (2, 2, 2)
    built = found_by(World(menu), goal("size"), Rival(0.45, 0.6))
    assert built.chosen == (1, 1, 1)
    assert built.found.latency <= 0.6


def test_a_rival_out_of_reach_leaves_the_search_as_it_was() -> None:
    menu = ladder(5, 3, sensitivity=1e-2)
    wanted = goal("size", 0.01)
    alone = found_by(World(menu), wanted)
    for rival in (Rival(0.05, 0.9), Rival(0.9, 0.05), Rival(0.01, 0.01)):
        world = World(menu)
        assert found_by(world, wanted, rival).chosen == alone.chosen
        assert len(world.asked) <= 2 * ROUNDS


def test_a_rival_that_seems_out_of_reach_is_tried_all_the_same() -> None:
    """What is as small and as fast seems to do more damage than is allowed, and does not."""
    menu = ladder(8, 4, sensitivity=0.2)
    world = World(menu, 0.005)
    rival = Rival(0.3, 0.65)
    built = found_by(world, goal("latency", 0.01), rival)
    assert built.found.size <= rival.size
    assert built.found.latency <= rival.latency


def test_what_loses_to_no_rival_is_preferred_to_what_is_smaller() -> None:
    small, quick = built_of(0.2, 0.9, 0.001), built_of(0.3, 0.48, 0.001)
    near = built_of(0.25, 0.495, 0.001)
    rivals = [Rival(0.4, 0.5), Rival(0.4, 0.5)]
    wanted = goal("size", 0.01)
    assert best(wanted, [small, quick, near]) is small
    assert best(wanted, [small, quick, near], rivals) is quick
    # Within what races differ by, if there is nothing better.
    assert best(wanted, [small, near], rivals) is near
    assert best(wanted, [small, built_of(0.3, 0.6, 0.001)], rivals) is small


def test_rivals_out_of_reach_together_are_beaten_one_by_one() -> None:
    rows = [[Item(300, 3e-4, 0), Item(100, 1e-4, 1e-4), Item(50, 6e-4, 1e-4)] for _ in range(3)]
    menu = Menu(rows, SIZE, SECONDS)
    wanted, rivals = goal("size"), [Rival(0.2, 0.2), Rival(0.45, 0.6)]
    rounds = search(menu, wanted, World(menu), rivals)
    assert best(wanted, rounds, rivals).chosen == (1, 1, 1)


# --- the best of what was built ------------------------------------------------------------------


def built_of(size: float, latency: float, drop: float, problem: str | None = None) -> Built:
    found = Measurement(size, latency, {"cosine": drop}, problem)
    return Built((1,), 1.0, Item(size, latency, drop), found)


def test_the_best_meets_the_goal_at_the_least_cost() -> None:
    rounds = [
        built_of(0.3, 0.5, 0.02),
        built_of(0.2, 0.2, 0.0, "it cannot run"),
        built_of(0.5, 0.6, 0.005),
        built_of(0.45, 0.9, 0.01),
        built_of(0.6, 0.4, nan),
    ]
    assert best(goal("size"), rounds) is rounds[3]
    assert best(goal("latency"), rounds) is rounds[2]
    assert best(goal("balanced"), rounds) is rounds[2]
    assert best(goal("size", max_latency=0.7), rounds) is rounds[2]
    assert best(goal("size", max_size=0.4), rounds) is None
    assert best(Goal(max_size=0.6), [rounds[0], rounds[2]]) is rounds[2]
    assert [holds(goal(), each) for each in rounds] == [False, False, True, True, False]


def test_costs_by_their_definition() -> None:
    assert cost_of(goal("size"), 0.3, 0.5) == pytest.approx(0.3 + 0.02 * 0.5)
    assert cost_of(goal("latency"), 0.3, 0.5) == pytest.approx(0.5 + 0.02 * 0.3)
    assert cost_of(goal("balanced"), 0.3, 0.5) == pytest.approx(0.8)


def test_predictions_are_sums_beside_what_is_no_layer() -> None:
    rows = [[Item(300, 3e-4, 0), Item(100, 5e-4, 0.1)], [Item(200, 1e-4, 0), Item(50, 0, 0.2)]]
    menu = Menu(rows, SIZE, SECONDS)
    predicted = menu.predicted((1, 1))
    assert predicted.size == pytest.approx((500 + 150) / 1000)
    assert predicted.seconds == pytest.approx((6e-4 + 5e-4) / 1e-3)
    assert predicted.damage == pytest.approx(0.3)
    assert menu.predicted((0, 0)) == Item(1.0, pytest.approx(1.0), 0.0)
    assert inf > menu.rest.size == 500


def test_a_time_that_layers_alone_do_not_promise_is_reached() -> None:
    menu = ladder(5, 3, sensitivity=1e-3)
    fastest = 1 - sum(row[0].seconds - min(i.seconds for i in row) for row in menu.layers) / SECONDS
    wanted = Goal("size", (Limit("cosine", 0.5),), max_latency=0.95 * fastest)
    assert best(wanted, search(menu, wanted, World(menu))) is None
    built = best(wanted, search(menu, wanted, World(menu, gain=1.5)))
    assert built is not None
    assert built.found.latency <= 0.95 * fastest < built.predicted.seconds
