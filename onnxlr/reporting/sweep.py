"""A sweep for a terminal: every model that was compared, and a chart of size against drop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from math import ceil, floor, log10
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

from rich.console import Console

from onnxlr.planning import SweepPoint, SweepResult
from onnxlr.reporting.cells import number_of, shown, size_of, table_of

__all__ = ["chart_of", "marks_of", "print_sweep", "summarise_sweep"]

_MARKS = {
    "original": "O",
    "planned": digits[1:] + ascii_uppercase.replace("O", ""),
    "stock": ascii_lowercase,
}
_COLUMNS, _ROWS, _LEAST = 60, 13, 24
_LEFT, _MORE = 7, 4
"""Columns of the chart before the axis of sizes, and for labels behind that of drops."""

_ZERO = 3
"""Columns between a drop of nothing and the least that is more: drops lie on a logarithmic axis."""


def summarise_sweep(result: SweepResult) -> dict[str, Any]:
    """Return a sweep as JSON values; of plans only the files, as they are long."""
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    names = [field.name for field in fields(SweepPoint) if field.name != "plan"]
    values["points"] = [_plain(point, names) for point in result.points]
    return values


def _plain(point: SweepPoint, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(point, name) for name in names}
    return values | {"plan_file": None if point.plan_file is None else str(point.plan_file)}


def print_sweep(console: Console, result: SweepResult) -> None:
    """Print a line for each model that was compared, those on the front marked, and a chart."""
    console.print(
        f"[bold]{shown(result.model)}[/]  least {shown(_WORDS[result.goal])} for each drop of "
        f"{shown(result.measure)}"
    )
    marks = marks_of(result.points)
    table = table_of(
        "", "model", "size", "of it", "time of it", "drop", "front", right=_NUMBERS, names=1
    )
    for mark, point in zip(marks, result.points, strict=True):
        if point.problem is None:
            table.add_row(
                mark,
                shown(point.name),
                "" if point.bytes is None else size_of(point.bytes),
                number_of(point.size, ".3f"),
                _latency(point),
                number_of(point.drop, ".3g"),
                "[green]yes[/]" if point.on_front else "",
            )
    console.print(table)
    for point in result.points:
        if point.problem is not None:
            console.print(f"[dim]{shown(point.name)}: {shown(point.problem)}[/]")
    console.print(
        "[dim]of it: of the original's, with quartiles; times are of one run on one thread, in one "
        "race; front: no other is better in size, time or drop without being worse in another[/]"
    )
    for line in chart_of(result, min(_COLUMNS, console.width - _LEFT - _MORE)):
        console.print(shown(line), highlight=False, no_wrap=True)
    cached = f", {result.from_cache} of them from the cache" if result.from_cache else ""
    console.print(
        f"[dim]{result.candidates} candidates of layers were measured{cached}, and {result.built} "
        f"models built[/]"
    )


_WORDS = {"size": "size", "latency": "time", "balanced": "size and time"}
_NUMBERS = ("size", "of it", "time of it", "drop")


def _latency(point: SweepPoint) -> str:
    if point.latency is None:
        return ""
    if point.latency_low is None or point.latency_high is None:
        return f"{point.latency:.3f}"
    return f"{point.latency:.3f} ({point.latency_low:.3f}–{point.latency_high:.3f})"


def marks_of(points: Sequence[SweepPoint]) -> list[str]:
    """Return a letter or digit for each point: digits are plans; `*` where they run out."""
    left = {kind: iter(marks) for kind, marks in _MARKS.items()}
    return [next(left[point.kind], "*") for point in points]


def chart_of(result: SweepResult, columns: int = _COLUMNS) -> list[str]:
    """Return lines of text: size from the bottom up, the drop from left to right, a mark a model.

    Where marks meet, the first in the order of the points is shown: those of plans before stock.
    """
    found = [
        (mark, point.size, point.drop)
        for mark, point in zip(marks_of(result.points), result.points, strict=True)
        if point.size is not None and point.drop is not None
    ]
    positive = [drop for _, _, drop in found if drop > 0]
    if not positive:
        return []
    low, high = floor(log10(min(positive))), ceil(log10(max(positive)))
    axis = _Axis(low, max(high, low + 1), max(columns, _LEAST))
    top = max(size for _, size, _ in found)
    cells: dict[tuple[int, int], str] = {}
    for mark, size, drop in found:
        cells.setdefault((round((_ROWS - 1) * (1 - size / top)), axis.column(drop)), mark)
    title = f"{' ' * _LEFT}size of the original's (the first where marks meet)"
    return ["", title, *_body(cells, top, axis.columns), *axis.lines(result.measure)]


def _body(cells: Mapping[tuple[int, int], str], top: float, columns: int) -> Iterator[str]:
    for row in range(_ROWS):
        label = f"{top * (1 - row / (_ROWS - 1)):.2f}" if row % 3 == 0 else ""
        line = "".join(cells.get((row, column), " ") for column in range(columns))
        yield f"{label:>{_LEFT - 1}} |{line}".rstrip()


class _Axis:
    """The axis of drops: whole powers of ten, and nothing at all on the left."""

    def __init__(self, low: int, high: int, columns: int) -> None:
        self._low, self._high, self.columns = low, high, columns

    def column(self, drop: float) -> int:
        """Return where a drop is."""
        if drop <= 0:
            return 0
        part = (log10(drop) - self._low) / (self._high - self._low)
        return _ZERO + round(part * (self.columns - 1 - _ZERO))

    def lines(self, measure: str) -> list[str]:
        """Return the axis and its labels."""
        rule, labels = ["-"] * self.columns, [" "] * (self.columns + 8)
        rule[0], labels[0] = "+", "0"
        free = 2
        for power in range(self._low, self._high + 1):
            place, text = self.column(10.0**power), f"{10.0**power:g}"
            rule[place] = "+"
            if place >= free:
                labels[place : place + len(text)] = text
                free = place + len(text) + 1
        left = " " * _LEFT
        return [
            f"{left}+{''.join(rule)}",
            f"{left} {''.join(labels)}".rstrip(),
            f"{left} drop of {measure}",
        ]
