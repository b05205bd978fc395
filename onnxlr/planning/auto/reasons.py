"""Why a candidate was chosen, and why the others were not."""

from __future__ import annotations

from collections.abc import Mapping

from onnxlr.planning.auto.solving import Item
from onnxlr.planning.auto.table import Entry, Row

__all__ = ["chosen_because", "kept_because", "rejected"]


def chosen_because(row: Row, entry: Entry, item: Item) -> str:
    """Return what speaks for a candidate."""
    return f"best of {len(row.possible) + 1}: {_numbers(row, entry.error, item)}"


def kept_because(row: Row) -> str:
    """Return why a layer is best kept."""
    if not row.possible:
        return f"none of {len(row.entries)} candidates can be had" if row.entries else "no offers"
    return f"best kept: {len(row.possible)} candidates cost the model more than they save"


def rejected(row: Row, chosen: Item, items: Mapping[int, Item]) -> dict[str, str]:
    """Return by candidate why it was not chosen.

    Parameters
    ----------
    chosen
        What was taken.
    items
        What each of the row's entries takes, by its place; without those that cannot be had.
    """
    reasons: dict[str, str] = {}
    for place, entry in enumerate(row.entries):
        name = entry.candidate.choice.summary
        if entry.candidate.refused is not None:
            request = entry.candidate.request
            kind = "" if request.format is None else f", {request.format}"
            name = f"{request.method} {request.options}{kind}".replace(" ,", ",")
        if place not in items:
            reasons[name] = entry.problem or "it cannot be measured"
        elif items[place] != chosen:
            reasons[name] = _beside(row, entry, items[place], chosen)
    return reasons


def _beside(row: Row, entry: Entry, item: Item, chosen: Item) -> str:
    """Return how a candidate compares with the one that was chosen."""
    better = [
        word
        for word, mine, other in (
            ("smaller", item.size, chosen.size),
            ("faster", item.seconds, chosen.seconds),
            ("more accurate", item.damage, chosen.damage),
        )
        if mine < other
    ]
    numbers = _numbers(row, entry.error, item)
    if not better:
        return f"better in nothing: {numbers}"
    return f"{' and '.join(better)}, but costs more than that is worth: {numbers}"


def _numbers(row: Row, error: float | None, item: Item) -> str:
    parts = [f"{item.size / row.size:.2f} of the bytes"]
    if row.seconds > 0:
        parts.append(f"{item.seconds / row.seconds:.2f} of the time")
    if error is not None:
        parts.append(f"error {error:.3g}")
    return ", ".join(parts)
