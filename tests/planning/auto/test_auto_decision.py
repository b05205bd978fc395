"""What is decided in the end, where models are files that say what they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxlr.errors import GoalNotMetError
from onnxlr.planning.auto import contest as contests
from onnxlr.planning.auto.building import Whole
from onnxlr.planning.auto.cache import Cache
from onnxlr.planning.auto.contest import ORIGINAL, PLANNED, Contest
from onnxlr.planning.auto.decision import Choices, Deciding, Decision, menu_of
from onnxlr.planning.auto.goal import Goal, Limit
from onnxlr.planning.auto.measuring import Measured
from onnxlr.planning.auto.menu import Menu
from onnxlr.planning.auto.solving import Item
from onnxlr.planning.auto.table import Entry, Row
from onnxlr.progress import silent
from onnxlr.runtime import Latency

BYTES = 10_000
STOCK = {"stock small": (0.6, 0.9, 0.001), "stock fast": (0.9, 0.7, 0.001), "ruin": (0.1, 0.1, 0.9)}


def write(file: Path, size: float, latency: float, drop: float) -> Path:
    """Write a model of that size that says how fast it is and what it loses."""
    file.write_text(json.dumps({"latency": latency, "drop": drop}).ljust(int(size * BYTES)))
    return file


class Told(Whole):
    """Believes what models say."""

    compared: list[str]
    raced: list[list[str]]
    drift = 1.0

    def drops(self, model: Path) -> dict[str, float] | str:
        self.compared.append(model.name)
        said = json.loads(model.read_text())
        if said["latency"] < 0:
            return "it cannot run"
        return {limit.measure: said["drop"] for limit in self.limits}

    def race(self, models: Sequence[Path]) -> list[Latency] | str:
        self.raced.append([model.name for model in models])
        slower = self.drift if len(self.raced) > 1 else 1.0
        parts = [1.0] + [slower * json.loads(model.read_text())["latency"] for model in models]
        return [Latency(part, part, part, part) for part in parts]


def entry(name: str, error: float | None, seconds: float | None, size: int = 100) -> Any:
    candidate = SimpleNamespace(content=name, size=size, refused=None, fit_error=None)
    return Entry(candidate, Measured(error, seconds, 1e-3))  # type: ignore[arg-type]


class Case:
    """Two layers with two candidates each, and stock options."""

    def __init__(
        self,
        folder: Path,
        goal: Goal,
        cache: Cache | None = None,
        stock: dict[str, tuple[float, float, float]] | None = None,
        factor: float = 1.0,
    ) -> None:
        items = [Item(0.45 * BYTES, 0.45, 0), Item(0.2 * BYTES, 0.2, 1e-3)]
        items.append(Item(0.1 * BYTES, 0.35, 1e-2))
        layer = SimpleNamespace(name="a"), SimpleNamespace(name="b")
        rows = [Row(each, 4500, 0.45, ()) for each in layer]  # type: ignore[arg-type]
        options = [[None, *(entry(f"{n}{i}", 0.1, 1e-3) for i in (1, 2))] for n in "ab"]
        self.choices = Choices(rows, options, Menu([items, items], BYTES, 1.0))
        folder.mkdir()
        original = write(folder / "original", 1, 1, 0)
        self.whole = Told(original, BYTES, "m", ["x"], ["y"], goal.measured, isolate=False)
        self.whole.compared, self.whole.raced = [], []
        self.factor, self.builds = factor, 0
        self.cache = cache or Cache(None)
        self.contest = Contest(self.whole, goal, [], folder / "stock", self.cache, "key", silent)
        self.deciding = Deciding(
            self.choices, self.contest, goal, self.build, folder, self.cache, stock is not None
        )

    def build(self, chosen: Sequence[int], place: Path) -> Path:
        self.builds += 1
        found = self.choices.menu.predicted(chosen)
        drop = self.factor * found.damage / 2
        return write(place / "model.onnx", found.size, found.seconds, drop)

    def decide(self) -> Decision:
        return self.deciding.decide(4, 1)


@pytest.fixture(autouse=True)
def stock(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float, float]]:
    """Return what stock tools make; it can be changed."""
    made = dict(STOCK)

    def make_stock(_: Path, folder: Path, *__: object) -> list[tuple[str, Path | str]]:
        files = [(name, write(folder / name, *numbers)) for name, numbers in made.items()]
        return [*files, ("broken", "it cannot be made")]

    monkeypatch.setattr(contests, "make_stock", make_stock)
    return made


GOAL = Goal("balanced", (Limit("cosine", 0.01),))


def names(decision: Decision) -> dict[str, bool]:
    return {each.name: each.chosen for each in decision.findings.contenders}


def test_the_plan_wins_where_it_is_best(tmp_path: Path) -> None:
    case = Case(tmp_path / "f", GOAL, stock=STOCK)
    decision = case.decide()
    # .2 + .2 of each layer beside .1 of the rest, in size and time: nothing else is as good.
    assert decision.chosen == (1, 1)
    assert decision.ready is None
    assert [name for name, chosen in names(decision).items() if chosen] == [PLANNED]
    assert list(names(decision)) == [ORIGINAL, *STOCK, "broken", PLANNED]
    planned = decision.findings.contenders[-1]
    assert (planned.size, planned.latency) == (pytest.approx(0.5), pytest.approx(0.5))
    assert planned.drops["cosine"] == pytest.approx(1e-3)
    assert (decision.findings.candidates, decision.findings.from_cache) == (4, 1)
    # What loses too much is shown, and is not timed.
    ruin = next(each for each in decision.findings.contenders if each.name == "ruin")
    assert (ruin.meets, ruin.latency) == (False, None)
    assert all("ruin" not in race for race in case.whole.raced)
    # In the end all that meet the limits run in one race.
    assert case.whole.raced[-1] == ["stock small", "stock fast", "model.onnx"]


def test_what_they_are_to_beat_is_the_yardstick_of_their_race(tmp_path: Path) -> None:
    case = Case(tmp_path / "f", GOAL, stock=STOCK)
    case.whole.drift = 1.25  # of all but the original, in races after the first
    for each in case.decide().findings.rounds:
        assert each.latency == pytest.approx(each.predicted_latency)
    alone = Case(tmp_path / "g", GOAL)
    alone.whole.raced, alone.whole.drift = [["first"]], 1.25
    for each in alone.decide().findings.rounds:
        assert each.latency == pytest.approx(1.25 * each.predicted_latency)


def test_a_model_that_two_searches_build_is_one_round(tmp_path: Path) -> None:
    # Together out of reach, one by one not.
    options = {"tiny": (0.45, 0.9, 0.001), "quick": (0.9, 0.6, 0.001)}
    case = Case(tmp_path / "f", GOAL, stock=STOCK)
    case.contest._made = {
        name: write(tmp_path / name.replace(" ", "-"), *numbers)
        for name, numbers in options.items()
    }
    rounds = case.decide().findings.rounds
    assert len({(each.predicted_size, each.predicted_latency) for each in rounds}) == len(rounds)


def test_rivals_are_all_options_at_once_then_the_best_of_them(tmp_path: Path) -> None:
    case = Case(tmp_path / "f", GOAL, stock=STOCK)
    together, single = case.contest.rivals(case.contest.stock())
    assert (together.size, together.latency) == (pytest.approx(0.6), pytest.approx(0.7))
    assert (single.size, single.latency) == (pytest.approx(0.6), pytest.approx(0.9))
    assert (together.name, single.name) == ("stock fast", "stock small")
    assert case.contest.rivals([]) == []


def test_models_race_beside_the_option_that_they_are_to_beat(tmp_path: Path) -> None:
    case = Case(tmp_path / "f", GOAL, stock=STOCK)
    case.decide()
    first, *wholes, _ = case.whole.raced
    assert first == ["stock small", "stock fast"]
    assert wholes
    assert all(race == ["model.onnx", "stock fast", "stock small"] for race in wholes)
    alone = Case(tmp_path / "g", GOAL)
    alone.decide()
    assert all(race == ["model.onnx"] for race in alone.whole.raced)


def test_a_stock_option_that_is_best_is_ready(
    tmp_path: Path, stock: dict[str, tuple[float, float, float]]
) -> None:
    stock["stock wonder"] = (0.15, 0.15, 0.002)
    case = Case(tmp_path / "f", GOAL, stock=STOCK)
    decision = case.decide()
    assert decision.ready == "stock wonder"
    assert decision.chosen == (0, 0)
    assert [name for name, chosen in names(decision).items() if chosen] == ["stock wonder"]
    assert case.contest.file("stock wonder").stat().st_size == 1500
    # Without stock options the plan is what there is.
    alone = Case(tmp_path / "g", GOAL).decide()
    assert (alone.ready, alone.chosen) == (None, (1, 1))
    assert list(names(alone)) == [ORIGINAL, PLANNED]


def test_the_original_where_nothing_gains(tmp_path: Path) -> None:
    """The only one within the limit is the model as it is."""
    decision = Case(tmp_path / "f", Goal("size", (Limit("cosine", 1e-9),)), stock=STOCK).decide()
    assert (decision.chosen, decision.ready) == ((0, 0), None)
    assert names(decision)[ORIGINAL]


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (Goal(max_size=0.05), "no choice of candidates is as small and as fast as is asked"),
        (
            Goal("size", (Limit("cosine", 1e-6),), max_size=0.6),
            r"no plan meets .*has 0\.\d+ of the size, 0\.\d+ of the time and drops of cosine",
        ),
    ],
)
def test_what_nothing_meets_is_a_sentence(tmp_path: Path, goal: Goal, words: str) -> None:
    with pytest.raises(GoalNotMetError, match=f"^m: {words}") as error:
        Case(tmp_path / "f", goal, factor=100).decide()
    assert "\n" not in str(error.value)
    assert error.value.result.contenders[0].name == ORIGINAL
    assert not error.value.result.contenders[-1].meets


def test_the_original_does_not_do_where_less_is_asked(tmp_path: Path) -> None:
    """It loses nothing, and is as large as it is."""
    decision = Case(tmp_path / "f", Goal(max_size=0.8)).decide()
    assert decision.chosen != (0, 0)
    assert names(decision)[PLANNED]


def test_the_cache_is_all_that_a_second_decision_needs(tmp_path: Path) -> None:
    with Cache(tmp_path / "c.sqlite") as cache:
        first = Case(tmp_path / "f", GOAL, cache, STOCK)
        decision = first.decide()
        assert first.builds
        assert first.whole.compared
    with Cache(tmp_path / "c.sqlite") as cache:
        second = Case(tmp_path / "g", GOAL, cache, STOCK)
        assert second.decide() == decision
        assert second.builds == 0
        assert second.whole.compared == second.whole.raced == []
        # Another limit judges what was measured anew: what was too much may now be allowed.
        lax = Case(tmp_path / "h", Goal("size", (Limit("cosine", 0.95),)), cache, STOCK).decide()
        by_name = {each.name: each for each in lax.findings.contenders}
        assert by_name["ruin"].meets
        assert by_name["ruin"].latency == 0.1
        assert lax.ready == "ruin"


def test_a_model_that_cannot_run_is_no_plan_and_is_not_remembered(tmp_path: Path) -> None:
    cache = Cache(None)

    class Broken(Case):
        def build(self, chosen: Sequence[int], place: Path) -> Path:
            file = super().build(chosen, place)
            return write(file, 0.1, -1, 0) if any(chosen) else file

    broken = Broken(tmp_path / "f", GOAL, cache)
    decision = broken.decide()
    assert decision.chosen == (0, 0)
    problems = [each for each in decision.findings.rounds if each.problem is not None]
    assert problems[0].problem == "it cannot run"
    assert problems[0].size is problems[0].latency is None
    before = broken.builds
    broken.decide()
    assert broken.builds - before == len(problems)


def test_unseen_the_least_of_what_is_safe(tmp_path: Path) -> None:
    def chosen(number: int, goal: Goal) -> tuple[int, ...]:
        case = Case(tmp_path / str(number), goal)
        found = case.deciding.decide_unseen(4, 0).chosen
        assert (case.builds, case.whole.compared, case.whole.raced) == (0, [], [])
        return found

    assert chosen(1, Goal("size", GOAL.limits)) == (2, 2)
    assert chosen(2, Goal("latency", GOAL.limits)) == (1, 1)
    assert chosen(3, Goal("size", GOAL.limits, max_latency=0.7)) in ((1, 2), (2, 1))
    with pytest.raises(GoalNotMetError, match=r"^m: nothing that is safe without data"):
        chosen(4, Goal(max_size=0.05))


def test_menus_have_what_can_be_chosen_and_what_it_damages() -> None:
    entries = (
        entry("a", 0.1, 2e-4, 50),
        entry("no time", 0.1, None),
        entry("no error", None, 1e-4),
        entry("overflows", float("inf"), 1e-4),
        entry("b", 0.5, 1e-4, 20),
    )
    layer: Any = SimpleNamespace(name="a")
    choices = menu_of([Row(layer, 100, 3e-4, entries)], {"a": 4.0}, 1000, 1e-3)
    assert choices.options == [[None, entries[0], entries[4]]]
    assert choices.menu.layers == [
        [Item(100, 3e-4, 0.0), Item(50, 2e-4, pytest.approx(0.04)), Item(20, 1e-4, 1.0)]
    ]
    assert choices.entries((2,)) == [entries[4]]
    assert choices.content((0,)) == [("a", "keep")]
    assert choices.content((1,)) == [("a", "a")]
