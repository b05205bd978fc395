"""Measure the ternary methods: errors, the time of a fit, and a whole model beside its peers.

    python tools/measure_ternary.py gaussian layers
    python tools/measure_ternary.py minilm --rows 'ORT *' 'ternary_svd 2*' --json ternary.json
    python tools/measure_ternary.py --json ternary.json --write
    python tools/measure_ternary.py --show --json ternary.json --write

Parts: `gaussian`, matrices that no structure helps, beside reference figures; `layers`, three
layers of MiniLM on held-out text; `time`, a fit of a large matrix between decompositions of it by
numpy; `minilm`, all 36 products of the encoder, whose files are timed together: in turn, on one
thread. All parts are an hour. With `--json`, parts that are not measured stay as the file has them.
`pip install 'onnxlr[measure]'` brings what the tool needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from onnxlr.runtime.library import describe_ops  # noqa: E402  # the folder above must be known
from tools import ternary_figures as figures  # noqa: E402
from tools.fetch_models import Unavailable  # noqa: E402
from tools.measure_accuracy import choose  # noqa: E402
from tools.measured_files import Bench, Result  # noqa: E402
from tools.measured_rows import TERNARY_ROWS  # noqa: E402
from tools.measured_tasks import minilm_task, sentences_of_lengths  # noqa: E402
from tools.pages import write_section  # noqa: E402
from tools.ternary_tables import MARK, Document  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PARTS = ("gaussian", "layers", "time", "minilm")
PAGE = ROOT / "docs" / "results" / "ternary.md"


@dataclass
class Run:
    """What was asked, and what is found."""

    asked: argparse.Namespace
    folder: Path
    found: Document

    @cached_property
    def bench(self) -> Bench:
        """MiniLM, with its layers' inputs observed."""
        counts = {"calibration": self.asked.calibration, "held_out": self.asked.held_out}
        task = minilm_task(**{key: value for key, value in counts.items() if value})
        task = sentences_of_lengths(task)
        bench = Bench.prepare(task, self.folder / "made", self.asked.rounds)
        say(f"observed in {bench.observe().seconds:.0f} s")
        return bench

    def measure(self, part: str) -> None:
        """Measure a part anew."""
        getattr(self, part)()

    def gaussian(self) -> None:
        """Measure errors of Gaussian matrices."""
        rows = figures.gaussian_errors(self.asked.sizes, self.asked.trits)
        self._collect("gaussian", rows)

    def layers(self) -> None:
        """Measure errors of single layers."""
        self._collect("layers", figures.layer_errors(self.bench))

    def time(self) -> None:
        """Measure how long a fit takes."""
        asked = self.asked
        self._collect("time", [figures.time_fit(asked.fit_size, 2.0, asked.fit_rounds)])

    def minilm(self) -> None:
        """Make all files, then time them together."""
        bench, rows = self.bench, choose(TERNARY_ROWS, self.asked.rows)
        model = bench.task.model
        made: list[tuple[Result, Path | None]] = [(Result("original"), model)]
        bench.weigh(model, made[0][0])
        for number, row in enumerate(rows, 1):
            made.append(bench.make(row, number))
            self._collect("minilm", (result for result, _ in made), quiet=True)
            say(f"{row.name}: {_outcome(made[-1][0])}")
        say("timing")
        bench.time([(result, path) for result, path in made if path is not None])
        self._collect("minilm", (result for result, _ in made), quiet=True)

    def _collect(self, part: str, rows: Iterable[Any], quiet: bool = False) -> None:
        """Take rows as they come; an interrupted run keeps what it has."""
        own: list[Any] = []
        setattr(self.found, part, own)
        for row in rows:
            own.append(row)
            if not quiet:
                say(_brief(row))
                self.save()
        self.save()

    def save(self) -> None:
        """Write what there is, if it was asked for."""
        if self.asked.json:
            self.found.write(self.asked.json)


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def _brief(row: Any) -> str:
    """Return a figure's fields in one line."""
    values = vars(row).values()
    return " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _outcome(result: Result) -> str:
    if result.error is not None:
        return result.error
    return f"cosine {result.score:.4f}, {result.megabytes:.2f} MB, made in {result.seconds:.0f} s"


def _numbers(kind: type[int | float]) -> Any:
    def read(text: str) -> list[Any]:
        found = [kind(word) for word in text.split(",")]
        if not all(value > 0 for value in found):
            raise ValueError
        return found

    read.__name__ = "list of numbers above 0"
    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_ternary.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all was measured, 1 a row of the model failed, 2 wrong usage, "
        "3 the model or its data cannot be had.",
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    add("--rows", nargs="+", default=[], metavar="PATTERN", help="of minilm, rows to measure")
    add("--sizes", type=_numbers(int), default=[384, 768], help="of gaussian (default 384,768)")
    add("--trits", type=_numbers(float), default=[1, 2, 3, 4], help="of gaussian, for each entry")
    add("--fit-size", type=int, default=4096, metavar="N", help="of time (default 4096)")
    add("--fit-rounds", type=int, default=2, metavar="N", help="of time: fits (default 2)")
    add("--calibration", type=int, metavar="N", help="sentences to calibrate with (default 512)")
    add("--held-out", type=int, metavar="N", help="sentences to measure on (default 300)")
    add("--rounds", type=int, default=31, metavar="N", help="rounds of timing files (default 31)")
    add("--json", type=Path, metavar="FILE", help="keep the figures there")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the tables into a page (docs/results/ternary.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    return parser


def _check(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> list[str]:
    """Return the parts to measure; leaves with status 2 where something cannot be followed."""
    if unknown := [part for part in asked.parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if asked.show and (asked.parts or not asked.json):
        parser.error("--show takes no parts, and needs --json")
    if min(asked.rounds, asked.fit_rounds + 1) < 2:
        parser.error("--rounds must be 2 or more, --fit-rounds 1 or more")
    if not choose(TERNARY_ROWS, asked.rows):
        names = ", ".join(row.name for row in TERNARY_ROWS)
        parser.error(f"no row matches {' '.join(asked.rows)}; there are {names}")
    return [] if asked.show else [part for part in PARTS if part in (asked.parts or PARTS)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    parts = _check(parser, asked)
    with tempfile.TemporaryDirectory(prefix="onnxlr-measure-") as scratch:
        try:
            found = Document.read(asked.json) if asked.json and asked.json.exists() else Document()
            return _run(Run(asked, Path(scratch), found), parts)
        except (Unavailable, ValueError) as error:
            print(error, file=sys.stderr)
            return 3


def _run(run: Run, parts: Sequence[str]) -> int:
    if "minilm" in parts and (problem := describe_ops().problem):
        say(f"{problem}; what ternary nodes take without the library is their functions' time")
    for part in parts:
        run.measure(part)
    console = Console(width=None if sys.stdout.isatty() else 120)
    grids = run.found.grids()
    for grid in grids:
        console.print(f"[bold]{grid.title}[/]", grid.table(), "", sep="\n")
    if run.asked.write:
        write_section(run.asked.write, MARK, grids)
    return 1 if any(result.error for result in run.found.minilm) else 0


if __name__ == "__main__":
    sys.exit(main())
