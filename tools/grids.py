"""Tables for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """A table with its heading; a cell may carry rich's markup."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def table(self) -> Table:
        """Return it for a terminal, without the title."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for number, name in enumerate(self.header):
            table.add_column(name, justify="right" if number and name else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return it for a page."""
        lines = [f"## {self.title}", "", _line(self.header), "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *(_line(row) for row in self.rows), ""])


def _line(words: Iterable[str]) -> str:
    return f"| {' | '.join(Text.from_markup(word).plain for word in words)} |"
