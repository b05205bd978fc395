"""Tables with one column of long names, at any width of a terminal: nothing in them is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["NamedTable"]

_INDENT = 2
_GAP = 2
_WORDS = 24
"""Columns that text beside names gets before names get theirs."""
_LEAST = 16
"""Columns of names below which each name gets a line of its own."""
_SHORT = 12
"""Columns up to which names are none that may be long, and stay beside their numbers."""


@dataclass(frozen=True)
class _Column:
    """How wide a column is, and can be without breaking what belongs together."""

    natural: int
    kept: int
    least: int

    @classmethod
    def of(cls, title: str, cells: Sequence[Text], number: bool) -> _Column:
        """Numbers keep to one line, but for what is in brackets behind them."""
        natural = max([len(title), *(cell.cell_len for cell in cells)])
        if not number:
            return cls(natural, min(natural, _WORDS), min(natural, _WORDS))
        if not any(" (" in cell.plain for cell in cells):
            return cls(natural, natural, natural)
        words = [len(word) for cell in cells for word in cell.plain.split()]
        return cls(natural, natural, max(len(title), *words))


@dataclass
class NamedTable:
    """A table for `Console.print`.

    Names are folded where they fit in two lines. Where they do not, each stands on a line of its
    own above its numbers.

    Attributes
    ----------
    titles
        Of the columns.
    right
        Whether a column is one of numbers, aligned to the right.
    long
        Position of the column of names.
    rows
        Cells in rich's markup.
    """

    titles: Sequence[str]
    right: Sequence[bool]
    long: int
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row of cells in rich's markup."""
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """Lay the table out in the width there is."""
        cells = [[Text.from_markup(cell, emoji=False) for cell in row] for row in self.rows]
        columns = [
            _Column.of(title, [row[i] for row in cells], self.right[i])
            for i, title in enumerate(self.titles)
        ]
        if columns[self.long].natural <= _SHORT:
            gap, widths = _fitting(columns, options.max_width)
            yield self._grid(widths, range(len(columns)), [self._header(), *cells], gap)
            return
        beside = self._widths_beside(columns, options.max_width)
        if beside is not None:
            yield self._grid(beside, range(len(columns)), [self._header(), *cells])
        else:
            yield from self._stacked(columns, cells, options.max_width)

    def _header(self) -> list[Text]:
        return [Text(title, style="bold") for title in self.titles]

    @property
    def _others(self) -> list[int]:
        return [i for i in range(len(self.titles)) if i != self.long]

    def _widths_beside(self, columns: Sequence[_Column], width: int) -> list[int] | None:
        """Return widths with names in a column of their own, None where it gets too narrow."""
        room = width - _GAP * len(self._others)
        longest = columns[self.long].natural
        least = min(longest, max(_LEAST, -(-longest // 2)))
        for rest in ("kept", "least"):  # numbers in one line, if names then fit in two
            most = room - sum(getattr(columns[i], rest) for i in self._others)
            if most >= least:
                break
        else:
            return None
        own = min(longest, most)
        beside = [columns[i] for i in self._others]
        widths = _shrunk([column.natural for column in beside], beside, room - own)
        return [*widths[: self.long], own, *widths[self.long :]]

    def _stacked(
        self, columns: Sequence[_Column], cells: Sequence[Sequence[Text]], width: int
    ) -> Iterator[Table | Text]:
        """Yield names on lines of their own; rows one after the other of one name share it."""
        others = self._others
        gap, widths = _fitting([columns[i] for i in others], width - _INDENT)
        header = self._header()
        yield header[self.long]
        yield self._grid(widths, others, [[header[i] for i in others]], gap, _INDENT)
        for _, same in groupby(cells, lambda row: row[self.long].plain):
            rows = list(same)
            yield rows[0][self.long]
            picked = [[row[i] for i in others] for row in rows]
            yield self._grid(widths, others, picked, gap, _INDENT)

    def _grid(
        self,
        widths: Sequence[int],
        columns: Sequence[int],
        rows: Sequence[Sequence[RenderableType]],
        gap: int = _GAP,
        indent: int = 0,
    ) -> Table:
        # Gaps are columns: versions of rich count padding differently.
        grid = Table.grid(padding=0, pad_edge=False)
        spaces = [indent, *[gap] * (len(widths) - 1)]
        for space, width, column in zip(spaces, widths, columns, strict=True):
            if space:
                grid.add_column(width=space)
            justify = "right" if self.right[column] else "left"
            grid.add_column(width=width, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in rows:
            parts = [part for cell in row for part in ("", cell)]
            grid.add_row(*parts[0 if indent else 1 :])
        return grid


def _fitting(columns: Sequence[_Column], width: int) -> tuple[int, list[int]]:
    """Return the gap between columns, smaller where nothing would be broken then, and widths."""
    between = len(columns) - 1
    gap = _GAP if sum(column.least for column in columns) + _GAP * between <= width else 1
    natural = [column.natural for column in columns]
    return gap, _shrunk(natural, columns, width - gap * between)


def _shrunk(widths: Sequence[int], columns: Sequence[_Column], room: int) -> list[int]:
    """Return widths that fit: the widest that can is made narrower first, all in the end."""
    found = list(widths)
    while sum(found) > room and max(found) > 1:
        able = [i for i, column in enumerate(columns) if found[i] > column.least]
        widest = max(able or range(len(found)), key=lambda i: found[i])
        found[widest] -= 1
    return found
