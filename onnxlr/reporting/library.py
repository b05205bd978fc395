"""What is known of the op library, for a terminal."""

from __future__ import annotations

from rich.console import Console

from onnxlr.reporting.cells import shown
from onnxlr.runtime import OpsDescription

__all__ = ["print_ops"]


def print_ops(console: Console, ops: OpsDescription) -> None:
    """Print a line for each thing that is known, then what is wrong and what that means."""
    rows = {
        "op library": ops.library or "none",
        "version": ops.version,
        "packed layout": None if ops.layout is None else str(ops.layout),
        "instruction set": ops.isa,
        "available": ", ".join(ops.available),
        "ONNX Runtime": ops.onnxruntime,
    }
    for name, value in rows.items():
        if value:
            console.print(f"[bold]{name:<16}[/] {shown(value)}", soft_wrap=True, highlight=False)
    if ops.problem is None:
        return
    console.print(f"[yellow]problem[/]: {shown(ops.problem)}", soft_wrap=True, highlight=False)
    if ops.version is None:
        console.print(
            "Models that onnxlr writes run all the same, only slower: their operators are "
            "functions of standard operators, too.",
            soft_wrap=True,
        )
