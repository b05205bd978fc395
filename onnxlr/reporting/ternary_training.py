"""What ternary training reached, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from onnxlr.reporting.cells import shown, table_of
from onnxlr.reporting.tables import print_rewrite
from onnxlr.reporting.training import print_course

if TYPE_CHECKING:
    from onnxlr.training.ternary.result import TernaryResult

__all__ = ["print_ternary_training"]


def print_ternary_training(console: Console, result: TernaryResult) -> None:
    """Print the way, held-out data before and after, and what was written."""
    if result.resumed is not None:
        console.print(f"Went on from the checkpoint of step {result.resumed:,}")
    print_course(console, result.course)
    table = table_of("original", "before", "after", "steps", "seconds", "trained", right=())
    many = "s" if result.layers != 1 else ""
    table.add_row(
        f"{result.original:.4g}",
        f"{result.before:.4g}",
        f"{result.after:.4g}",
        f"{result.steps:,}",
        f"{result.seconds:.0f}",
        f"{result.train}: {result.layers} ternary layer{many}, {result.beside} other constants",
    )
    console.print(table)
    console.print(
        f"[dim]original, before, after: {shown(result.measure)} on held-out data, of the model as "
        "it was, of its ternary layers as fitted and as trained; steps: to the state that was "
        f"kept; {shown(result.stopped)}; trained on {shown(result.data)}[/]"
    )
    console.print("Written with ternary layers, and compared with the trained dense weights:")
    print_rewrite(console, result.rewrite)
    if result.dense is not None:
        console.print(f"[green]Wrote[/] {shown(str(result.dense))} (the dense weights)")
