"""What `tools/measure_atoms.py` found: as JSON, and as tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from math import prod
from typing import TYPE_CHECKING, Any

from tools.atom_figures import METRICS, AtomError
from tools.atom_files import FileBytes, ModelFootprint
from tools.grids import Grid
from tools.measured_files import Result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["MARK", "Document"]

MARK = "<!-- tables by tools/measure_atoms.py -->"
"""What is between this line of a page and its end is written anew."""


@dataclass
class Document:
    """All figures, of this run or of one before."""

    layers: list[AtomError] = field(default_factory=list)
    bytes: list[FileBytes] = field(default_factory=list)
    convolutions: list[AtomError] = field(default_factory=list)
    ocr: list[Result] = field(default_factory=list)
    footprints: list[ModelFootprint] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> Document:
        """Read figures.

        Raises
        ------
        ValueError
            If the file does not hold such figures.
        """
        kinds = (AtomError, FileBytes, AtomError, Result, ModelFootprint)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            parts = [content[part.name] for part in fields(cls)]
            return cls(
                *(
                    [kind(**_tuples(row)) for row in rows]
                    for kind, rows in zip(kinds, parts, strict=True)
                )
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} holds no figures of this tool ({error}): name another file, or remove it"
            ) from None

    def write(self, file: Path) -> None:
        """Write figures."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def grids(self) -> list[Grid]:
        """Return a table for everything that was measured."""
        grids = [
            _errors(self.layers, "Layers of MiniLM: {} on held-out text {}"),
            _bytes(self.bytes),
            _errors(self.convolutions, "Convolutions of PP-OCRv4: {} on other lines {}"),
            _models(self.ocr),
            _footprints(self.footprints),
        ]
        return [grid for grid in grids if grid.rows]


def _tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}


def _errors(rows: Sequence[AtomError], title: str) -> Grid:
    """Return a line for each approximation, with both errors for each layer."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    shapes = {row.layer: row.shape for row in rows}
    body = []
    for name in dict.fromkeys(row.name for row in rows):
        own = {(row.layer, row.metric): row for row in rows if row.name == name}
        cells = [_pair([own.get((layer, metric)) for metric in METRICS]) for layer in layers]
        seconds = sum(row.seconds or 0 for row in own.values())
        body.append([name, *cells, f"{seconds:.1f}"])
    header = ["", *(f"{_short(layer)} {_sizes(shapes[layer])}" for layer in layers), "all in s"]
    what = title.format("relative error of outputs", "(bits), fitted to the weight → to the data")
    return Grid(what, header, body)


def _pair(rows: Sequence[AtomError | None]) -> str:
    if problems := [row.problem for row in rows if row is not None and row.problem is not None]:
        return _safe(problems[0])
    found = [row for row in rows if row is not None]
    if not found:
        return ""
    errors = " → ".join("–" if row is None else _number(row.error, 4) for row in rows)
    bits = dict.fromkeys(_number(row.bits, 2) for row in found)
    return f"{errors} ({' → '.join(bits)})"


def _bytes(rows: Sequence[FileBytes]) -> Grid:
    """Return a line for each number of bits and shape."""
    body = []
    for bits, shape in dict.fromkeys((row.bits, row.shape) for row in rows):
        own = [row for row in rows if (row.bits, row.shape) == (bits, shape)]
        excess = [row.grown / row.stated - 1 for row in own]
        body.append(
            [
                f"{bits:g}",
                _sizes(shape),
                str(len(own)),
                *(
                    _range([8 * getattr(row, name) / prod(shape) for row in own], 3)
                    for name in ("stated", "reported", "grown")
                ),
                f"{100 * min(excess):.2f}–{100 * max(excess):.2f} %",
            ]
        )
    header = [
        *("bits asked", "weight", "layers", "of the chain", "of nodes and tensors", "of the file"),
        "more in the file than the chain states",
    ]
    title = "MiniLM's products one by one: bits for each entry of the weight, plan included"
    return Grid(title, header, body)


def _models(rows: Sequence[Result]) -> Grid:
    body = [
        [
            row.name if row.error is None else f"{row.name}: {_safe(row.error)}",
            _number(row.megabytes, 2),
            _number(row.score, 4),
            _spread(row.latency, row.latency_low, row.latency_high),
            _number(row.milliseconds, 1),
            _number(row.fit_seconds, 0),
            _number(row.seconds, 0),
        ]
        for row in rows
    ]
    title = "PP-OCRv4 recognition, all of its layers"
    times = ("time / fp32 (quartiles)", "ms", "fit s", "made s")
    return Grid(title, ["", "MB", "character accuracy", *times], body)


def _footprints(rows: Sequence[ModelFootprint]) -> Grid:
    body = [
        [
            row.name,
            _number(row.megabytes, 2),
            _number(row.load_seconds, 2),
            _number(row.memory, 0),
            _number(row.peak, 0),
            _number(row.milliseconds, 1),
            _spread(row.latency, row.low, row.high),
            _safe(" ".join(row.problems)),
        ]
        for row in rows
    ]
    header = ["", "disk MB", "load s", "memory MB", "peak MB", "ms", "time / fp32 (quartiles)", ""]
    return Grid("MiniLM's products recombined at load and in each run", header, body)


def _short(layer: str) -> str:
    """Return the part of a layer's name that tells it from others: without `.dense`."""
    words = [word for word in layer.split(".") if word != "dense"]
    return words[-1] if layer.startswith("encoder.") else layer


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _safe(text: str) -> str:
    return text.replace("[", r"\[")


def _range(values: Sequence[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}–{high}"


def _spread(ratio: float | None, low: float | None, high: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.2f} ({_number(low, 2)}–{_number(high, 2)})"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
