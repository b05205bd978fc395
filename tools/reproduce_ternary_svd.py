"""Ternary SVD of a ResNet-20: as fitted at several tolerances, and trained at the largest.

    python tools/reproduce_ternary_svd.py
    python tools/reproduce_ternary_svd.py --quick
    python tools/reproduce_ternary_svd.py --json ternary_svd.json --write

Makes the convolutions of models/fashion_resnet20.onnx ternary by the published direct transition at
spectral tolerances of 1, 2, 5 and 7 %, and trains it with ternary layers at 7 %, by the published
scheme, towards the outputs of the network as it is. Prints trits, additions, multiplications and
the accuracy on the 10,000 test images, in ONNX Runtime. It follows *Ternary Singular Value
Decomposition as a Better Parameterized Form in Linear Mapping* (Chen et al. 2023), and differs from
it: there, ImageNet, ConvNeXt-T, Swin-T and ResNet-50, trained for epochs; here, Fashion-MNIST, a
network of 0.27 million weights, and some hundred steps.

Needs torch (`pip install 'onnxlr[train]'`), and apt-get and dpkg for the data set. Less than half
an hour on two cores, `--quick` less than five minutes. Nothing is chosen on the test images: the
state that is kept is the best on training images that were held out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import onnxlr  # noqa: E402  # the folder above must be known
from onnxlr.conditions import Conditions  # noqa: E402
from onnxlr.delivery import Delivery, RewriteResult  # noqa: E402
from onnxlr.evidence import UNKNOWN  # noqa: E402
from onnxlr.layers import find_layers  # noqa: E402
from onnxlr.methods import TernarySvdOptions  # noqa: E402
from onnxlr.model import open_model  # noqa: E402
from onnxlr.planning import Making, Request  # noqa: E402
from onnxlr.planning.uniform import propose  # noqa: E402
from onnxlr.verification import Tolerance  # noqa: E402
from tools.pages import write_section  # noqa: E402
from tools.ternary_svd_rows import MARK, ORIGINAL, Document, Row, count  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnxlr.plan import Proposal
    from onnxlr.training.ternary.export import Exported
    from tools.train_demo_model import Split

MODEL = ROOT / "models" / "fashion_resnet20.onnx"
PAGE = ROOT / "docs" / "results" / "ternary_svd_training.md"
TOLERANCES = (0.01, 0.02, 0.05, 0.07)
TRAINED = 0.07
HELD_OUT = 2000
"""Training images that judge, and are not trained on."""

AGREEMENT = "cosine>=0.9"
"""What files must hold against the network they are proved by; accuracy is what is reported."""


@dataclass(frozen=True)
class Lengths:
    """How much is fitted and trained."""

    tolerances: tuple[float, ...]
    steps: int
    every: int
    fits: tuple[str, ...]
    """Ways to find terms in trained networks; the first is published."""
    batch: int = 128
    rate: float = 5e-5


FULL = Lengths(TOLERANCES, steps=500, every=50, fits=("published", "alternating"))
QUICK = Lengths((TRAINED,), steps=20, every=20, fits=("published",))


@dataclass
class Experiment:
    """A network, and what it is judged by."""

    model: Path
    training: Split
    testing: Split
    lengths: Lengths
    seed: int
    bfloat16: bool
    folder: Path
    fitted: dict[tuple[str, float], tuple[list[Proposal], float]] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """Yield the network as it is, fitted and trained."""
        left = [self._kept(layer) for layer in find_layers(open_model(self.model))]
        yield Row(ORIGINAL, self.accuracy(self.model), count(left), self.model.stat().st_size, 0.0)
        for fit in self.lengths.fits:
            yield self.direct(fit, TRAINED)
            yield self.trained(fit)
        for tolerance in sorted(self.lengths.tolerances, reverse=True):
            if tolerance != TRAINED:
                yield self.direct("published", tolerance)

    def direct(self, fit: str, tolerance: float) -> Row:
        """Return the network as fitted."""
        proposals, seconds = self._fit(fit, tolerance)
        name = f"{fit}-{tolerance:g}"
        making = Making(proposals, "onnx", self.seed, False, UNKNOWN)
        source = open_model(self.model)
        # proposals hold nodes of the model that they were found in
        layers = {layer.name: layer for layer in find_layers(source)}
        own = [replace(one, layer=layers[one.layer.name]) for one in proposals]
        reopen = partial(open_model, self.model)
        delivery = Delivery(
            source, reopen, self.folder / f"{name}.onnx", replace(making, proposals=own)
        )
        done = self._delivered(delivery)
        return self._row(f"direct, {fit}, {tolerance:.0%}", proposals, done, seconds)

    def trained(self, fit: str) -> Row:
        """Return the network as trained with ternary layers."""
        from onnxlr.training.files import TrainingFiles
        from onnxlr.training.loop import Schedule
        from onnxlr.training.ternary.export import export_ternary
        from onnxlr.training.ternary.layers import Manner
        from onnxlr.training.ternary.training import train_ternary_layers
        from onnxlr.training.ternary.wish import Wish

        proposals, seconds = self._fit(fit, TRAINED)
        lengths, start = self.lengths, time.perf_counter()
        schedule = Schedule(lengths.rate, lengths.steps, patience=None, seed=self.seed)
        image = self.training.image
        wish = Wish(
            self._request(fit, TRAINED),
            Manner(seed=self.seed, feedback=1 / lengths.every),
            every=lengths.every,
            schedule=schedule,
            batch=lengths.batch,
            holdout=[{"image": image[-HELD_OUT:]}],
            bfloat16=self.bfloat16,
        )
        source = open_model(self.model)
        data = [{"image": image[:-HELD_OUT]}]
        trained = train_ternary_layers(source, data, wish, None, _progress(), proposals)
        files = TrainingFiles.of(source, self.folder / f"trained-{fit}.onnx", None, None)
        written: list[Proposal] = []

        def deliver(exported: Exported) -> RewriteResult:
            written.extend(exported.making.proposals)
            return self._delivered(
                Delivery(exported.dense, exported.reopen, files.output, exported.making)
            )

        done = export_ternary(source, trained, wish, files, deliver)
        row = self._row(
            f"trained, {fit}, {TRAINED:.0%}",
            written,
            done.rewrite,
            seconds + time.perf_counter() - start,
        )
        return replace(row, steps=done.steps, held=(done.before, done.after, done.course[-1].step))

    def _fit(self, fit: str, tolerance: float) -> tuple[list[Proposal], float]:
        if (fit, tolerance) not in self.fitted:
            start, model = time.perf_counter(), open_model(self.model)
            made = propose(
                model, find_layers(model), self._request(fit, tolerance), UNKNOWN, _progress()
            )
            self.fitted[fit, tolerance] = list(made), time.perf_counter() - start
        return self.fitted[fit, tolerance]

    def _request(self, fit: str, tolerance: float) -> Request:
        options = TernarySvdOptions(tolerance_spectral=tolerance, fit=fit)
        return Request("ternary_svd", options, seed=self.seed)

    def _kept(self, layer: Any) -> Proposal:
        from onnxlr.plan import Choice, Proposal

        return Proposal(layer, Choice("keep", reason="as it is"))

    def _delivered(self, delivery: Delivery) -> RewriteResult:
        feeds = [{"image": self.training.image[-64:]}]
        conditions = Conditions(Tolerance.parse(AGREEMENT), feeds, self.seed, False, _silent)
        return delivery.carry_out(conditions, require_change=True, keep=False)

    def _row(
        self, name: str, proposals: Sequence[Proposal], done: RewriteResult, seconds: float
    ) -> Row:
        if done.output is None:
            raise ValueError(f"{name} was not written")
        return Row(name, self.accuracy(done.output), count(proposals), done.bytes_after, seconds)

    def accuracy(self, file: Path) -> float:
        """Return the share of test images whose class a file names, in ONNX Runtime."""
        session = onnxlr.session(file)
        image, correct = self.testing.image, 0
        for start in range(0, len(image), 500):
            (found,) = session.run(None, {"image": image[start : start + 500]})
            correct += int((found.argmax(1) == self.testing.label[start : start + 500]).sum())
        return correct / len(image)


def say(text: str) -> None:
    """Write a line of progress."""
    print(text, file=sys.stderr, flush=True)


def _silent(task: str, done: int, total: int) -> None:
    """Say nothing."""


def _progress() -> Callable[[str, int, int], None]:
    """Return what says every minute how far it is."""
    last = time.monotonic()

    def tell(task: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 60:
            last = time.monotonic()
            say(f"  {task}: {done} of {total}")

    return tell


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "whole number above 0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reproduce_ternary_svd.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 training at 7 % stays within 0.3 points of the network as it is, 1 "
        "it does not, 2 wrong usage, 3 torch, the model or the data set cannot be had.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fit and train at 7 %% only, and for a few steps")
    add("--model", type=Path, default=MODEL, metavar="FILE", help="the network")
    add("--steps", type=_positive, metavar="N", help="of training (default 500)")
    add("--every", type=_positive, metavar="N", help="steps between renewals (default 50)")
    add("--bfloat16", action="store_true", help="train with products of bfloat16 numbers")
    add("--seed", type=int, default=7, metavar="N", help="of everything random (default 7)")
    add("--threads", type=_positive, default=2, metavar="N", help="of torch (default 2)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the table into a page (docs/results/ternary_svd_training.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    add("--cache", type=Path, default=Path(root, "onnxlr"), metavar="DIR", help="of the data set")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.show and not asked.json:
        parser.error("--show needs --json")
    if not asked.show and importlib.util.find_spec("torch") is None:
        say("torch is not installed, and trains the network: pip install 'onnxlr[train]'")
        return 3
    if not asked.show and not asked.model.exists():
        say(f"{asked.model}: no such file (tools/train_fashion_resnet.py makes it)")
        return 3
    found = _read(asked.json) if asked.show else measure(asked)
    if found is None:
        return 3
    console = Console(width=None if sys.stdout.isatty() else 130)
    grid = found.grid()
    console.print(f"[bold]{grid.title}[/]", grid.table(), sep="\n")
    if asked.write:
        write_section(asked.write, MARK, [grid])
    return 0 if found.passed else 1


def _read(file: Path) -> Document | None:
    """Return the figures of a file; None, and say why, if it holds none."""
    try:
        return Document.read(file)
    except (OSError, ValueError) as error:
        say(str(error))
        return None


def measure(asked: argparse.Namespace) -> Document:
    """Fit, train, and judge."""
    import torch

    from tools.train_demo_model import fetch_idx, load_split

    torch.set_num_threads(asked.threads)
    usual = QUICK if asked.quick else FULL
    lengths = replace(usual, steps=asked.steps or usual.steps, every=asked.every or usual.every)
    folder = fetch_idx(asked.cache)
    training, testing = load_split(folder, "train"), load_split(folder, "t10k")
    run = {
        "network": asked.model.stem,
        "steps": lengths.steps,
        "every": lengths.every,
        "batch": lengths.batch,
        "rate": lengths.rate,
        "seed": asked.seed,
        "bfloat16": asked.bfloat16,
        **versions(),
    }
    found = Document(run)
    with tempfile.TemporaryDirectory(prefix="onnxlr-ternary-") as name:
        experiment = Experiment(
            asked.model, training, testing, lengths, asked.seed, asked.bfloat16, Path(name)
        )
        for row in experiment.rows():
            say(f"{row.name}: accuracy {row.accuracy:.4f}, {row.seconds:.0f} s")
            found.rows.append(row)
            if asked.json:
                found.write(asked.json)
    return found


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    import onnxruntime
    import torch

    return {module.__name__: str(module.__version__) for module in (torch, onnxruntime, np, onnxlr)}


if __name__ == "__main__":
    sys.exit(main())
