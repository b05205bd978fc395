"""Measure tensor decompositions beside svd: errors on photographs, and times of chains.

    python tools/measure_tensors.py layers
    python tools/measure_tensors.py latency matrices --rows 'tucker*' svd --json tensors.json
    python tools/measure_tensors.py --json tensors.json --write
    python tools/measure_tensors.py --show --json tensors.json --write

Parts: `layers`, 3×3 convolutions of open_nsfw fitted to the weight alone and to photographs, judged
on other photographs; `latency`, chains for three of them in ONNX Runtime beside the original, on
data of the model's size; `matrices`, the same for two matrices of MiniLM. Files are timed in turn,
on one thread. Counts of multiplications stand beside times, and are none. With `--json`, parts that
are not measured stay as the file has them. `pip install 'onnxlr[measure]'` brings what the tool
needs; set OPENBLAS_NUM_THREADS=1 for times of fits that can be compared.
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

from onnxlr.layers import find_layers, read_weight  # noqa: E402  # the folder above must be known
from onnxlr.model import open_model  # noqa: E402
from tools.fetch_models import Unavailable, fetch  # noqa: E402
from tools.minilm import minilm_model  # noqa: E402
from tools.pages import write_section  # noqa: E402
from tools.photographs import calibration_photographs, held_out_photographs  # noqa: E402
from tools.tensor_figures import (  # noqa: E402
    KERNELS,
    MATRICES,
    Approximation,
    choose,
    chosen_layers,
    layer_errors,
    present,
)
from tools.tensor_latency import Product, time_chains  # noqa: E402
from tools.tensor_tables import MARK, Document  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onnxlr.layers import Layer

PARTS = ("layers", "latency", "matrices")
PAGE = ROOT / "docs" / "results" / "tensors.md"

LAYERS = ("Conv__498", "Conv__514", "Conv__570", "Conv__478", "Conv__554", "Conv__580")
"""3×3 layers of open_nsfw of 64, 128 and 256 channels: those whose errors by svd and Tucker come
closest to the figures known of this model, and others of the same sizes."""

TIMED = LAYERS[:3]

ENCODER = ("encoder.layer.2.attention.self.query", "encoder.layer.2.intermediate.dense")
"""A square matrix, and one from 384 to 1536, in the middle of MiniLM."""

ROWS = (32, 128)


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
        """Measure errors of convolutions."""
        wanted = self._wanted(KERNELS)
        photographs = calibration_photographs(), held_out_photographs()
        names = self.asked.layers or LAYERS
        rows = layer_errors(self._nsfw, *photographs, names, wanted, self.asked.ratio)
        self._collect("layers", rows)

    def latency(self) -> None:
        """Time chains in place of convolutions."""
        products = [
            Product(f"{layer.name}, {_sizes(layer.shape)}", weight, (_data_of(layer),))
            for layer, weight in _weights(self._nsfw, self.asked.layers or TIMED)
        ]
        self._time("latency", products, KERNELS, [self.asked.ratio])

    def matrices(self) -> None:
        """Time chains in place of matrices."""
        products = [
            Product(
                f"{layer.name}, {_sizes(layer.shape)}",
                weight,
                tuple((rows, weight.shape[0]) for rows in ROWS),
            )
            for layer, weight in _weights(minilm_model(), ENCODER)
        ]
        self._time("matrices", products, MATRICES, [self.asked.ratio, self.asked.ratio / 2])

    @cached_property
    def _nsfw(self) -> Path:
        return fetch("open-nsfw")

    def _wanted(self, known: Iterable[Approximation]) -> list[Approximation]:
        """Return what to make: of what is asked for, that whose method is there."""
        asked = choose(known, self.asked.rows)
        there = present(asked)
        if absent := {each.method for each in asked} - {each.method for each in there}:
            say(f"not there: {', '.join(sorted(absent))}")
        return there

    def _time(
        self,
        part: str,
        products: Sequence[Product],
        known: Iterable[Approximation],
        ratios: Sequence[float],
    ) -> None:
        wanted = self._wanted(known)

        def rows() -> Iterable[Any]:
            for product in products:
                for ratio in ratios:
                    with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                        yield from time_chains(
                            product, wanted, ratio, Path(scratch), self.asked.rounds
                        )

        self._collect(part, rows())

    def _collect(self, part: str, rows: Iterable[Any]) -> None:
        """Take rows as they come; an interrupted run keeps what it has."""
        own: list[Any] = []
        setattr(self.found, part, own)
        for row in rows:
            own.append(row)
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
    values = [value for value in vars(row).values() if value is not None]
    return " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _weights(model: Path, names: Sequence[str]) -> list[tuple[Layer, Any]]:
    opened = open_model(model)
    layers = chosen_layers(find_layers(opened), names)
    return [(layer, read_weight(opened, layer)) for layer in layers]


def _data_of(layer: Layer) -> tuple[int, ...]:
    """Return the shape of one image's data where the layer is."""
    dims = layer.sites[0].data_dims or ()
    sizes = dims[1:]
    if not sizes or not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"the model does not say what data {layer.name} has")
    return (1, *(int(size) for size in sizes if size is not None))


def _sizes(shape: Sequence[int] | None) -> str:
    return "×".join(map(str, shape or ()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_tensors.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all was measured, 1 a fit was refused, 2 wrong usage, 3 a model or "
        "its data cannot be had.",
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    add("--rows", nargs="+", default=[], metavar="PATTERN", help="approximations to measure")
    names = f"of open_nsfw (default {' '.join(LAYERS)}; of latency the first three)"
    add("--layers", nargs="+", metavar="NAME", help=names)
    add("--ratio", type=float, default=0.5, help="stored numbers for each weight (default .5)")
    add("--rounds", type=int, default=31, metavar="N", help="rounds of timing files (default 31)")
    add("--json", type=Path, metavar="FILE", help="keep the figures there")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the tables into a page (docs/results/tensors.md, if none is named)"
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
    if not 0 < asked.ratio < 1:
        parser.error("--ratio must be above 0 and below 1")
    if not choose([*KERNELS, *MATRICES], asked.rows):
        names = ", ".join(dict.fromkeys(each.name for each in [*KERNELS, *MATRICES]))
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
    rows = [*run.found.layers, *run.found.latency, *run.found.matrices]
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
