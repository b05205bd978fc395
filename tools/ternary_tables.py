"""What `tools/measure_ternary.py` found: as JSON, and as tables."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tools.grids import Grid
from tools.measured_files import Counts, Result
from tools.ternary_figures import REFERENCE, FitTime, GaussianError, LayerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["MARK", "Document"]

MARK = "<!-- tables by tools/measure_ternary.py -->"
"""What is between this line of a page and its end is written anew."""


@dataclass
class Document:
    """All figures, of this run or of one before."""

    gaussian: list[GaussianError] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)
    time: list[FitTime] = field(default_factory=list)
    minilm: list[Result] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Document:
        """Read figures.

        Raises
        ------
        ValueError
            If the file does not hold such figures.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                [GaussianError(**row) for row in content["gaussian"]],
                [LayerError(**{**row, "shape": tuple(row["shape"])}) for row in content["layers"]],
                [FitTime(**row) for row in content["time"]],
                [_result(row) for row in content["minilm"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} holds no figures of this tool ({error}): name another file, or remove it"
            ) from None

    def write(self, file: Path) -> None:
        """Write figures."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def grids(self) -> list[Grid]:
        """Return a table for everything that was measured."""
        grids = [
            _gaussian_grid(self.gaussian),
            _layers_grid(self.layers),
            _time_grid(self.time),
            _model_grid(self.minilm),
            _counts_grid(self.minilm),
        ]
        return [grid for grid in grids if grid.rows]


def _result(row: dict[str, Any]) -> Result:
    counts = row.get("counts")
    return Result(**{**row, "counts": None if counts is None else Counts(**counts)})


def _gaussian_grid(rows: Sequence[GaussianError]) -> Grid:
    """Return a line for each size and fit, and the reference below the fit's."""
    trits = sorted({row.trits for row in rows})
    body = []
    for fit in dict.fromkeys(row.fit for row in rows):
        for size in dict.fromkeys(row.size for row in rows if row.fit == fit):
            own = {row.trits: row for row in rows if (row.fit, row.size) == (fit, size)}
            errors = [f"{own[t].error:.4f}" if t in own else "" for t in trits]
            seconds = sum(row.seconds for row in own.values())
            body.append([fit, f"{size}²", *errors, f"{seconds:.1f}"])
        known = REFERENCE.get(fit, {})
        body.append([fit, "reference", *(f"{known[t]:g}" if t in known else "" for t in trits), ""])
    title = "Gaussian matrices: relative Frobenius error by trits a weight"
    return Grid(title, ["fit", "", *(f"{t:g}" for t in trits), "all in s"], body)


def _layers_grid(rows: Sequence[LayerError]) -> Grid:
    """Return a line for each approximation, with each layer's error and bits."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    shapes = {row.layer: row.shape for row in rows}
    body = []
    for name in dict.fromkeys(row.name for row in rows):
        own = {row.layer: row for row in rows if row.name == name}
        body.append(
            [name]
            + [f"{own[x].error:.4f} ({own[x].bits:.2f})" if x in own else "" for x in layers]
            + [f"{sum(row.seconds for row in own.values()):.1f}"]
        )
    columns = [f"{x.split('.')[-1 - x.endswith('dense')]} {_sizes(shapes[x])}" for x in layers]
    title = "Layers of MiniLM: relative error of outputs on held-out text (bits a weight)"
    return Grid(title, ["", *columns, "all in s"], body)


def _time_grid(rows: Sequence[FitTime]) -> Grid:
    body = [
        [
            f"{row.size}², {row.trits:g} trits",
            f"{row.error:.4f}",
            f"{statistics.median(row.fit):.1f}",
            f"{statistics.median(row.svd):.1f}",
            f"{statistics.median(row.ratios):.2f} ({min(row.ratios):.2f}–{max(row.ratios):.2f})",
            row.threads,
        ]
        for row in rows
    ]
    header = ["matrix", "error", "fit s", "svd s", "ratio (least–most)", "threads"]
    return Grid("Time of a fit beside numpy.linalg.svd of the same matrix", header, body)


def _model_grid(rows: Sequence[Result]) -> Grid:
    weights = next((row.counts.weights for row in rows if row.counts), None)
    first = rows[0].megabytes if rows else None
    body = []
    for row in rows:
        bits = ""
        if weights and first is not None and row.megabytes is not None:
            bits = f"{32 + 8e6 * (row.megabytes - first) / weights:.2f}"
        spread = "–"
        if row.latency is not None:
            spread = f"{row.latency:.2f} ({row.latency_low:.2f}–{row.latency_high:.2f})"
        name = row.name if row.error is None else f"{row.name} [red]{_safe(row.error)}[/]"
        body.append(
            [
                name,
                _number(row.megabytes, 2),
                bits,
                _number(row.score, 4),
                spread,
                _number(row.milliseconds, 1),
                _number(row.fit_seconds, 0),
                _number(row.seconds, 0),
            ]
        )
    header = ["", "MB", "bits", "cosine", "time / fp32 (quartiles)", "ms", "fit s", "made s"]
    return Grid("all-MiniLM-L6-v2, 36 encoder products", header, body)


def _counts_grid(rows: Sequence[Result]) -> Grid:
    """Return counts, which do not depend on the target, once each."""
    known: dict[Counts, list[str]] = {}
    for row in rows:
        if row.counts is not None:
            known.setdefault(row.counts, []).append(row.name.split(",")[0])
    body = [
        [
            " = ".join(dict.fromkeys(names)),
            f"{counts.trits / counts.weights:.2f}",
            f"{counts.nonzeros / counts.weights:.2f}",
            f"{counts.additions / counts.weights:.3f}",
            f"{counts.multiplications / counts.weights:.4f}",
        ]
        for counts, names in known.items()
    ]
    header = ["", "trits", "not 0", "additions", "multiplications"]
    title = (
        "Counts for each weight and position; a float product has one of both. They are no times"
    )
    return Grid(title, header, body)


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _safe(text: str) -> str:
    return text.replace("[", r"\[")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
