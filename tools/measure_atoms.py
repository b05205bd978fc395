"""Measure sums of atoms: errors of layers, bytes in files, a whole model, and what it takes to run.

    python tools/measure_atoms.py layers
    python tools/measure_atoms.py bytes footprints --json atoms.json
    python tools/measure_atoms.py --json atoms.json --write
    python tools/measure_atoms.py --show --json atoms.json --write

Parts: `layers`, two layers of MiniLM on held-out text beside nearest rounding and sparse whole
numbers; `bytes`, what each product of MiniLM takes in the file, beside what its chain states;
`convolutions`, three of PP-OCRv4 recognition on other lines of text, beside int4 and svd; `ocr`,
all layers of that model, and what it reads; `footprints`, disk, load, memory and latency of MiniLM
with weights recombined at load and in each run. How good a whole MiniLM is, `measure_accuracy.py`
tells. With `--json`, parts that are not measured stay as the file has them. `pip install
'onnxlr[measure]'` brings what the tool needs; set OPENBLAS_NUM_THREADS=1 for times of fits that can
be compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from onnxlr.layers import find_layers  # noqa: E402  # the folder above must be known
from onnxlr.model import open_model  # noqa: E402
from tools import ocr_lines  # noqa: E402
from tools.atom_figures import (  # noqa: E402
    KERNELS,
    MATRICES,
    METHOD,
    Approximation,
    layer_errors,
)
from tools.atom_files import file_bytes, footprints  # noqa: E402
from tools.atom_tables import MARK, Document  # noqa: E402
from tools.fetch_models import Unavailable  # noqa: E402
from tools.measure_accuracy import choose  # noqa: E402
from tools.measured_files import Bench, Result  # noqa: E402
from tools.measured_rows import Ours  # noqa: E402
from tools.measured_tasks import minilm_task, ocr_task, sentences_of_lengths  # noqa: E402
from tools.minilm import LINEARS, minilm_model  # noqa: E402
from tools.pages import write_section  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tools.measured_rows import Row
    from tools.measured_tasks import Task

PARTS = ("layers", "bytes", "convolutions", "ocr", "footprints")
PAGE = ROOT / "docs" / "results" / "atoms.md"

LAYERS = ("encoder.layer.2.attention.self.query", "encoder.layer.2.intermediate.dense")
"""A square matrix, and one from 384 to 1536, in the middle of MiniLM."""

CONVOLUTIONS = ("p2o.Conv.24", "p2o.Conv.30", "p2o.Conv.33")
"""Of PP-OCRv4 recognition: 1×1 from 240 to 480 and from 480 to 480 channels, 1×3 from 480 to 60."""

_LARGE = 1 << 16
"""Entries from which on a weight's bytes are to be those that are stated."""

_INT4 = {"method": "quantize", "format": "int4", "rounding": "gptq"}

OCR_ROWS: tuple[Row, ...] = (
    Ours("int4 gptq", {**_INT4, "group_size": 0}),
    Ours("int4 b32 gptq", {**_INT4, "group_size": 32}),
    *(Ours(f"{METHOD} {bits} bits", {"method": METHOD, "bits": bits}) for bits in (3, 4)),
)

FOOTPRINT_BITS = 3.0


@dataclass
class Run:
    """What was asked, and what is found."""

    asked: argparse.Namespace
    folder: Path
    found: Document

    def measure(self, part: str) -> None:
        """Measure a part anew."""
        getattr(self, part)()

    def layers(self) -> None:
        """Measure errors of matrices."""
        self._collect("layers", self._errors(self._minilm, LAYERS, MATRICES, nearest=True))

    def bytes(self) -> None:
        """Measure what layers take in the file."""
        model = minilm_model()
        large = [
            layer.name
            for layer in find_layers(open_model(model))
            if layer.shape and prod(layer.shape) >= _LARGE and layer.name.startswith(LINEARS[:-1])
        ]
        self._collect("bytes", file_bytes(model, self.asked.layers or large, self.asked.bits))

    def convolutions(self) -> None:
        """Measure errors of convolutions."""
        self._collect("convolutions", self._errors(self._lines, CONVOLUTIONS, KERNELS))

    def ocr(self) -> None:
        """Make all files, then time them together."""
        bench, rows = self._lines, choose(OCR_ROWS, self.asked.rows)
        model = bench.task.model
        made: list[tuple[Result, Path | None]] = [(Result("original"), model)]
        bench.weigh(model, made[0][0])
        for number, row in enumerate(rows, 1):
            made.append(bench.make(row, number))
            self._collect("ocr", (result for result, _ in made))
        bench.time([(result, path) for result, path in made if path is not None])
        self._collect("ocr", (result for result, _ in made))

    def footprints(self) -> None:
        """Measure what the model takes on disk, in memory, to load and to run."""
        task = sentences_of_lengths(self._task(minilm_task))
        feeds = task.timing[:: max(len(task.timing) // 4, 1)]
        rows = footprints(task.model, self.folder, FOOTPRINT_BITS, (LINEARS,), feeds)
        self._collect("footprints", rows)

    @cached_property
    def _minilm(self) -> Bench:
        return self._observed(self._task(minilm_task))

    @cached_property
    def _lines(self) -> Bench:
        """PP-OCRv4 recognition, judged on the lines that it is to read."""
        count = self.asked.held_out or 200
        held_out = [feeds for feeds, _ in ocr_lines.batches(ocr_lines.test_lines(count))]
        return self._observed(replace(self._task(ocr_task), held_out=held_out))

    def _task(self, make: Any) -> Task:
        counts = {"calibration": self.asked.calibration, "held_out": self.asked.held_out}
        found: Task = make(**{key: value for key, value in counts.items() if value})
        return found

    def _observed(self, task: Task) -> Bench:
        bench = Bench.prepare(task, self.folder / task.name, self.asked.rounds)
        say(f"{task.name}: observed in {bench.observe().seconds:.0f} s")
        return bench

    def _errors(
        self,
        bench: Bench,
        names: Sequence[str],
        known: Sequence[Approximation],
        nearest: bool = False,
    ) -> Iterable[Any]:
        wanted = choose(known, self.asked.rows)
        names = self.asked.layers or names
        return layer_errors(bench.task, bench.statistics, names, wanted, nearest)

    def _collect(self, part: str, rows: Iterable[Any]) -> None:
        """Take rows as they come; an interrupted run keeps what it has."""
        own: list[Any] = []
        setattr(self.found, part, own)
        for row in rows:
            own.append(row)
            say(_brief(row))
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
    values = [value for value in vars(row).values() if value not in (None, ())]
    return " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _numbers(text: str) -> list[float]:
    found = [float(word) for word in text.split(",")]
    if not all(value > 0 for value in found):
        raise ValueError
    return found


_numbers.__name__ = "list of numbers above 0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_atoms.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all was measured, 1 a fit was refused or a row failed, 2 wrong "
        "usage, 3 a model or its data cannot be had.",
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    rows = "of layers, convolutions and ocr: approximations to measure"
    add("--rows", nargs="+", default=[], metavar="PATTERN", help=rows)
    add("--layers", nargs="+", metavar="NAME", help="of layers, bytes and convolutions: which")
    bits = "of bytes: for each entry of a weight (default 2,3.3,4)"
    add("--bits", type=_numbers, default=[2.0, 3.3, 4.0], help=bits)
    add("--calibration", type=int, metavar="N", help="samples to calibrate with")
    add("--held-out", type=int, metavar="N", help="samples to measure on")
    add("--rounds", type=int, default=21, metavar="N", help="of ocr: rounds of timing files")
    add("--json", type=Path, metavar="FILE", help="keep the figures there")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the tables into a page (docs/results/atoms.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    return parser


def _check(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> list[str]:
    """Return the parts to measure; leaves with status 2 where something cannot be followed."""
    if unknown := [part for part in asked.parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if asked.show and (asked.parts or not asked.json):
        parser.error("--show takes no parts, and needs --json")
    if asked.rounds < 2:
        parser.error("--rounds must be 2 or more")
    known = [*MATRICES, *KERNELS, *OCR_ROWS]
    if not choose(known, asked.rows):
        names = ", ".join(dict.fromkeys(each.name for each in known))
        parser.error(f"no approximation matches {' '.join(asked.rows)}; there are {names}")
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
    for part in parts:
        run.measure(part)
    console = Console(width=None if sys.stdout.isatty() else 200)
    grids = run.found.grids()
    for grid in grids:
        console.print(f"[bold]{grid.title}[/]", grid.table(), "", sep="\n")
    if run.asked.write:
        write_section(run.asked.write, MARK, grids)
    errors = [row.problem for row in (*run.found.layers, *run.found.convolutions)]
    errors += [row.error for row in run.found.ocr]
    return 1 if any(errors) else 0


if __name__ == "__main__":
    sys.exit(main())
