"""Compare what compresses a real model: size, accuracy on held-out data, latency, time to make.

    python tools/measure_accuracy.py minilm
    python tools/measure_accuracy.py ocr --rows 'svd *' --json ocr.json
    python tools/measure_accuracy.py minilm --list

The first row is the original. Latency is a ratio to it, on one thread, with the quartiles of the
ratios over the rounds. A row that fails says why, and has a score if it left a file nevertheless.
`pip install 'onnxlr[measure]'` brings what the tools need.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.fetch_models import Unavailable  # noqa: E402  # the folder above must be known first
from tools.measured_files import Bench, Result  # noqa: E402
from tools.measured_rows import ROWS, Ours, Row  # noqa: E402
from tools.measured_tasks import TASKS, Task  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def choose(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """Return the rows whose names match a shell pattern, all if there is none."""
    if not patterns:
        return list(rows)
    return [row for row in rows if any(fnmatchcase(row.name, pattern) for pattern in patterns)]


def table(task: Task, results: Sequence[Result]) -> Table:
    """Lay out results; errors are below the names of their rows."""
    view = Table(title=f"{task.name}: {task.model.name}")
    view.add_column("row", overflow="fold")
    for title in ("MB", task.score_name, "latency", "quartiles", "made in s"):
        view.add_column(title, justify="right", no_wrap=True)
    for result in results:
        spread = "–"
        if result.latency_low is not None:
            spread = f"{result.latency_low:.3f}–{result.latency_high:.3f}"
        view.add_row(
            result.name
            if result.error is None
            else f"{result.name}\n[red]{_safe(result.error)}[/]",
            _number(result.megabytes, 2),
            _number(result.score, 4),
            _number(result.latency, 3),
            spread,
            _number(result.seconds, 1),
        )
    return view


def _safe(text: str) -> str:
    return text.replace("[", r"\[")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_accuracy.py",
        description="Compare what compresses a real model: size, accuracy, latency.",
        epilog="Exit status: 0 all rows were measured, 1 one or more failed, 2 wrong usage, "
        "3 the model or its data cannot be had.",
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--rows", nargs="+", default=[], metavar="PATTERN", help="rows to measure")
    parser.add_argument("--list", action="store_true", help="list the rows, measure nothing")
    parser.add_argument("--calibration", type=int, metavar="N", help="samples to calibrate with")
    parser.add_argument("--held-out", type=int, metavar="N", help="samples to measure on")
    parser.add_argument("--rounds", type=int, default=21, metavar="N", help="rounds of timing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder for the files made")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    rows = choose(ROWS[options.task], options.rows)
    if not rows:
        parser.error(f"no row matches {' '.join(options.rows)}; --list shows their names")
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more")
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    with tempfile.TemporaryDirectory(prefix="onnxlr-measure-") as scratch:
        try:
            return _run(options, rows, options.keep or Path(scratch) / "made")
        except (Unavailable, ValueError) as error:
            print(error, file=sys.stderr)
            return 3


def _run(options: argparse.Namespace, rows: Sequence[Row], folder: Path) -> int:
    counts = {"calibration": options.calibration, "held_out": options.held_out}
    task = TASKS[options.task](**{key: value for key, value in counts.items() if value})
    bench = Bench.prepare(task, folder, options.rounds)
    console = Console(stderr=True)
    results: list[Result] = []
    steps: list[Row | Callable[[], Result]] = [bench.original, *rows]
    if any(isinstance(row, Ours) and row.calibrated for row in rows):
        steps.insert(1, bench.observe)
    for number, row in enumerate(steps):
        result = row() if callable(row) else bench.measure(row, number)
        results.append(result)
        console.print(f"{result.name}: {_number(result.score, 4)}", highlight=False)
        if options.json:
            # After every row: an interrupted run keeps what it has.
            content = {
                "task": task.name,
                "score": task.score_name,
                "rows": list(map(asdict, results)),
            }
            options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    # A file has no width of its own, and 80 columns break the names.
    Console(width=None if sys.stdout.isatty() else 110).print(table(task, results))
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
