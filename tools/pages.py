"""Tables inside pages of `docs/results/`, which tools write anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.grids import Grid

__all__ = ["end_of", "write_section"]


def end_of(mark: str) -> str:
    """Return the line that ends the section that begins with a mark."""
    return mark.replace("<!-- ", "<!-- end of ")


def write_section(page: Path, mark: str, grids: Sequence[Grid]) -> None:
    """Put tables between two lines of a page; everything else stays.

    Parameters
    ----------
    page
        The file. One that is not there is begun with the section alone.
    mark
        The line, a comment, that the section begins with.
    grids
        What goes there.

    Raises
    ------
    ValueError
        If the page has no such section.
    """
    end = end_of(mark)
    text = page.read_text(encoding="utf-8") if page.exists() else f"{mark}\n{end}\n"
    before, found, rest = text.partition(mark)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} has no lines '{mark}' and '{end}', between which the tables go")
    tables = "\n".join(grid.markdown() for grid in grids)
    page.write_text(f"{before}{mark}\n\n{tables}\n{end}{after}", encoding="utf-8")
