"""What SVD training reached, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from onnxlr.reporting.cells import count_of, number_of, print_reasons, shown, table_of
from onnxlr.reporting.tables import print_rewrite

if TYPE_CHECKING:
    from onnxlr.training.svd.request import SvdLayer
    from onnxlr.training.svd.result import SvdResult, SvdTrained

__all__ = ["print_svd_training"]


def print_svd_training(console: Console, result: SvdResult) -> None:
    """Print what became of each layer, held-out data before and after, and the rewriting."""
    trained = result.training
    factored = [layer for layer in trained.layers if layer.full_rank is not None]
    table = table_of("layer", "form", "rank", "energy", "parameters", "mul-adds")
    for layer in factored:
        table.add_row(
            shown(layer.name),
            layer.form or "",
            f"{layer.full_rank} → {layer.rank or 'dense'}",
            "" if layer.energy is None else f"{layer.energy:.4f}",
            _change(layer.parameters),
            _change(layer.multiply_adds),
        )
    console.print(table)
    console.print(
        "[dim]rank: of the weight, and what was kept; energy: share of the squared singular values "
        "that this held when it was cut; mul-adds: for one item of every unknown dimension[/]"
    )
    _print_totals(console, factored)
    _print_stages(console, trained)
    print_reasons(console, [layer.reason for layer in trained.layers if layer.reason])
    console.print("Written with factors, and compared with the trained dense weights:")
    print_rewrite(console, result.rewriting)
    if result.dense is not None:
        console.print(f"[green]Wrote[/] {shown(str(result.dense))} (the dense weights)")


def _change(counts: tuple[int, int]) -> str:
    before, after = counts
    return f"{count_of(before)} → {count_of(after)}"


def _print_totals(console: Console, layers: list[SvdLayer]) -> None:
    parts = []
    for name, pairs in (
        ("parameters", [layer.parameters for layer in layers]),
        ("multiply-adds", [layer.multiply_adds for layer in layers]),
    ):
        before, after = (sum(pair[place] for pair in pairs) for place in (0, 1))
        share = f" ({after / before:.1%})" if before else ""
        parts.append(f"{name} {count_of(before)} → {count_of(after)}{share}")
    console.print(f"Factored layers: {', '.join(parts)}")


def _print_stages(console: Console, trained: SvdTrained) -> None:
    for stage in trained.stages:
        console.print(
            f"{stage.name}: {stage.steps:,} steps in {stage.seconds:.0f} s, kept that of step "
            f"{stage.kept:,} ({shown(stage.stopped)})"
        )
    better = "more" if trained.judged_by == "score" else "less"
    figures = [("as it came", trained.before), ("with penalties", trained.sparse)]
    figures += [(f"cut by {trained.energy_loss:.3g} of the energy", trained.cut)]
    figures += [("in the end", trained.after)]
    words = ", ".join(
        f"{what} {number_of(value, '.4g')}" for what, value in figures if value is not None
    )
    console.print(f"Held-out {trained.judged_by} ({better} is better): {words}")
    console.print(f"[dim]{shown(trained.data)}[/]")
