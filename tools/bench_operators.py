"""Compare the op library's kernels with what ONNX Runtime ships: time of one node, one thread.

    python tools/bench_operators.py --quick
    python tools/bench_operators.py --shapes 384x384,768x3072 --rows 1,32 --isas amx --groups 128
    python tools/bench_operators.py --convolutions --json operators.json --markdown operators.md

Everything runs in one process, in rounds of all contenders in turn, through sessions of ONNX
Runtime on chains of nodes with weights of their own; `768x3072` goes there and back. Up to 32 rows
a chain's packed codes are at least as many megabytes as `--megabytes` says, so that even the
smallest weights come from beyond the nearest caches. Each output is compared with numpy's before it
is timed. Times are CPU time of the thread, ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from onnxlr.runtime.library import describe_ops  # noqa: E402  # the folder above must be known
from tools import operator_tables as tables  # noqa: E402
from tools.grids import Grid  # noqa: E402
from tools.operator_chains import model_of, open_session  # noqa: E402
from tools.operator_contenders import PEERS, Contender, DynamicInt8, Ternary  # noqa: E402
from tools.operator_convolutions import time_convolutions  # noqa: E402
from tools.operator_tables import Cell  # noqa: E402
from tools.operator_timing import Bench, Effort, bench_scaling, say  # noqa: E402

T = TypeVar("T")

SHAPES = "384x384,768x768,768x3072,1024x1024,2048x2048,4096x4096"
QUICK_SHAPES = "384x384,768x3072,4096x4096"
ALL_PEERS = "4-bit,2-bit,int8,fp32"
QUICK_PEERS = "4-bit,2-bit,int8"
ROWS = "1,8,32,128,512"


def int8_is_fused() -> bool:
    """Say whether this ONNX Runtime makes one node of dynamic int8."""
    pieces = [DynamicInt8().piece(np.random.default_rng(0), 64, 64, place) for place in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/optimized.onnx"
        open_session(model_of(pieces, (64,), (64,)), optimized=file)
        return {node.op_type for node in onnx.load(file).graph.node} == {"DynamicQuantizeMatMul"}


def choose_isas(asked: list[str] | None) -> list[str]:
    """Return the instruction sets to force: those asked, or those here that have targets.

    Raises
    ------
    SystemExit
        If the op library cannot be used.
    """
    if asked is not None:
        return asked
    known = describe_ops()
    if known.problem:
        sys.exit(f"{known.problem}; --isas '' times ONNX Runtime's operators only.")
    with_targets = {isa for isa, _ in tables.TARGETS}
    return [isa for isa in known.available if isa in with_targets] or list(known.available)


def show(
    cells: Sequence[Cell], convolutions: Sequence[Cell], scaling: Sequence[Cell]
) -> list[Grid]:
    """Return all tables: times, ratios that have a target, shares, the others, and the means."""
    grids = [
        tables.times_grid(cells, "Microseconds of one product"),
        *(tables.ratio_grid(cells, isa, peer) for isa, peer in tables.TARGETS),
        tables.share_grid(cells),
        tables.convolution_grid(convolutions),
        tables.scaling_grid(scaling),
        tables.summary_grid(tables.summary(cells)),
    ]
    return [grid for grid in grids if grid.rows]


def document(
    cells: Sequence[Cell], convolutions: Sequence[Cell], scaling: Sequence[Cell]
) -> dict[str, Any]:
    """Return what is written as JSON: the means, and the seconds of every round."""
    return {
        "machine": platform.processor() or platform.machine(),
        "onnxruntime": ort.__version__,
        "means": tables.summary(cells),
        "products": [vars(cell) for cell in cells],
        "convolutions": [vars(cell) for cell in convolutions],
        "scaling": [vars(cell) for cell in scaling],
    }


def names_of(text: str) -> list[str]:
    """Split a list that may be empty."""
    return [name for name in text.split(",") if name]


def peers_of(text: str) -> list[Contender]:
    """Read `4-bit,int8`."""
    unknown = set(names_of(text)) - set(PEERS)
    if unknown:
        known = ", ".join(PEERS)
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; expected of {known}")
    return [PEERS[name] for name in names_of(text)]


def listed(read: Callable[[str], T], example: str) -> Callable[[str], list[T]]:
    """Return what reads a list of things, and says what it should look like if it cannot."""

    def read_all(text: str) -> list[T]:
        try:
            return [read(word) for word in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}'; expected a list like {example}") from None

    return read_all


def shape_of(text: str) -> tuple[int, int]:
    """Read `768x3072`."""
    inputs, outputs = map(count_of, text.split("x"))
    return inputs, outputs


def group_of(text: str) -> int | None:
    """Read `128` or `K`, which is None."""
    return None if text == "K" else count_of(text)


def count_of(text: str) -> int:
    """Read a whole number above zero."""
    if (count := int(text)) < 1:
        raise ValueError
    return count


def rounds_of(text: str) -> int:
    """Read a number of rounds."""
    rounds = int(text)
    if rounds < 2:
        raise argparse.ArgumentTypeError("a spread needs two rounds or more")
    return rounds


shapes_of = listed(shape_of, "384x384,768x3072")
rows_of = listed(count_of, "1,32")
groups_of = listed(group_of, "K,128")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; lists are separated by commas."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="three shapes, no fp32, about a minute")
    add("--shapes", type=shapes_of, help=f"inputs x outputs (default {SHAPES})")
    add("--rows", type=rows_of, default=ROWS, help=f"rows of data, M (default {ROWS})")
    add("--groups", type=groups_of, default="K,128", help="inputs of a scale (default K,128)")
    add("--isas", type=names_of, help="instruction sets to force (default: those with targets)")
    add("--peers", type=peers_of, help=f"of ONNX Runtime (default {ALL_PEERS}; also int8-columns)")
    add("--rounds", type=rounds_of, help="of each case, 2 or more (default: until ratios settle)")
    add("--seconds", type=float, help="longest time of a case, unless --rounds (default 8)")
    add("--megabytes", type=float, default=16, help="packed codes of a chain (default 16)")
    add("--scaling", action="store_true", help="also two threads against one")
    add("--convolutions", action="store_true", help="also TernaryConv")
    add("--json", type=Path, metavar="FILE", help="write the figures of every round")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if a kernel computed wrongly."""
    asked = parse(arguments)
    shapes = asked.shapes or shapes_of(QUICK_SHAPES if asked.quick else SHAPES)
    peers = peers_of(QUICK_PEERS if asked.quick else ALL_PEERS)
    isas = choose_isas(asked.isas)
    ours = [Ternary(isa, group) for isa in isas for group in asked.groups]
    contenders = [*(peers if asked.peers is None else asked.peers), *ours]
    counts = sorted(set(asked.rows))
    seconds = asked.seconds or (1.5 if asked.quick else 8.0)
    effort = Effort(asked.rounds, seconds, asked.megabytes)
    if not int8_is_fused():
        say("ONNX Runtime does not fuse dynamic int8 here: its times are of five nodes.")
    products, windows = Bench(effort), Bench(effort)
    products.products(contenders, shapes, counts)
    if asked.convolutions:
        time_convolutions(windows, isas)
    scaling = bench_scaling(isas, counts, effort) if asked.scaling else []
    grids = show(products.cells, windows.cells, scaling)
    console = Console()
    for grid in grids:
        console.print(f"[bold]{grid.title}[/]", grid.table(), "", sep="\n")
    if asked.json:
        found = document(products.cells, windows.cells, scaling)
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    if asked.markdown:
        asked.markdown.write_text("\n".join(grid.markdown() for grid in grids))
    wrong = products.wrong + windows.wrong
    for line in wrong:
        say(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
