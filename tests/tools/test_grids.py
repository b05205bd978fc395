"""Tests of `tools/grids.py`."""

from __future__ import annotations

from rich.console import Console

from tools.grids import Grid


def test_a_grid_is_the_same_on_a_page_and_in_a_terminal_but_for_the_markup():
    grid = Grid("Things", ["", "M=1"], [["one", "[red]2 > 1[/]"], ["long name", r"\[3]"]])
    assert grid.markdown().splitlines() == [
        "## Things",
        "",
        "|  | M=1 |",
        "|---|---|",
        "| one | 2 > 1 |",
        "| long name | [3] |",
    ]
    console = Console(width=40)
    with console.capture() as capture:
        console.print(grid.table())
    assert [line.split() for line in capture.get().splitlines()] == [
        ["M=1"],
        ["one", "2", ">", "1"],
        ["long", "name", "[3]"],
    ]
