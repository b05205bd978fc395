"""Cells and tables that results have in common, safe for a terminal."""

from __future__ import annotations

from collections import Counter
from math import isfinite, isnan

from rich.console import Console
from rich.markup import escape

from onnxlr.reporting.layout import NamedTable

__all__ = [
    "MOST",
    "count_of",
    "number_of",
    "print_reasons",
    "shape_of",
    "shown",
    "size_of",
    "table_of",
]

MOST = 10
"""Most lines of a list, the worst or the most frequent first."""


def shown(text: str) -> str:
    """Return text of a model or a path for rich: no markup, no control characters in it."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def table_of(*columns: str, right: tuple[str, ...] | None = None, names: int = 0) -> NamedTable:
    """Return an empty table.

    Parameters
    ----------
    columns
        Their titles.
    right
        Which are columns of numbers; all but the first and that of names if not given.
    names
        Position of the column of names that may be long.
    """
    numbers = columns if right is None else right
    return NamedTable(
        columns,
        [
            position not in (0, names) and column in numbers
            for position, column in enumerate(columns)
        ],
        names,
    )


def shape_of(shape: tuple[int, ...] | None) -> str:
    """Return `384×1536`, nothing for None."""
    return "×".join(map(str, shape)) if shape else ""


def size_of(count: int) -> str:
    """Return a number of bytes: 1.5 kB."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.2f} MB"


def number_of(value: float | None, form: str = ".2g") -> str:
    """Return a number, nothing for None and NaN."""
    if value is None or isnan(value):
        return ""
    return format(value, form) if isfinite(value) else ("∞" if value > 0 else "−∞")


def count_of(count: int) -> str:
    """Return a count with three digits and a unit: 1.18 M."""
    rest, unit = float(count), ""
    for unit in ("", " k", " M", " G", " T"):
        if rest < 999.5 or unit == " T":
            break
        rest /= 1000
    return f"{rest:.3g}{unit}"


def print_reasons(console: Console, reasons: list[str], what: str = "left alone") -> None:
    """Print how many layers were `what`, and for which reasons how often."""
    if not reasons:
        return
    general = Counter(_general(reason) for reason in reasons)
    console.print(f"{len(reasons)} layer{'s' if len(reasons) != 1 else ''} {what}:")
    for reason, number in general.most_common(MOST):
        console.print(f"  {number} × {shown(reason)}")
    if len(general) > MOST:
        console.print(f"  and {len(general) - MOST} more reasons (--json lists all)")


def _general(reason: str) -> str:
    """Return a reason without the figures of one layer: like reasons are counted together."""
    if " bytes, the layer as it is " in reason:
        return "the factors would take more bytes than the layer as it is"
    return reason
