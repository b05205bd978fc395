"""What a model takes before and after, for a terminal."""

from __future__ import annotations

from rich.console import Console

from onnxlr.reporting.cells import count_of, shown, table_of
from onnxlr.runtime import Footprint, Footprints

__all__ = ["amount_of", "print_footprints", "time_of"]

_MEANING = (
    "load: the time to make a session; memory: what the process has grown by then; peak: the most "
    "while it loads and runs; latency: of one run, and what it is of the original's, with "
    "quartiles; all on one thread\n"
    "weights recombined at load (recombine load) make the file small; making them takes time and, "
    "at the peak, memory, and once loaded they have the memory and the speed of floats; recombined "
    "in each run (recombine run), they take little memory once loaded, the peak has room for those "
    "at hand, and runs are slower"
)


def print_footprints(console: Console, footprints: Footprints) -> None:
    """Print a line for each of the two models, why cells are empty, and what the columns mean."""
    table = table_of("", "disk", "load", "memory", "peak", "latency", "of original")
    rows = {"original": footprints.original, "rewritten": footprints.rewritten}
    for name, footprint in rows.items():
        table.add_row(name, *_cells(footprint))
    console.print(table)
    for problem in dict.fromkeys(text for one in rows.values() for text in one.problems):
        console.print(f"[yellow]note:[/] {shown(problem)}")
    console.print(f"[dim]{_MEANING}[/]")


def _cells(footprint: Footprint) -> list[str]:
    failed = footprint.load_seconds is None
    latency = footprint.latency
    return [
        _size(footprint.bytes),
        "failed" if footprint.load_seconds is None else time_of(footprint.load_seconds),
        _size(footprint.memory, failed),
        _size(footprint.peak, failed),
        "failed" if latency is None else time_of(latency.seconds),
        "" if latency is None else f"{latency.ratio:.2f} ({latency.low:.2f}–{latency.high:.2f})",
    ]


def _size(count: int | None, failed: bool = False) -> str:
    """Return bytes with three digits; a dash where the platform does not tell them."""
    if count is None:
        return "failed" if failed else "–"
    return amount_of(count)


def amount_of(count: int) -> str:
    """Return bytes with three digits: 1.18 MB."""
    text = count_of(count)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def time_of(seconds: float) -> str:
    """Return a time with three digits: 12.3 ms."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds / 1e-6)} µs"


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
