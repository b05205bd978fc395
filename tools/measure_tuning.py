"""Measure what tuning wins back of MiniLM's sentence embeddings, and how long it takes.

    python tools/measure_tuning.py
    python tools/measure_tuning.py --rows 'svd*' --train factors --json tuning.json
    python tools/measure_tuning.py --show --json tuning.json --write

Each way to rewrite the encoder's 36 products is fitted on 512 sentences, tuned on 1809 (these among
them, a twelfth held out) and measured on 300 sentences of other documents. Everything is counted in
processor time; set OMP_NUM_THREADS=1 for one core. `pip install 'onnxlr[measure,train]'` brings
what the tool needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.fetch_models import Unavailable  # noqa: E402  # the folder above must be known first
from tools.measured_files import Bench  # noqa: E402
from tools.measured_tasks import minilm_task  # noqa: E402
from tools.pages import write_section  # noqa: E402
from tools.tuning_figures import MARK, ROWS, Figure, Tuned, read, tables, tune_rows, write  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = ROOT / "docs" / "results" / "tuning.md"


def choose(patterns: Sequence[str], train: str | None) -> list[Tuned]:
    """Return the rows that were asked for."""
    return [
        row
        for row in ROWS
        if (not patterns or any(fnmatchcase(row.name, pattern) for pattern in patterns))
        and train in (None, row.train)
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_tuning.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all rows were measured, 1 one or more failed, 2 wrong usage, 3 the "
        "model or its data cannot be had.",
    )
    add = parser.add_argument
    add("--rows", nargs="+", default=[], metavar="PATTERN", help="rows to measure")
    add("--train", help="only rows that train this: scales, factors or all")
    add("--json", type=Path, metavar="FILE", help="keep the figures there; other rows stay")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the table into a page (docs/results/tuning.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    rows = choose(asked.rows, asked.train)
    if not rows:
        parser.error(f"no row matches; there are {', '.join(dict.fromkeys(r.name for r in ROWS))}")
    if asked.show and not asked.json:
        parser.error("--show needs --json")
    try:
        figures = read(asked.json) if asked.json and asked.json.exists() else []
        if not asked.show:
            figures = _measure(rows, figures, asked.json)
    except (Unavailable, ValueError) as error:
        print(error, file=sys.stderr)
        return 3
    grids = tables(figures)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for grid in grids:
        console.print(grid.table())
    for one in figures:
        if one.problem is not None:
            print(f"{one.name}, {one.train}: {one.problem}", file=sys.stderr)
    if asked.write:
        write_section(asked.write, MARK, grids)
    return 1 if any(one.problem for one in figures) else 0


def _measure(rows: Sequence[Tuned], known: Sequence[Figure], file: Path | None) -> list[Figure]:
    """Measure rows; figures of others stay, and an interrupted run keeps what it has."""
    found = {(one.name, one.train): one for one in known}
    with tempfile.TemporaryDirectory(prefix="onnxlr-measure-") as scratch:
        bench = Bench.prepare(minilm_task(), Path(scratch) / "made", rounds=2)
        bench.observe()
        for figure in tune_rows(bench, rows):
            found[figure.name, figure.train] = figure
            print(figure, file=sys.stderr, flush=True)
            if file is not None:
                write(file, _ordered(found))
    return _ordered(found)


def _ordered(found: dict[tuple[str, str], Figure]) -> list[Figure]:
    places = {(row.name, row.train): place for place, row in enumerate(ROWS)}
    return [found[key] for key in sorted(found, key=lambda key: places.get(key, len(places)))]


if __name__ == "__main__":
    sys.exit(main())
