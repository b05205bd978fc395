"""What training gained, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from onnxlr.reporting.cells import number_of, shown, table_of
from onnxlr.reporting.proofs import print_report

if TYPE_CHECKING:
    from onnxlr.training.schedule import Course
    from onnxlr.training.tuning.request import TuneResult

__all__ = ["print_course", "print_tuning"]


def print_course(console: Console, course: tuple[Course, ...]) -> None:
    """Print a line for each judgement on the way."""
    table = table_of("step", "seconds", "loss", "held out", right=("seconds", "loss", "held out"))
    for one in course:
        table.add_row(
            f"{one.step:,}", f"{one.seconds:.0f}", number_of(one.loss, ".4g"), f"{one.judged:.4g}"
        )
    console.print(table)


def print_tuning(console: Console, result: TuneResult) -> None:
    """Print the way, the proofs, and what was gained by what."""
    if result.resumed is not None:
        console.print(f"Went on from the checkpoint of step {result.resumed:,}")
    print_course(console, result.course)
    console.print(f"[dim]held out: {shown(result.measure)}; loss: mean of the steps before[/]")
    if result.report is not None:
        print_report(console, result.report)
    kinds = ", ".join(f"{count:,} {what}" for what, count in result.trained.items())
    table = table_of("before", "after", "steps", "seconds", "trained", right=())
    table.add_row(
        f"{result.before:.4g}",
        f"{result.after:.4g}",
        f"{result.steps:,}",
        f"{result.seconds:.0f}",
        f"{result.train}: {kinds}",
    )
    console.print(table)
    console.print(
        f"[dim]before, after: {shown(result.measure)} on held-out data, in ONNX Runtime; steps: "
        f"to the state that was kept; {shown(result.stopped)}; trained on {shown(result.data)}[/]"
    )
    if result.output is None:
        console.print("[red]Nothing was written[/].")
    else:
        console.print(f"[green]Wrote[/] {shown(str(result.output))}")
