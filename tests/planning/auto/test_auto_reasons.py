"""The reasons in a plan say what the numbers say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from onnxlr.methods import SvdOptions
from onnxlr.plan import Choice
from onnxlr.planning.auto.measuring import Measured
from onnxlr.planning.auto.reasons import chosen_because, kept_because, rejected
from onnxlr.planning.auto.solving import Item
from onnxlr.planning.auto.table import Entry, Row
from onnxlr.planning.request import Request


def entry(rank: int, size: int, seconds: float | None, error: float, reason: str = "") -> Entry:
    choice = Choice("keep", reason=reason) if reason else Choice("svd", SvdOptions(rank=rank))
    request = Request("svd", SvdOptions(rank=rank), "int8")
    candidate: Any = SimpleNamespace(
        choice=choice, refused=reason or None, request=request, size=size, fit_error=None
    )
    measured = Measured(error, seconds, 1e-3, None if seconds else "it cannot be timed")
    return Entry(candidate, None if reason else measured)


def row(*entries: Entry, seconds: float = 1e-3) -> Row:
    layer: Any = SimpleNamespace(name="a")
    return Row(layer, 1000, seconds, entries)


CHOSEN = entry(3, 400, 5e-4, 0.02)


def test_what_was_chosen_says_what_it_takes() -> None:
    full = row(CHOSEN, entry(4, 500, None, 0.01), entry(5, 0, None, 0, "too large"))
    text = chosen_because(full, CHOSEN, Item(400, 5e-4, 1e-4))
    assert text == "best of 2: 0.40 of the bytes, 0.50 of the time, error 0.02"
    untimed = row(CHOSEN, seconds=0.0)
    assert "time" not in chosen_because(untimed, CHOSEN, Item(400, 5e-4, 1e-4))


def test_what_was_rejected_says_in_what_it_is_better() -> None:
    others = [
        entry(1, 300, 4e-4, 0.5),
        entry(6, 800, 9e-4, 0.01),
        entry(7, 900, 9e-4, 0.03),
        entry(8, 0, None, 0, "svd rank 8 takes 2,000 bytes, the layer as it is 1,000"),
        entry(9, 100, None, 0.1),
    ]
    full = row(CHOSEN, *others)
    items = {
        0: Item(400, 5e-4, 4e-4),
        1: Item(300, 4e-4, 0.25),
        2: Item(800, 9e-4, 1e-4),
        3: Item(900, 9e-4, 9e-4),
    }
    found = rejected(full, items[0], items)
    assert found == {
        "svd rank 1": "smaller and faster, but costs more than that is worth: "
        "0.30 of the bytes, 0.40 of the time, error 0.5",
        "svd rank 6": "more accurate, but costs more than that is worth: "
        "0.80 of the bytes, 0.90 of the time, error 0.01",
        "svd rank 7": "better in nothing: 0.90 of the bytes, 0.90 of the time, error 0.03",
        "svd rank 8, int8": "svd rank 8 takes 2,000 bytes, the layer as it is 1,000",
        "svd rank 9": "it cannot be timed",
    }


def test_a_layer_that_is_kept_says_why() -> None:
    refused = entry(8, 0, None, 0, "too large")
    assert kept_because(row()) == "no offers"
    assert kept_because(row(refused)) == "none of 1 candidates can be had"
    assert "1 candidates cost the model more" in kept_because(row(CHOSEN, refused))
