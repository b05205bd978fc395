"""Measure what Fisher information is good for: MiniLM at half the parameters, in each metric.

    python tools/measure_fisher.py --json fisher.json
    python tools/measure_fisher.py layers --samples 128 --json fisher.json
    python tools/measure_fisher.py --show --json fisher.json --write

Parts: `models`, the whole encoder by SVD in five metrics; `layers`, each of its 36 matrices by
itself, fitted plainly, by rows and by entries: the error weighted by the information of other
sentences, what the model loses by that layer alone, and whether the variance of the information
inside a matrix ranks what there is to gain. With `--json`, a part that is not measured stays as the
file has it. `pip install 'onnxlr[measure,train]'` brings what the tool needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import onnxlr  # noqa: E402  # the folder above must be known first
from onnxlr.layers import Layer, find_layers, read_weight  # noqa: E402
from onnxlr.methods.weighted import fisher_variance  # noqa: E402
from onnxlr.metrics import Fisher, relative_error  # noqa: E402
from onnxlr.model import Model, open_model  # noqa: E402
from tools.corpus import calibration_sentences, held_out_sentences  # noqa: E402
from tools.fetch_models import Unavailable  # noqa: E402
from tools.fisher_tables import (  # noqa: E402
    KINDS,
    MARK,
    METRICS,
    RATIO,
    Found,
    LayerFigure,
    ModelFigure,
)
from tools.measured_files import Bench  # noqa: E402
from tools.measured_rows import Ours  # noqa: E402
from tools.measured_tasks import mean_cosine, minilm_task  # noqa: E402
from tools.minilm import LINEARS, batches, minilm_model  # noqa: E402
from tools.pages import write_section  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

PAGE = ROOT / "docs" / "results" / "fisher.md"
PARTS = ("models", "layers")
MASK = "attention_mask"
EMBEDDING = "sentence_embedding"


@dataclass
class Run:
    """What was asked, and where files go."""

    asked: argparse.Namespace
    folder: Path
    found: Found

    def models(self) -> None:
        """Rewrite the encoder in each metric, without and with bias corrections."""
        file = self.folder / "fisher.npz"
        self._information(file, calibration_sentences(self.asked.samples))
        task = minilm_task(held_out=self.asked.held_out)
        bench = Bench.prepare(task, self.folder / "minilm", 2)
        bench.observe()
        self.found.models = []
        for number, metric in enumerate(METRICS):
            arguments: dict[str, Any] = {"method": "svd", "ratio": RATIO, "layers": (LINEARS,)}
            arguments |= {"metric": metric}
            if metric.startswith("fisher") or metric == "kfac":
                arguments |= {"importance": file}
            results = [
                bench.make(Ours(metric, {**arguments, "bias_correction": way}), 2 * number + way)[0]
                for way in (False, True)
            ]
            first, second = results
            error = first.error or second.error
            row = ModelFigure(metric, first.score, second.score, first.seconds or 0.0, error)
            self.found.models.append(row)
            self.save(row)

    def layers(self) -> None:
        """Fit each matrix by itself."""
        own = self._information(self.folder / "own.npz", calibration_sentences(self.asked.samples))
        judged = held_out_sentences(self.asked.held_out)
        other = self._information(self.folder / "other.npz", judged[: self.asked.samples])
        model = open_model(minilm_model())
        damage = _damage(minilm_model(), judged[: self.asked.damage])
        self.found.layers = []
        for layer in find_layers(model):
            if layer.weight is not None and layer.weight.name in own and layer.skip is None:
                row = _figure(model, layer, own, other, damage)
                self.found.layers.append(row)
                self.save(row)

    def _information(self, file: Path, sentences: Sequence[str]) -> Mapping[str, Array]:
        start = time.perf_counter()
        found = onnxlr.fisher(
            minilm_model(), batches(sentences, size=1), file, mask=MASK, layers=(LINEARS,)
        )
        self.found.seconds = time.perf_counter() - start
        self.found.samples = found.samples
        print(f"information of {found.samples} in {self.found.seconds:.0f} s", file=sys.stderr)
        return found.arrays

    def save(self, row: object) -> None:
        """Show a row, and write what there is."""
        print(row, file=sys.stderr, flush=True)
        if self.asked.json:
            text = json.dumps(asdict(self.found), indent=1)
            self.asked.json.write_text(text + "\n", encoding="utf-8")


def _figure(
    model: Model,
    layer: Layer,
    own: Mapping[str, Array],
    other: Mapping[str, Array],
    damage: Callable[[str, Array], float],
) -> LayerFigure:
    name = layer.weight.name if layer.weight is not None else ""
    weight = read_weight(model, layer).astype(np.float64)
    information = own[name].astype(np.float64)  # MiniLM's matrices are stored as they are used
    rows = information / np.maximum(information.mean(1, keepdims=True), 1e-300)
    fits = [
        onnxlr.decompose(
            weight,
            ratio=RATIO,
            metric=kind,
            importance=None if kind == "frobenius" else information,
        ).reconstruct()
        for kind in KINDS
    ]
    errors = [
        [relative_error(Fisher(each[name]), weight, fit, None) for fit in fits]
        for each in (own, other)
    ]
    return LayerFigure(
        layer.name,
        weight.shape,
        fisher_variance(information),
        fisher_variance(rows),
        *errors,
        [damage(name, fit) for fit in fits],
    )


def _damage(path: Path, sentences: Sequence[str]) -> Callable[[str, Array], float]:
    """Return what says how far embeddings turn when one weight is another."""
    import torch

    from onnxlr.training import TrainableModel

    trainable = TrainableModel(path)
    feeds = list(batches(sentences))

    def embeddings() -> Array:
        with torch.no_grad():
            found = [trainable(each)[EMBEDDING].double().numpy() for each in feeds]
        return np.concatenate(found)

    original = embeddings()

    def measure(name: str, weight: Array) -> float:
        tensor = trainable.constant(name)
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(weight))
            found = embeddings()
            tensor.copy_(kept)
        return 1 - mean_cosine(found, original)

    return measure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="measure_fisher.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all was measured, 1 a row failed, 2 wrong usage, 3 the model or its "
        "data cannot be had.",
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; both if none is named")
    add("--samples", type=int, default=256, metavar="N", help="sentences of the information")
    add("--held-out", type=int, default=300, metavar="N", help="sentences to measure on")
    add("--damage", type=int, default=64, metavar="N", help="of them for one layer alone")
    add("--json", type=Path, metavar="FILE", help="keep the figures there")
    add("--show", action="store_true", help="measure nothing, show what --json holds")
    page = "put the tables into a page (docs/results/fisher.md, if none is named)"
    add("--write", type=Path, nargs="?", const=PAGE, metavar="FILE", help=page)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if unknown := [part for part in asked.parts if part not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if asked.show and (asked.parts or not asked.json):
        parser.error("--show takes no parts, and needs --json")
    with tempfile.TemporaryDirectory(prefix="onnxlr-measure-") as scratch:
        try:
            found = Found.read(asked.json) if asked.json and asked.json.exists() else Found()
            run = Run(asked, Path(scratch), found)
            for part in () if asked.show else (asked.parts or PARTS):
                getattr(run, part)()
        except (Unavailable, ValueError) as error:
            print(error, file=sys.stderr)
            return 3
    console = Console(width=None if sys.stdout.isatty() else 200)
    for grid in found.grids():
        console.print(f"[bold]{grid.title}[/]", grid.table(), "", sep="\n")
    if asked.write:
        write_section(asked.write, MARK, found.grids())
    return 1 if any(row.error for row in found.models) else 0


if __name__ == "__main__":
    sys.exit(main())
