"""What a rewrite came to, as a page shows it: verdict, sizes, outputs, proofs, contenders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxlr.reporting.cells import count_of, number_of, size_of
from onnxlr.reporting.footprint import amount_of, time_of
from onnxlr.reporting.page.charts import share
from onnxlr.reporting.page.layers import Cell

__all__ = [
    "Contest",
    "Pair",
    "Proof",
    "Rounds",
    "Verdict",
    "contest_of",
    "outputs_of",
    "pairs_of",
    "proofs_of",
    "rounds_of",
    "verdict_of",
]

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What became of the rewrite: `good`, `fair` or `bad`, a word, and a sentence."""

    kind: str
    word: str
    sentence: str


def verdict_of(document: Values) -> Verdict:
    """Return what a document of a rewrite, or of findings alone, comes to."""
    if "layers" not in document:
        return Verdict("bad", "Goal not met", "Nothing was written: no plan does what was asked.")
    report, output = document["report"], document["output"]
    if report is None:
        return Verdict("fair", "Copied", "Nothing was rewritten: the output is a copy.")
    if report["passed"]:
        return Verdict("good", "Verified", "Every check passed, and the model was written.")
    if output is None:
        words = "Nothing was written: the rewritten model does not hold what was asked."
        return Verdict("bad", "Refused", words)
    words = "The model was written, as asked, although it does not hold what was asked of it."
    return Verdict("bad", "Failed", words)


@dataclass(frozen=True)
class Pair:
    """Something before and after."""

    title: str
    before: Cell
    after: Cell
    ratio: Cell


def pairs_of(document: Values) -> tuple[Pair, ...]:
    """Return sizes before and after, and what else was measured of both models."""
    if "layers" not in document:
        return ()
    numbers = document["parameters"]
    pairs = [
        _pair("file size", document["bytes_before"], document["bytes_after"], size_of),
        _pair("numbers in the layers", numbers["all"]["before"], numbers["all"]["after"], count_of),
    ]
    footprints = document["footprints"]
    if footprints is not None:
        before, after = footprints["original"], footprints["rewritten"]
        for key, title, say in (
            ("load_seconds", "time to load", time_of),
            ("memory", "memory when loaded", amount_of),
            ("peak", "peak of memory", amount_of),
        ):
            pairs.append(_pair(title, before[key], after[key], say))
        if before["latency"] is not None and after["latency"] is not None:
            first, second = (each["latency"]["seconds"] for each in (before, after))
            pairs.append(_pair("time of a run, one thread", first, second, time_of))
    return tuple(pairs)


def _pair(title: str, before: float | None, after: float | None, say: Callable[[Any], str]) -> Pair:
    most = max(before or 0.0, after or 0.0)
    first, second = (
        Cell("–") if each is None else Cell(say(each), each, share(each, most))
        for each in (before, after)
    )
    ratio = after / before if before and after is not None else None
    return Pair(title, first, second, Cell("" if ratio is None else f"{ratio:.1%}", ratio))


_MEASURES = {
    "cosine": ("cosine", ".5f"),
    "relative_l2": ("relative L2", ".2g"),
    "max_abs": ("max. abs.", ".2g"),
    "sqnr": ("SQNR, dB", ".1f"),
    "top1": ("top-1", ".2%"),
}
MEASURES = tuple(title for title, _ in _MEASURES.values())


@dataclass(frozen=True)
class Proof:
    """One output in one check."""

    proof: str
    run_by: str
    optimisation: str
    output: str
    asked: str
    cells: tuple[Cell, ...]
    passed: bool


def proofs_of(document: Values) -> tuple[Proof, ...]:
    """Return a row for each output of each check."""
    rows = []
    for check in (document.get("report") or {"checks": ()})["checks"]:
        for comparison in check["comparisons"]:
            output = comparison["output"]
            passed = not any(f.startswith(f"output '{output}'") for f in check["failures"])
            where = (check["proof"], check["run_by"] or "", check["optimisation"], output)
            rows.append(Proof(*where, check["tolerance"], _measured(comparison), passed))
    return tuple(rows)


def _measured(comparison: Values) -> tuple[Cell, ...]:
    if comparison["mismatch"]:
        return tuple(Cell("") for _ in _MEASURES)
    if not comparison["is_float"]:
        equal = comparison["agreement"]
        return (*(Cell("") for _ in tuple(_MEASURES)[1:]), Cell(f"{equal:.2%} equal", equal))
    cells = []
    for key, (_, form) in _MEASURES.items():
        value = comparison[key]
        infinite = key == "sqnr" and value is None  # JSON has no infinity: the outputs are equal
        text = "∞" if infinite else number_of(value, form)
        cells.append(Cell(text, value))
    return tuple(cells)


@dataclass(frozen=True)
class Outcome:
    """What an output loses against the original's: the worst of the approximation's checks."""

    output: str
    distance: Cell
    agreement: Cell
    passed: bool


def outputs_of(document: Values) -> tuple[Outcome, ...]:
    """Return a row for each output that was compared with the original's."""
    worst: dict[str, list[Values]] = {}
    failed: set[str] = set()
    for check in (document.get("report") or {"checks": ()})["checks"]:
        if check["proof"] != "approximation":
            continue
        for comparison in check["comparisons"]:
            name = comparison["output"]
            worst.setdefault(name, []).append(comparison)
            if any(failure.startswith(f"output '{name}'") for failure in check["failures"]):
                failed.add(name)
    return tuple(
        Outcome(name, _farthest(found), _least_alike(found), name not in failed)
        for name, found in worst.items()
    )


def _farthest(found: Sequence[Values]) -> Cell:
    values = [each["relative_l2"] for each in found if each["is_float"]]
    known = [value for value in values if value is not None]
    if not known:
        return Cell("")
    return Cell(number_of(max(known)), max(known), share(max(known), 1.0))


def _least_alike(found: Sequence[Values]) -> Cell:
    values = [each["top1"] if each["is_float"] else each["agreement"] for each in found]
    known = [value for value in values if value is not None]
    if not known:
        return Cell("")
    return Cell(f"{min(known):.2%}", min(known), share(min(known), 1.0))


@dataclass(frozen=True)
class Contest:
    """Models that method `auto` compared: names of what was lost, and a row for each."""

    drops: tuple[str, ...]
    rows: tuple[tuple[str, Cell, Cell, tuple[Cell, ...], str, str], ...]


def contest_of(findings: Values) -> Contest:
    """Return the contenders; of each its name, size, time, losses, standing and its kind."""
    contenders = findings["contenders"]
    drops = tuple(dict.fromkeys(name for each in contenders for name in each["drops"]))
    sizes = [each["size"] or 0.0 for each in contenders]
    times = [each["latency"] or 0.0 for each in contenders]
    most = {name: max((c["drops"].get(name) or 0.0) for c in contenders) for name in drops}
    rows = []
    for each in contenders:
        size = Cell("")
        if each["size"] is not None:
            text = f"{number_of(each['size'], '.3f')} ({size_of(each['bytes'] or 0)})"
            size = Cell(text, each["size"], share(each["size"], max(sizes)))
        lost = tuple(_loss(each["drops"].get(name), most[name]) for name in drops)
        rows.append((each["name"], size, _time(each, max(times)), lost, *_standing(each)))
    return Contest(drops, tuple(rows))


def _time(contender: Values, most: float) -> Cell:
    ratio, low, high = (contender[key] for key in ("latency", "latency_low", "latency_high"))
    if ratio is None:
        return Cell("")
    spread = "" if low is None or high is None else f" ({low:.3f}–{high:.3f})"
    return Cell(f"{ratio:.3f}{spread}", ratio, share(ratio, most))


def _loss(value: float | None, most: float) -> Cell:
    if value is None:
        return Cell("")
    return Cell(number_of(value, ".3g"), value, share(max(value, 0.0), most))


def _standing(contender: Values) -> tuple[str, str]:
    if contender["problem"] is not None:
        return contender["problem"], "fair"
    if contender["chosen"]:
        return "chosen", "good"
    return ("meets the goal", "") if contender["meets"] else ("misses the goal", "bad")


@dataclass(frozen=True)
class Guess:
    """What was predicted and what was found, as text and as places in percent of the axis."""

    predicted: Cell
    found: Cell


@dataclass(frozen=True)
class Rounds:
    """Models that method `auto` built on the way: of each what was predicted, and what was found.

    A row has the number of its rewritten layers, size, time, the predicted damage, what was lost,
    and whether it meets the goal.
    """

    drops: tuple[str, ...]
    rows: tuple[tuple[int, Guess, Guess, Cell, tuple[Cell, ...], str, str], ...]


def rounds_of(findings: Values) -> Rounds:
    """Return what was built, in order."""
    rounds = findings["rounds"]
    drops = tuple(dict.fromkeys(name for each in rounds for name in each["drops"]))
    rows = []
    for each in rounds:
        guesses = (_guess(rounds, each, "size"), _guess(rounds, each, "latency"))
        damage = Cell(number_of(each["predicted_damage"]), each["predicted_damage"])
        lost = tuple(_loss(each["drops"].get(name), 0.0) for name in drops)
        standing, kind = ("meets the goal", "good") if each["meets"] else ("misses the goal", "bad")
        if each["problem"] is not None:
            standing, kind = each["problem"], "fair"
        rows.append((each["rewritten"], *guesses, damage, lost, standing, kind))
    return Rounds(drops, tuple(rows))


def _guess(rounds: Sequence[Values], each: Values, what: str) -> Guess:
    keys = (f"predicted_{what}", what)
    most = max([1.0, *(one[key] or 0.0 for one in rounds for key in keys)])
    predicted, found = (
        Cell(number_of(each[key], ".3f"), each[key], share(each[key], most)) for key in keys
    )
    return Guess(predicted, found)
