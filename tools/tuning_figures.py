"""What `tools/measure_tuning.py` measures, and its table."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import onnxlr
from tools import minilm
from tools.corpus import calibration_sentences
from tools.grids import Grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tools.measured_files import Bench

__all__ = [
    "MARK",
    "ROWS",
    "Figure",
    "Tuned",
    "read",
    "tables",
    "training_batches",
    "tune_rows",
    "write",
]

MARK = "<!-- table by tools/measure_tuning.py -->"
"""What is between this line of a page and its end is written anew."""

SENTENCES = 1809
"""To train on and to judge by: all of the files that calibration sentences come from."""

BATCH = 16

_HELD = 12
"""Of so many batches one is held out."""


@dataclass(frozen=True)
class Tuned:
    """A file that `onnxlr.rewrite` makes with these arguments, and how it is tuned."""

    name: str
    rewrite: Mapping[str, Any]
    train: str
    steps: int
    calibrated: bool = True
    """Whether layers are fitted to their inputs on calibration sentences."""
    hidden: float | None = None
    """As `onnxlr.tune` takes it."""


_SVD = {"method": "svd", "ratio": 0.5}
_TERNARY = {"method": "ternary", "terms": 1, "target": "onnxlr"}
_TERNARY_SVD = {"method": "ternary_svd", "ratio": 2, "target": "onnxlr"}
_INT2 = {"method": "quantize", "format": "int2", "group_size": 32, "rounding": "gptq"}
_INT4: dict[str, Any] = {**_INT2, "format": "int4"}

ROWS = (
    Tuned("svd 0.5, uncalibrated", _SVD, "factors", 500, calibrated=False),
    Tuned("svd 0.5", _SVD, "factors", 500),
    Tuned("svd 0.5, outputs alone", _SVD, "factors", 500, hidden=0.0),
    Tuned("svd 0.5", _SVD, "scales", 200),
    Tuned("ternary ×1, uncalibrated", _TERNARY, "scales", 150, calibrated=False),
    Tuned("ternary ×1", _TERNARY, "scales", 150),
    Tuned("ternary ×1", _TERNARY, "factors", 400),
    Tuned("ternary_svd 2", _TERNARY_SVD, "factors", 300),
    Tuned("int2 b32 gptq", _INT2, "factors", 400),
    Tuned("int4 b32 gptq", _INT4, "factors", 300),
)


@dataclass
class Figure:
    """What became of a row.

    Attributes
    ----------
    name, train
        What was rewritten how, and what was trained.
    came, tuned
        Mean cosine of the embeddings of other sentences to the original's.
    before, after
        Relative error of the outputs on held-out sentences.
    steps, most
        Steps to what was kept, and asked for.
    cpu
        Processor time of all of `onnxlr.tune`, child processes included, in seconds.
    trained
        Numbers that were trained.
    problem
        Why there are no figures.
    """

    name: str
    train: str
    came: float | None = None
    tuned: float | None = None
    before: float | None = None
    after: float | None = None
    steps: int = 0
    most: int = 0
    cpu: float | None = None
    trained: int = 0
    problem: str | None = None


def training_batches() -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Return batches to train on and to judge by: sentences of about one length together."""
    sentences = sorted(calibration_sentences(SENTENCES), key=len)
    batches = list(minilm.batches(sentences, size=BATCH))
    held = batches[_HELD // 2 :: _HELD]
    return [one for place, one in enumerate(batches) if place % _HELD != _HELD // 2], held


def tune_rows(bench: Bench, rows: Sequence[Tuned]) -> Iterator[Figure]:
    """Rewrite MiniLM as rows say, each way once, and tune what results."""
    data, held = training_batches()
    made: dict[str, Path] = {}
    for row in rows:
        key = json.dumps([dict(row.rewrite), row.calibrated], sort_keys=True)
        if key not in made:
            made[key] = bench.folder / f"{len(made):02}.onnx"
            onnxlr.rewrite(
                bench.task.model,
                made[key],
                layers=[minilm.LINEARS],
                statistics=bench.statistics if row.calibrated else None,
                data=bench.comparison,
                tolerance="cosine>=-1",
                **row.rewrite,
            )
        yield _tune(bench, row, made[key], data, held)


def _tune(bench: Bench, row: Tuned, file: Path, data: Any, held: Any) -> Figure:
    figure = Figure(row.name, row.train, came=bench.task.score(file), most=row.steps)
    output = file.with_suffix(".tuned.onnx")
    before = _cpu()
    try:
        result = onnxlr.tune(
            bench.task.model,
            file,
            data,
            output,
            train=row.train,
            hidden=row.hidden,
            steps=row.steps,
            batch=BATCH,
            holdout=held,
            mask=bench.task.mask,
            tolerance="cosine>=-1",
        )
    except onnxlr.OnnxlrError as error:
        figure.problem = str(error)
        return figure
    figure.cpu = _cpu() - before
    figure.before, figure.after, figure.steps = result.before, result.after, result.steps
    figure.trained = sum(result.trained.values())
    figure.tuned = bench.task.score(output)
    return figure


def _cpu() -> float:
    return sum(os.times()[:4])


def read(file: Path) -> list[Figure]:
    """Return figures of a file.

    Raises
    ------
    ValueError
        If it does not hold such figures.
    """
    try:
        return [Figure(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} holds no figures of this tool ({error}): name another file, or remove it"
        ) from None


def write(file: Path, figures: Sequence[Figure]) -> None:
    """Write figures."""
    file.write_text(json.dumps(list(map(asdict, figures)), indent=1) + "\n", encoding="utf-8")


def tables(figures: Sequence[Figure]) -> list[Grid]:
    """Return the table, and what failed below it."""
    header = ["", "train", "cosine", "tuned", "error", "tuned", "steps", "CPU s", "numbers"]
    rows = [
        [
            one.name,
            one.train,
            _number(one.came, 4),
            _number(one.tuned, 4) if one.problem is None else "–",
            _number(one.before, 3),
            _number(one.after, 3),
            f"{one.steps} of {one.most}",
            _number(one.cpu, 0),
            f"{one.trained:,}",
        ]
        for one in figures
    ]
    return [Grid("MiniLM", header, rows)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
