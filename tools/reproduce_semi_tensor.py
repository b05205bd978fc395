"""Tensor trains and rings, plain and semi-tensor, in a small ResNet at equal numbers of parameters.

    python tools/reproduce_semi_tensor.py
    python tools/reproduce_semi_tensor.py --quick --forms 'tensor_train' 'semi_tensor_train*'
    python tools/reproduce_semi_tensor.py --json semi.json --write

Trains a ResNet on Fashion-MNIST, fits every 3×3 layer but the first at a part of its parameters,
and prints the accuracy on the 10,000 test images before and after a short training of the factors,
beside those of plain SVD. It follows Zhao et al., Semi-tensor Product-based Tensor Decomposition
for Neural Network Compression (2021), and differs from it: there, CIFAR-10, ResNet-32 and wide
ResNets, and factors that are trained from scratch for many epochs; here, factors that are fitted to
a trained network. Its figures, at 2 % less accuracy: tensor train of rank 14 3×, semi-tensor train
9×; tensor ring of rank 16 99×, semi-tensor ring 179×.

Needs torch (`pip install 'onnxlr[train]'`), and apt-get and dpkg for the data set. About eight
minutes on one core, `--quick` less than three. Nothing is chosen on the test images; they are
looked at twice for each row.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import onnxlr  # noqa: E402  # the folder above must be known
from onnxlr.errors import OnnxlrError  # noqa: E402
from tools.pages import write_section  # noqa: E402
from tools.semi_tensor_rows import (  # noqa: E402
    FORMS,
    FULL,
    MARK,
    ORIGINAL,
    QUICK,
    USUAL,
    Document,
    Lengths,
    Outcome,
)
from tools.tensor_figures import Approximation, choose, present  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from onnxlr.stages import Chain
    from tools.train_demo_model import Split

PAGE = ROOT / "docs" / "results" / "tensors.md"

RATES = (0.1, 0.01)
"""Largest learning rates: of the network, and of the factors."""


@dataclass
class Experiment:
    """A trained network, and what it is judged by."""

    network: nn.Sequential
    training: Split
    testing: Split
    lengths: Lengths
    seed: int

    def original(self) -> Outcome:
        """Train the network on as long as the factors are."""
        return self._judged(Outcome(ORIGINAL, 1.0, 1.0, 1.0, error=0.0, seconds=0.0), {})

    def outcome(self, form: Approximation, times: float) -> Outcome:
        """Fit, judge, train the factors, and judge again."""
        from tools.fashion_resnet import factorizable

        weights = {
            name: conv.weight.detach().numpy() for name, conv in factorizable(self.network).items()
        }
        start = time.perf_counter()
        try:
            chains = {
                name: onnxlr.decompose(
                    weight, form.method, groups=1, ratio=1 / times, seed=self.seed, **form.options
                )
                for name, weight in weights.items()
            }
        except OnnxlrError as error:
            return Outcome(form.name, times, problem=str(error))
        seconds = time.perf_counter() - start
        squares = [
            np.sum(np.square(chains[name].reconstruct() - weight)) / np.sum(np.square(weight))
            for name, weight in weights.items()
        ]
        entries = sum(weight.size for weight in weights.values())
        stored = sum(chain.cost.parameters for chain in chains.values())
        row = Outcome(
            form.name,
            times,
            layers=entries / stored,
            ranks=_ranks(list(chains.values())[-1]),
            error=float(np.sqrt(np.mean(squares))),
            seconds=seconds,
        )
        return self._judged(row, chains)

    def _judged(self, row: Outcome, chains: Mapping[str, Chain]) -> Outcome:
        from tools.fashion_resnet import Schedule, accuracy, parameters, replaced, train

        made = replaced(self.network, chains)
        fitted = accuracy(made, self.testing)
        train(made, self.training, Schedule(self.lengths.steps, RATES[1], self.seed))
        return replace(
            row,
            network=parameters(self.network) / parameters(made),
            fitted=fitted,
            tuned=accuracy(made, self.testing),
        )


def _ranks(chain: Chain) -> str:
    """Return the ranks of a chain: of two factors, what lies between them."""
    found = getattr(chain, "ranks", None) or (chain.stages[0].shape[-1],)
    return "x".join(map(str, found))


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
        prog="reproduce_semi_tensor.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all was measured, 1 a fit was refused, 2 wrong usage, 3 torch or "
        "the data set cannot be had.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="train less, and fit fewer sizes")
    forms = f"forms to compare (default {' '.join(USUAL)})"
    add("--forms", nargs="+", default=USUAL, metavar="PATTERN", help=forms)
    times = "how many times fewer numbers a layer is to have (default 3 9)"
    add("--times", nargs="+", type=_positive(float), metavar="N", help=times)
    add("--epochs", type=_positive(int), metavar="N", help="of the network (default 3)")
    add("--steps", type=_positive(int), metavar="N", help="of the factors (default 100)")
    add("--seed", type=int, default=7, metavar="N", help="of everything random (default 7)")
    threads = "of torch (default 1: on a busy machine more of them wait for each other)"
    add("--threads", type=_positive(int), default=1, metavar="N", help=threads)
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the table into a page (docs/results/tensors.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    add("--cache", type=Path, default=Path(root, "onnxlr"), metavar="DIR", help="of the data set")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if not choose(FORMS, asked.forms):
        names = ", ".join(form.name for form in FORMS)
        parser.error(f"no form matches {' '.join(asked.forms)}; there are {names}")
    if asked.show and not asked.json:
        parser.error("--show needs --json")
    if not asked.show and importlib.util.find_spec("torch") is None:
        say("torch is not installed, and trains the network: pip install 'onnxlr[train]'")
        return 3
    found = _read(asked.json) if asked.show else measure(asked)
    if found is None:
        return 3
    console = Console(width=None if sys.stdout.isatty() else 120)
    grid = found.grid()
    console.print(f"[bold]{grid.title}[/]", grid.table(), sep="\n")
    if asked.write:
        write_section(asked.write, MARK, [grid])
    return 1 if any(row.problem for row in found.rows) else 0


def _read(file: Path) -> Document | None:
    """Return the figures of a file; None, and say why, if it holds none."""
    try:
        return Document.read(file)
    except (OSError, ValueError) as error:
        say(str(error))
        return None


def measure(asked: argparse.Namespace) -> Document:
    """Train the network, and judge it with all forms in its layers."""
    usual = QUICK if asked.quick else FULL
    lengths = Lengths(
        asked.epochs or usual.epochs, asked.steps or usual.steps, tuple(asked.times or usual.times)
    )
    experiment = prepare(lengths, asked.seed, asked.threads, asked.cache)
    found = Document({**asdict(lengths), **versions(), "seed": asked.seed})
    forms = choose(FORMS, asked.forms)
    if absent := {form.method for form in forms} - {form.method for form in present(forms)}:
        say(f"not there: {', '.join(sorted(absent))}")
    outcomes = [experiment.original()]
    say(f"{ORIGINAL}: {outcomes[0].fitted:.4f}, tuned {outcomes[0].tuned:.4f}")
    for times in lengths.times:
        for form in present(forms):
            outcomes.append(experiment.outcome(form, times))
            say(_brief(outcomes[-1]))
            found.rows = outcomes
            if asked.json:
                found.write(asked.json)
    return found


def prepare(lengths: Lengths, seed: int, threads: int, cache: Path) -> Experiment:
    """Load the data set and train the network."""
    import torch

    from tools.fashion_resnet import BATCH, Schedule, build_resnet, train
    from tools.train_demo_model import fetch_idx, load_split

    folder = fetch_idx(cache)
    training, testing = load_split(folder, "train"), load_split(folder, "t10k")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    network = build_resnet()
    steps = lengths.epochs * (len(training.label) // BATCH)
    train(network, training, Schedule(steps, RATES[0], seed), say)
    return Experiment(network, training, testing, lengths, seed)


def versions() -> dict[str, str]:
    """Return the versions of what computes."""
    import tensorly
    import torch

    return {module.__name__: str(module.__version__) for module in (torch, tensorly, np, onnxlr)}


def _brief(row: Outcome) -> str:
    if row.problem is not None:
        return f"{row.name} {row.times:g}×: {row.problem}"
    return (
        f"{row.name} {row.times:g}×: layers {row.layers:.1f}×, ranks {row.ranks}, "
        f"fitted {row.fitted:.4f}, tuned {row.tuned:.4f}"
    )


if __name__ == "__main__":
    sys.exit(main())
