"""What `tools/measure_tensors.py` found: as JSON, and as tables."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tools.grids import Grid
from tools.tensor_figures import METRICS, LayerError
from tools.tensor_latency import ChainTime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["MARK", "REFERENCE", "Document"]

MARK = "<!-- tables by tools/measure_tensors.py -->"
"""What is between this line of a page and its end is written anew."""

REFERENCE: dict[str, tuple[str, ...]] = {
    "svd spatial": (".217", ".121", ".167"),
    "svd channel": (".468 → .268", ".318 → .218", ".309 → .286"),
    "cp": (".147", "–", "–"),
    "tucker channels": (".357", ".219", ".248"),
    "tensor_train": (".290", ".172", ".215"),
}
"""Relative errors of outputs at ratio .5 to compare with, of layers of 64, 128 and 256 channels of
the same model; which ones, and on which photographs, is not known. Behind an arrow, with the
covariance of the inputs."""


@dataclass
class Document:
    """All figures, of this run or of one before."""

    layers: list[LayerError] = field(default_factory=list)
    latency: list[ChainTime] = field(default_factory=list)
    matrices: list[ChainTime] = field(default_factory=list)

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
                [LayerError(**{**row, "shape": tuple(row["shape"])}) for row in content["layers"]],
                *(
                    [ChainTime(**{**row, "data": tuple(row["data"])}) for row in content[part]]
                    for part in ("latency", "matrices")
                ),
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
        grids = [_errors(self.layers), *_times(self.latency), *_times(self.matrices)]
        return [grid for grid in grids if grid.rows]


def _errors(rows: Sequence[LayerError]) -> Grid:
    """Return a line for each approximation, with both errors for each layer."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    shapes = {row.layer: row.shape for row in rows}
    body = []
    for name in dict.fromkeys(row.name for row in rows):
        own = {(row.layer, row.metric): row for row in rows if row.name == name}
        cells = [_pair([own.get((layer, metric)) for metric in METRICS]) for layer in layers]
        ratios = [row.ratio for row in own.values() if row.ratio is not None]
        seconds = sum(row.seconds or 0 for row in own.values())
        body.append([name, *cells, _range(ratios), f"{seconds:.0f}"])
    if body:
        body += _references([shapes[layer][0] for layer in layers])
    header = ["", *(f"{layer} ({shapes[layer][0]})" for layer in layers), "ratio", "all in s"]
    title = "Relative error of outputs on held-out photographs: fitted to the weight → to the data"
    return Grid(title, header, body)


def _references(channels: Sequence[int]) -> list[list[str]]:
    """Return lines of figures to compare with, once for each number of channels."""
    places = {64: 0, 128: 1, 256: 2}
    body = []
    for name, values in REFERENCE.items():
        first = {size: channels.index(size) for size in places if size in channels}
        cells = [
            values[places[size]] if first.get(size) == place else ""
            for place, size in enumerate(channels)
        ]
        body.append([f"{name}, reference", *cells, "", ""])
    return body


def _pair(rows: Sequence[LayerError | None]) -> str:
    if all(row is None or row.error is None for row in rows):
        return "–"
    return " → ".join(
        "–" if row is None or row.error is None else f"{row.error:.3f}" for row in rows
    )


def _range(values: Sequence[float]) -> str:
    if not values:
        return "–"
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low}–{high}"


def _times(rows: Sequence[ChainTime]) -> list[Grid]:
    """Return a table for each layer: a line for each budget and chain, times for each data."""
    grids = []
    for product in dict.fromkeys(row.product for row in rows):
        own = [row for row in rows if row.product == product]
        shapes = list(dict.fromkeys(row.data for row in own if row.data))
        body = []
        for budget, name in dict.fromkeys((row.budget, row.name) for row in own):
            found = {row.data: row for row in own if (row.budget, row.name) == (budget, name)}
            body.append(_time_line(list(found.values()), [found.get(shape) for shape in shapes]))
        times = [f"time, {'×'.join(map(str, shape))}" for shape in shapes]
        header = ["", "ratio", "multiply-adds", "weight error", *times, "ms", "nodes"]
        title = f"{product}: time by the original's (quartiles)"
        grids.append(Grid(title, header, body))
    return grids


def _time_line(rows: Sequence[ChainTime], timed: Sequence[ChainTime | None]) -> list[str]:
    first = rows[0]
    name = f"{first.name} {first.budget:g}"
    if first.problem is not None:
        problem = first.problem.replace("[", r"\[")
        return [name, *["–"] * (len(timed) + 4), problem]
    known = [row for row in timed if row is not None]
    return [
        name,
        _number(first.ratio, 3),
        _number(first.operations, 3),
        _number(first.weight_error, 3),
        *("–" if row is None else _spread(row) for row in timed),
        " / ".join(_number(row.milliseconds, 3) for row in known),
        _counted(first.nodes or ""),
    ]


def _counted(nodes: str) -> str:
    """Return how many nodes there are of each operator."""
    counts = Counter(nodes.split())
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _spread(row: ChainTime) -> str:
    return f"{_number(row.latency, 2)} ({_number(row.low, 2)}–{_number(row.high, 2)})"


def _number(value: Any, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
