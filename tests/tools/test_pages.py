"""Tests of `tools/pages.py`."""

from __future__ import annotations

import pytest

from tools.grids import Grid
from tools.pages import end_of, write_section

ONE, TWO = "<!-- tables by one -->", "<!-- tables by two -->"
GRID = Grid("A title", ["", "b"], [["x", "1"]])
MADE = "## A title\n\n|  | b |\n|---|---|\n| x | 1 |\n"


def test_what_is_around_a_section_stays(tmp_path):
    page = tmp_path / "page.md"
    other = f"{TWO}\nother tables\n{end_of(TWO)}\nlast words\n"
    page.write_text(f"# Words\n\n{ONE}\nold tables\n{end_of(ONE)}\n\nbetween\n\n{other}")
    write_section(page, ONE, [GRID])
    expected = f"# Words\n\n{ONE}\n\n{MADE}\n{end_of(ONE)}\n\nbetween\n\n{other}"
    assert page.read_text() == expected
    write_section(page, ONE, [GRID])
    assert page.read_text() == expected


def test_a_page_that_is_not_there_is_the_section(tmp_path):
    page = tmp_path / "page.md"
    write_section(page, ONE, [GRID, GRID])
    assert page.read_text() == f"{ONE}\n\n{MADE}\n{MADE}\n{end_of(ONE)}\n"


@pytest.mark.parametrize("text", ["# Words\n", f"{ONE}\ntables\n", f"{end_of(ONE)}\n{ONE}\n"])
def test_a_page_without_the_section_is_refused(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="has no lines"):
        write_section(page, ONE, [GRID])
    assert page.read_text() == text
