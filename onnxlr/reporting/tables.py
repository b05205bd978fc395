"""Tables for a terminal, within its width."""

from __future__ import annotations

from rich.console import Console

from onnxlr.delivery import RewriteResult
from onnxlr.inspection import Inspection, LayerSummary
from onnxlr.plan import Plan
from onnxlr.reporting.cells import (
    MOST,
    count_of,
    print_reasons,
    shape_of,
    shown,
    size_of,
    table_of,
)
from onnxlr.reporting.findings import print_findings
from onnxlr.reporting.footprint import print_footprints
from onnxlr.reporting.proofs import print_report
from onnxlr.reporting.records import print_records
from onnxlr.statistics import Statistics

__all__ = ["print_inspection", "print_plan", "print_rewrite", "print_statistics"]


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Print a line per layer that can be rewritten, then the others by reason."""
    console.print(
        f"[bold]{shown(inspection.model)}[/]  opset {inspection.opset}, "
        f"IR {inspection.ir_version}, {size_of(inspection.bytes)} in tensors"
    )
    layers = [layer for layer in inspection.layers if layer.skip is None]
    table = table_of("layer", "operator", "shape", "share", "mul-adds", "rank", "even")
    for layer in layers:
        table.add_row(
            shown(layer.name),
            layer.operator + (f" ×{layer.sites}" if layer.sites > 1 else ""),
            shape_of(layer.shape),
            f"{layer.share:.1%}",
            _work(layer),
            "" if layer.rank90 is None else f"{layer.rank90}/{layer.rank99}",
            "" if layer.break_even is None else str(layer.break_even),
        )
    if layers:
        console.print(table)
        console.print(
            "[dim]shape: inputs×outputs, of kernels outputs×inputs×window; rank: singular values "
            "that hold 90 % / 99 % of the energy; even: largest rank whose factors have fewer "
            "parameters than the weight; both of kernels in the channel form; mul-adds: for one "
            "item of every unknown dimension (+), ? where a shape is not known[/]"
        )
    _print_skipped(console, inspection.layers)


def _print_skipped(console: Console, layers: tuple[LayerSummary, ...]) -> None:
    skipped = [layer for layer in layers if layer.skip is not None]
    if not skipped:
        return
    table = table_of("left alone", "operator", "share", "reason", right=("share",))
    for layer in skipped:
        share = f"{layer.share:.1%}" if layer.bytes else ""
        table.add_row(shown(layer.name), layer.operator, share, shown(layer.skip or ""))
    console.print(table)


def print_plan(console: Console, plan: Plan) -> None:
    """Print a line per layer that will be rewritten, and why others stay."""
    chosen = {name: choice for name, choice in plan.layers.items() if not choice.keeps}
    if chosen:
        table = table_of("layer", "method", "format", right=())
        for name, choice in chosen.items():
            table.add_row(shown(name), str(choice), choice.kept_as)
        console.print(table)
    kept = {name: choice for name, choice in plan.layers.items() if choice.keeps}
    print_reasons(console, [choice.reason or "kept" for choice in kept.values()])


def print_statistics(console: Console, statistics: Statistics) -> None:
    """Print what was observed, what was not and why, and what to beware of."""
    layers = statistics.layers.values()
    rows = sorted({layer.fit.count for layer in layers})
    seen = f", {rows[0]:,} to {rows[-1]:,} rows each" if rows else ""
    console.print(
        f"Observed {len(layers)} layer{'s' if len(layers) != 1 else ''} on "
        f"{shown(statistics.data)}{seen}"
    )
    print_reasons(console, list(statistics.unobserved.values()), "not observed")
    for note in statistics.notes[:MOST]:
        console.print(f"[yellow]note:[/] {shown(note)}")
    if len(statistics.notes) > MOST:
        console.print(f"and {len(statistics.notes) - MOST} more notes (--json lists all)")


def print_rewrite(console: Console, result: RewriteResult) -> None:
    """Print what became of each layer, the proofs, what was measured, and the sizes."""
    print_records(console, result.layers)
    if result.findings is not None:
        print_findings(console, result.findings)
    if result.report is not None:
        print_report(console, result.report)
    if result.footprints is not None:
        print_footprints(console, result.footprints)
    ratio = result.bytes_after / result.bytes_before if result.bytes_before else 1.0
    if result.output is None:
        console.print(
            "[red]Nothing was written[/]: the rewritten model does not hold what was asked."
        )
    elif result.report is None:
        console.print(f"[yellow]Nothing was rewritten[/]: {shown(str(result.output))} is a copy.")
    else:
        failed = "" if result.report.passed else " although it does not hold what was asked"
        if ratio > 1:
            failed = f", which is larger than before{failed}"
        console.print(
            f"[{'yellow' if failed else 'green'}]Wrote[/] {shown(str(result.output))}: "
            f"{size_of(result.bytes_before)} → {size_of(result.bytes_after)} ({ratio:.1%}){failed}"
        )


def _work(layer: LayerSummary) -> str:
    if layer.multiply_adds is None:
        return "?"
    return count_of(layer.multiply_adds).replace(" ", "") + ("+" if layer.per else "")
