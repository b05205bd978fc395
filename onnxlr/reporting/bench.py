"""What models take, side by side, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from onnxlr.benching import Benched, BenchResult
from onnxlr.reporting.cells import shown, table_of
from onnxlr.reporting.footprint import amount_of, time_of

__all__ = ["print_bench"]

_CLOCKS = {
    "thread": "the thread's own, which other processes hardly enter",
    "wall": "on the wall, which other processes enter",
}

_UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def print_bench(console: Console, result: BenchResult) -> None:
    """Print a line for each model, and what its numbers are of."""
    table = table_of("model", "size", "load", "memory", "time", "ratio")
    for name, each in zip(names_of(result.models), result.models, strict=True):
        table.add_row(
            shown(name),
            amount_of(each.bytes),
            "" if each.load_seconds is None else time_of(each.load_seconds),
            "–" if each.memory is None else amount_of(each.memory),
            f"{time_of(each.seconds)} ({_spread(each)})",
            f"{each.ratio:.2f} ({each.ratio_low:.2f}–{each.ratio_high:.2f})",
        )
    console.print(table)
    many = f"{result.threads} threads" if result.threads > 1 else "one thread"
    console.print(
        f"{shown(result.runtime)}, {many}, {result.rounds} rounds on {shown(result.data)}",
        highlight=False,
    )
    for note in result.notes:
        console.print(f"[yellow]note:[/] {shown(note)}")
    console.print(
        "[dim]size: with external data; load: to make a session of a file that was read before; "
        "memory: what a process has grown by then; time: median of one run, with quartiles: "
        f"{_CLOCKS[result.clock]}; ratio: to the first model in the same round, with quartiles[/]"
    )


def _spread(each: Benched) -> str:
    """Return the quartiles of the time in the unit of its median."""
    scale = _UNITS[time_of(each.seconds).split()[1]]
    return f"{each.seconds_low / scale:.3g}–{each.seconds_high / scale:.3g}"


def names_of(models: Sequence[Benched]) -> list[str]:
    """Return names as short as they tell models apart: ends of their paths."""
    parts = [each.model.replace("\\", "/").split("/") for each in models]
    for length in range(1, max(map(len, parts))):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(set(map(tuple, parts))):
            return short
    return [each.model for each in models]
