"""SVD training of a ResNet-20 at equal multiply-adds, beside other ways to get there.

    python tools/reproduce_svd_training.py
    python tools/reproduce_svd_training.py --quick --ways '*channel'
    python tools/reproduce_svd_training.py --json svd.json --write

Takes models/fashion_resnet20.onnx and cuts the multiply-adds of all 3×3 convolutions but the first:
by SVD training (full-rank factors with penalties, ranks cut by energy, fine-tuning), by truncated
SVD, and by tensor trains and rings, each trained for as many steps in all with the same optimizer.
Prints the accuracy on the 10,000 test images. It follows Yang et al., Learning Low-rank Deep Neural
Networks via Singular Vector Orthogonality Regularization and Singular Value Sparsification (2020),
and differs from it: there, CIFAR-10 and ImageNet, ResNet-20 to ResNet-110, and more than a hundred
epochs; here, Fashion-MNIST, a trained ResNet-20, and less than one epoch.

Needs torch (`pip install 'onnxlr[train]'`), and apt-get and dpkg for the data set. Less than thirty
minutes on two cores, `--quick` less than five. Nothing is chosen on the test images; the state that
is kept of each training is the best of four by 1,000 images that were held out of the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.pages import write_section  # noqa: E402  # the folder above must be known
from tools.svd_training_rows import FULL, MARK, ORIGINAL, QUICK, WAYS, Document, Way  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.svd_training_figures import Experiment
    from tools.svd_training_rows import Lengths, Outcome

MODEL = ROOT / "models" / "fashion_resnet20.onnx"
PAGE = ROOT / "docs" / "results" / "svd_training.md"


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def _positive(kind: type[int | float]) -> Any:
    def read(text: str) -> int | float:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    read.__name__ = "number above 0"
    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reproduce_svd_training.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all was measured, 1 a way was refused, 2 wrong usage, 3 torch or "
        "the data set cannot be had.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="train less, and one budget")
    add("--ways", nargs="+", metavar="PATTERN", default=["*"], help="ways to compare (default all)")
    budgets = "parts of the factored layers' multiply-adds (default 0.4 0.25 0.15)"
    add("--budgets", nargs="+", type=_positive(float), metavar="N", help=budgets)
    add("--sparse", type=_positive(int), metavar="N", help="steps with penalties")
    add("--tune", type=_positive(int), metavar="N", help="steps after ranks are cut")
    add("--batch", type=_positive(int), metavar="N", help="images of a step")
    add("--seed", type=int, default=7, metavar="N", help="of everything random (default 7)")
    add("--threads", type=_positive(int), default=2, metavar="N", help="of torch (default 2)")
    precision = "products of bfloat16 numbers in training, where the processor has them"
    add("--bfloat16", action="store_true", help=precision)
    add("--model", type=Path, default=MODEL, metavar="FILE", help="the network")
    add("--images", type=_positive(int), metavar="N", help="use so many images only, for a trial")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the tables into a page (docs/results/svd_training.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    add("--cache", type=Path, default=Path(root, "onnxlr"), metavar="DIR", help="of the data set")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    ways = _chosen(asked.ways)
    if not ways:
        parser.error(f"no way matches {' '.join(asked.ways)}; there are " + ", ".join(_names()))
    if asked.show and not asked.json:
        parser.error("--show needs --json")
    if not asked.show and importlib.util.find_spec("torch") is None:
        say("torch is not installed, and trains the network: pip install 'onnxlr[train]'")
        return 3
    found = _read(asked.json) if asked.show else measure(asked, ways)
    if found is None:
        return 3
    console = Console(width=None if sys.stdout.isatty() else 120)
    grids = found.grids()
    for grid in grids:
        console.print(f"[bold]{grid.title}[/]", grid.table(), sep="\n")
    if asked.write:
        write_section(asked.write, MARK, grids)
    return 1 if any(row.problem for row in found.rows) else 0


def _names() -> list[str]:
    return [way.name for way in WAYS]


def _chosen(patterns: Sequence[str]) -> list[Way]:
    return [way for way in WAYS if any(fnmatchcase(way.name, pattern) for pattern in patterns)]


def _read(file: Path) -> Document | None:
    """Return the figures of a file; None, and say why, if it holds none."""
    try:
        return Document.read(file)
    except (OSError, ValueError) as error:
        say(str(error))
        return None


def _lengths(asked: argparse.Namespace) -> Lengths:
    lengths = QUICK if asked.quick else FULL
    given = {name: getattr(asked, name) for name in ("sparse", "tune", "batch")}
    lengths = replace(lengths, **{name: value for name, value in given.items() if value})
    return replace(lengths, budgets=tuple(asked.budgets)) if asked.budgets else lengths


def measure(asked: argparse.Namespace, ways: Sequence[Way]) -> Document:
    """Train the network in all ways, and judge it."""
    lengths, start = _lengths(asked), time.process_time()
    experiment = prepare(asked, lengths)
    found = Document({**asdict(lengths), **versions(), "seed": asked.seed})
    found.run |= {"threads": asked.threads, "bfloat16": asked.bfloat16}

    def take(row: Outcome) -> None:
        found.rows.append(row)
        found.run["processor_minutes"] = round((time.process_time() - start) / 60, 1)
        say(_brief(row))
        if asked.json:
            found.write(asked.json)

    take(experiment.original())
    for way in ways:
        for row in experiment.outcomes(way):
            take(row)
    return found


def prepare(asked: argparse.Namespace, lengths: Lengths) -> Experiment:
    """Load the data set."""
    import numpy as np
    import torch

    from tools.svd_training_figures import Experiment
    from tools.train_demo_model import fetch_idx, load_split

    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    folder = fetch_idx(asked.cache)
    learn, test = load_split(folder, "train"), load_split(folder, "t10k")
    if asked.images:
        few = np.arange(asked.images)
        learn, test = learn.take(few), test.take(few)
    return Experiment.of(asked.model, (learn, test), lengths, asked.seed, asked.bfloat16)


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    import numpy as np
    import torch

    import onnxlr

    return {module.__name__: str(module.__version__) for module in (torch, np, onnxlr)}


def _brief(row: Outcome) -> str:
    name = row.name if row.name == ORIGINAL else f"{row.name} {row.budget:g}"
    if row.problem is not None:
        return f"{name}: {row.problem}"
    return (
        f"{name}: {(row.multiply_adds or 0) / 1e6:.2f} M multiply-adds, cut {row.cut:.4f}, "
        f"tuned {row.tuned:.4f}, {row.seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
