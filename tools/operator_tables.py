"""Tables of what `tools/bench_operators.py` timed, and the figures that are to be reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxlr.runtime.latency import Latency, ratios
from tools.grids import Grid

__all__ = [
    "READ",
    "SCALING_TARGET",
    "SHARE_TARGET",
    "TARGETS",
    "Cell",
    "convolution_grid",
    "geometric_mean",
    "ratio_grid",
    "scaling_grid",
    "share_grid",
    "summary",
    "summary_grid",
    "times_grid",
]

READ = "read"
"""Name of a plain read of as many bytes as the packed codes have."""

TARGETS: dict[tuple[str, str], dict[int, float]] = {
    ("avx512vnni", "4-bit"): {1: 0.30, 8: 0.28, 32: 0.33, 128: 0.36, 512: 0.36},
    ("avx512vnni", "2-bit"): {1: 0.38, 8: 0.28, 32: 0.31, 128: 0.31, 512: 0.31},
    ("amx", "4-bit"): {1: 0.30, 8: 0.17, 32: 0.13, 128: 0.11, 512: 0.11},
    ("amx", "int8"): {1: 0.25, 8: 0.35, 32: 0.46, 128: 0.47, 512: 0.60},
    ("avx2", "4-bit"): {1: 0.45},
}
"""Most that our time may be of the peer's, by instruction set and peer, then by rows."""

SHARE_TARGET = 0.7
"""Least that a plain read of the packed codes is of our time, one row."""

SCALING_TARGET = 1.7
"""Least that two threads are faster than one."""


@dataclass
class Cell:
    """One shape with one number of rows: seconds of each contender in each round."""

    shape: str
    rows: int
    nodes: int
    seconds: dict[str, list[float]]
    kernels: dict[str, str] = field(default_factory=dict)
    """Instruction set of each contender that is ours."""

    def microseconds(self, name: str) -> float:
        """Return the median time of one node."""
        return 1e6 * statistics.median(self.seconds[name]) / self.nodes

    def ratio(self, mine: str, peer: str) -> Latency:
        """Return what one's time is of another's in the same rounds."""
        return ratios([self.seconds[peer], self.seconds[mine]])[1]

    def ours(self, isa: str) -> list[str]:
        """Return the names of our contenders with this instruction set."""
        return [name for name, kernel in self.kernels.items() if kernel == isa]


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(statistics.fmean(map(math.log, values)))


def times_grid(cells: Sequence[Cell], title: str) -> Grid:
    """Return the time of one node of everything, a column for each number of rows."""
    counts = sorted({cell.rows for cell in cells})
    body = []
    for shape in dict.fromkeys(cell.shape for cell in cells):
        by_rows = {cell.rows: cell for cell in cells if cell.shape == shape}
        for name in dict.fromkeys(n for cell in by_rows.values() for n in cell.seconds):
            shown = [
                f"{by_rows[rows].microseconds(name):.4g}"
                if rows in by_rows and name in by_rows[rows].seconds
                else ""
                for rows in counts
            ]
            body.append([shape, name, *shown])
    return Grid(title, ["shape", "", *_columns(counts)], body)


def ratio_grid(cells: Sequence[Cell], isa: str, peer: str) -> Grid:
    """Return the ratios of one instruction set to one peer, with their quartiles."""
    found = [cell for cell in cells if peer in cell.seconds and cell.ours(isa)]
    counts = sorted({cell.rows for cell in found})
    body = []
    for shape in dict.fromkeys(cell.shape for cell in found):
        by_rows = {cell.rows: cell for cell in found if cell.shape == shape}
        for name in dict.fromkeys(n for cell in by_rows.values() for n in cell.ours(isa)):
            shown = [
                _with_quartiles(by_rows[rows].ratio(name, peer))
                if rows in by_rows and name in by_rows[rows].seconds
                else ""
                for rows in counts
            ]
            body.append([shape, name.removeprefix(isa).strip(), *shown])
    return Grid(f"{isa} / {peer} (quartiles)", ["shape", "", *_columns(counts)], body)


def share_grid(cells: Sequence[Cell]) -> Grid:
    """Return the share of a plain read in the time of one row, a column for each contender."""
    found = [cell for cell in cells if READ in cell.seconds]
    names = list(dict.fromkeys(name for cell in found for name in cell.kernels))
    body = [
        [cell.shape]
        + [f"{cell.ratio(READ, n).ratio:.2f}" if n in cell.kernels else "" for n in names]
        for cell in found
        if names
    ]
    title = "One row: a plain read of the packed codes / our time"
    return Grid(title, ["shape", *names], body)


def summary(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return geometric means over shapes and groups, with their targets where there are any.

    Returns
    -------
    list
        Of instruction set, peer, rows, ratio and target; for the peer `READ` both are the share.
    """
    isas = list(dict.fromkeys(isa for cell in cells for isa in cell.kernels.values()))
    peers = list(dict.fromkeys(n for c in cells for n in c.seconds if n not in c.kernels))
    found = []
    for isa in isas:
        for peer in peers:
            for rows in sorted({cell.rows for cell in cells}):
                values = [
                    cell.ratio(peer, name).ratio if peer == READ else cell.ratio(name, peer).ratio
                    for cell in cells
                    if cell.rows == rows and peer in cell.seconds
                    for name in cell.ours(isa)
                ]
                if not values:
                    continue
                target = TARGETS.get((isa, peer), {}).get(rows)
                found.append(
                    {
                        "isa": isa,
                        "peer": peer,
                        "rows": rows,
                        "ratio": geometric_mean(values),
                        "target": SHARE_TARGET if peer == READ else target,
                    }
                )
    return found


def summary_grid(means: Sequence[dict[str, Any]]) -> Grid:
    """Return the geometric means; those that miss their target are red."""
    counts = sorted({mean["rows"] for mean in means})
    body = []
    for isa, peer in dict.fromkeys((mean["isa"], mean["peer"]) for mean in means):
        by_rows = {m["rows"]: m for m in means if (m["isa"], m["peer"]) == (isa, peer)}
        name = f"{READ} / {isa}" if peer == READ else f"{isa} / {peer}"
        body.append([name, *(_judged(by_rows.get(rows)) for rows in counts)])
    title = "Geometric means over shapes and groups, beside what is to be reached"
    return Grid(title, ["", *_columns(counts)], body)


def scaling_grid(cells: Sequence[Cell]) -> Grid:
    """Return how much faster two threads are than one; see `Cell.seconds` for their names."""
    body = []
    for cell in cells:
        for isa in dict.fromkeys(cell.kernels.values()):
            one, two = cell.ours(isa)
            times = cell.ratio(one, two)
            body.append(
                [cell.shape, isa, str(cell.rows), _with_quartiles(times), f"≥ {SCALING_TARGET}"]
            )
    return Grid("Time of one thread / time of two", ["shape", "", "M", "quartiles", "target"], body)


def convolution_grid(cells: Sequence[Cell]) -> Grid:
    """Return the time of one convolution of everything, and its ratios to the others."""
    body = []
    for cell in cells:
        peers = [name for name in cell.seconds if name not in cell.kernels]
        for name in cell.seconds:
            shown = [
                _with_quartiles(cell.ratio(name, peer)) if name in cell.kernels else ""
                for peer in peers
            ]
            body.append([cell.shape, name, f"{cell.microseconds(name):.4g}", *shown])
    names = dict.fromkeys(n for cell in cells for n in cell.seconds if n not in cell.kernels)
    header = ["shape", "", "µs", *(f"/ {name}" for name in names)]
    return Grid("Convolutions of one image", header, body)


def _columns(counts: Sequence[int]) -> list[str]:
    return [f"M={rows}" for rows in counts]


def _with_quartiles(latency: Latency) -> str:
    return f"{_short(latency.ratio)} {_short(latency.low)}–{_short(latency.high)}"


def _short(value: float, decimals: int = 2) -> str:
    """Return a number without the zero before its point: there are many columns of these."""
    return f"{value:.{decimals}f}".removeprefix("0")


def _judged(mean: dict[str, Any] | None) -> str:
    if mean is None:
        return ""
    ratio, target = mean["ratio"], mean["target"]
    if target is None:
        return _short(ratio, 3)
    more = mean["peer"] == READ
    if ratio >= target if more else ratio <= target:
        return f"[green]{_short(ratio, 3)} {'≥' if more else '≤'} {_short(target)}[/]"
    return f"[red]{_short(ratio, 3)} {'<' if more else '>'} {_short(target)}[/]"
