"""Fisher information as a table and as JSON values, without its arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from onnxlr.reporting.cells import number_of, print_reasons, shape_of, shown, table_of

if TYPE_CHECKING:
    from onnxlr.training.fisher.result import FisherInformation

__all__ = ["print_fisher", "summarise_fisher"]


def summarise_fisher(found: FisherInformation) -> dict[str, Any]:
    """Return what was found, without the arrays."""
    values = {name: value for name, value in vars(found).items() if name != "arrays"}
    layers = [{**vars(layer), "shape": list(layer.shape)} for layer in found.layers]
    return {**values, "layers": layers, "left": dict(found.left), "notes": list(found.notes)}


def print_fisher(console: Console, found: FisherInformation) -> None:
    """Print a line per weight, why others have none, and what to beware of."""
    draws = f", {found.draws} draws each" if found.draws > 1 else ""
    console.print(
        f"Squared gradients of [bold]{shown(found.loss)}[/] on {shown(found.data)}{draws}"
    )
    table = table_of("layer", "stored", "mean", "variance", "rows")
    for layer in found.layers:
        table.add_row(
            shown(layer.layer),
            shape_of(layer.shape),
            number_of(layer.mean),
            number_of(layer.variance),
            f"{layer.rows:,}" if layer.rows else "",
        )
    console.print(table)
    console.print(
        "[dim]mean: of an entry's squared gradients; variance: of the information inside the "
        "weight over its squared mean, which predicts what an importance of each entry gains; "
        "rows: of gradients in the Kronecker factors[/]"
    )
    print_reasons(console, [layer.why for layer in found.layers if layer.why], "without factors")
    print_reasons(console, list(found.left.values()), "left out")
    for note in found.notes:
        console.print(f"[yellow]note:[/] {shown(note)}")
