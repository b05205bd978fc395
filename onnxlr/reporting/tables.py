"""Tables for a terminal, within its width."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxlr.delivery import RewriteResult
from onnxlr.inspection import Inspection, LayerSummary
from onnxlr.plan import Plan
from onnxlr.rewriting import LayerRecord
from onnxlr.statistics import Statistics
from onnxlr.verification import Check, Comparison, Report

__all__ = [
    "print_inspection",
    "print_plan",
    "print_report",
    "print_rewrite",
    "print_statistics",
    "shown",
]

_PROOFS = {"approximation": "approx."}
"""Shorter names, which leave room for the outputs' own."""

_WORST = 10
"""Most layers listed by drift."""


def shown(text: str) -> str:
    """Return text of a model or a path for rich: no markup, no control characters in it."""
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def print_inspection(console: Console, inspection: Inspection) -> None:
    """Print a line per layer that can be rewritten, then the others by reason."""
    console.print(
        f"[bold]{shown(inspection.model)}[/]  opset {inspection.opset}, "
        f"IR {inspection.ir_version}, {_size(inspection.bytes)} in tensors"
    )
    layers = [layer for layer in inspection.layers if layer.skip is None]
    table = _table("layer", "operator", "shape", "share", "mul-adds", "rank", "even")
    for layer in layers:
        table.add_row(
            shown(layer.name),
            layer.operator + (f" ×{layer.sites}" if layer.sites > 1 else ""),
            _shape(layer.shape),
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
            "item of every unknown dimension (+)[/]"
        )
    _print_skipped(console, inspection.layers)


def _print_skipped(console: Console, layers: tuple[LayerSummary, ...]) -> None:
    skipped = [layer for layer in layers if layer.skip is not None]
    if not skipped:
        return
    table = _table("left alone", "operator", "share", "reason", right=("share",))
    for layer in skipped:
        share = f"{layer.share:.1%}" if layer.bytes else ""
        table.add_row(shown(layer.name), layer.operator, share, shown(layer.skip or ""))
    console.print(table)


def print_plan(console: Console, plan: Plan) -> None:
    """Print a line per layer that will be rewritten, and why others stay."""
    chosen = {name: choice for name, choice in plan.layers.items() if not choice.keeps}
    if chosen:
        table = _table("layer", "method", "format", right=())
        for name, choice in chosen.items():
            table.add_row(shown(name), str(choice), choice.kept_as)
        console.print(table)
    kept = {name: choice for name, choice in plan.layers.items() if choice.keeps}
    _print_reasons(console, [choice.reason or "kept" for choice in kept.values()])


def print_statistics(console: Console, statistics: Statistics) -> None:
    """Print what was observed, what was not and why, and what to beware of."""
    layers = statistics.layers.values()
    rows = sorted({layer.fit.count for layer in layers})
    seen = f", {rows[0]:,} to {rows[-1]:,} rows each" if rows else ""
    console.print(
        f"Observed {len(layers)} layer{'s' if len(layers) != 1 else ''} on "
        f"{shown(statistics.data)}{seen}"
    )
    _print_reasons(console, list(statistics.unobserved.values()), "not observed")
    for note in statistics.notes[:_WORST]:
        console.print(f"[yellow]note:[/] {shown(note)}")
    if len(statistics.notes) > _WORST:
        console.print(f"and {len(statistics.notes) - _WORST} more notes (--json lists all)")


def print_rewrite(console: Console, result: RewriteResult) -> None:
    """Print what became of each layer, the proofs, and the sizes."""
    _print_records(console, result.layers)
    if result.report is not None:
        print_report(console, result.report)
    ratio = result.bytes_after / result.bytes_before if result.bytes_before else 1.0
    if result.output is None:
        console.print(
            "[red]Nothing was written[/]: the rewritten model does not hold what was asked."
        )
    elif result.report is None:
        console.print(f"[yellow]Nothing was rewritten[/]: {shown(str(result.output))} is a copy.")
    else:
        failed = "" if result.report.passed else " although it does not hold what was asked"
        console.print(
            f"[{'yellow' if failed else 'green'}]Wrote[/] {shown(str(result.output))}: "
            f"{_size(result.bytes_before)} → {_size(result.bytes_after)} ({ratio:.1%}){failed}"
        )


@dataclass(frozen=True)
class _Column:
    """A column that is shown if it has something in it."""

    name: str
    meaning: str
    of: Callable[[LayerRecord], str]


_UNMEASURED = (
    _Column("shape", "", lambda record: _shape(record.shape)),
    _Column(
        "error",
        "relative Frobenius error of the weight",
        lambda record: _number(record.error),
    ),
)
"""What is known without calibration; with it, the error of the outputs says more."""

_MEASURED = (
    _Column(
        "output",
        "relative error of its outputs on held-out inputs",
        lambda record: _number(record.output_error),
    ),
    _Column(
        "plain",
        "the same of a plain fit of the same size",
        lambda record: _number(record.plain_error),
    ),
    _Column(
        "variance",
        "variance of the importance over its squared mean, which predicts the gain",
        lambda record: _number(record.importance_variance),
    ),
    _Column(
        "gain",
        "how much less the error weighted by importance is than that of the plain fit",
        lambda record: "" if record.importance_gain is None else f"{record.importance_gain:.1%}",
    ),
)


def _print_records(console: Console, records: tuple[LayerRecord, ...]) -> None:
    rewritten = [record for record in records if not record.choice.keeps]
    if rewritten:
        measured = [column for column in _MEASURED if any(column.of(r) for r in rewritten)]
        columns = (*(_UNMEASURED if not measured else ()), *measured)
        titles = [column.name for column in columns]
        table = _table(
            "layer", "method", *titles, "bytes", "of before", right=(*titles, "bytes", "of before")
        )
        for record in rewritten:
            table.add_row(
                shown(record.name),
                record.choice.summary,
                *(column.of(record) for column in columns),
                _size(record.bytes_after),
                f"{record.bytes_after / max(record.bytes_before, 1):.0%}",
            )
        console.print(table)
        words = [f"{column.name}: {column.meaning}" for column in columns if column.meaning]
        console.print(f"[dim]{'; '.join(words)}[/]")
    _print_reasons(console, [r.choice.reason or "kept" for r in records if r.choice.keeps])


def _print_reasons(console: Console, reasons: list[str], what: str = "left alone") -> None:
    if not reasons:
        return
    general = Counter(_general(reason) for reason in reasons)
    console.print(f"{len(reasons)} layer{'s' if len(reasons) != 1 else ''} {what}:")
    for reason, number in general.most_common(_WORST):
        console.print(f"  {number} × {shown(reason)}")
    if len(general) > _WORST:
        console.print(f"  and {len(general) - _WORST} more reasons (--json lists all)")


def _general(reason: str) -> str:
    """Return a reason without the figures of one layer: like reasons are counted together."""
    if " bytes, the layer as it is " in reason:
        return "the factors would take more bytes than the layer as it is"
    return reason


def print_report(console: Console, report: Report) -> None:
    """Print both proofs with one line per output, then what failed and where it drifts."""
    console.print(f"Verified with {shown(report.runtime)} on {shown(report.data)}")
    table = _table("proof", "opt.", "output", "cosine", "rel. L2", "max abs", "SQNR", "top-1", "")
    for levels, cells in _comparison_rows(report.checks):
        table.add_row(cells[0], levels, *cells[1:])
    console.print(table)
    tolerances = {check.proof: check.tolerance for check in report.checks}
    asked = "; ".join(f"{proof} {shown(text)}" for proof, text in tolerances.items())
    console.print(
        f"[dim]asked: {asked}\nopt.: graph optimisation on (all) and off (none); SQNR: in dB[/]"
    )
    for note in report.notes:
        console.print(f"[yellow]note:[/] {shown(note)}")
    for failure in report.failures:
        console.print(f"[red]failed:[/] {shown(failure)}")
    if report.drifts:
        drifts = _table("drifts most at", "rel. L2", "cosine")
        for drift in report.drifts[:_WORST]:
            drifts.add_row(
                shown(drift.layer), _number(drift.relative_l2), _number(drift.cosine, ".5f")
            )
        console.print(drifts)
        if len(report.drifts) > _WORST:
            console.print(f"and {len(report.drifts) - _WORST} more (--json lists all)")


def _comparison_rows(checks: Sequence[Check]) -> Iterator[tuple[str, list[str]]]:
    """Yield a row for each proof and output; levels of optimisation that read alike share one."""
    levels: dict[tuple[str, ...], list[str]] = {}
    for check in checks:
        for comparison in check.comparisons:
            levels.setdefault(tuple(_cells(check, comparison)), []).append(check.optimisation)
    first: dict[tuple[str, ...], int] = {}
    for cells in levels:
        first.setdefault(cells[:2], len(first))
    for cells in sorted(levels, key=lambda cells: first[cells[:2]]):
        both = len(set(levels[cells])) > 1
        yield "both" if both else levels[cells][0], list(cells)


def _cells(check: Check, comparison: Comparison) -> list[str]:
    mark = "[green]✓[/]" if _holds(check, comparison) else "[red]✗[/]"
    row = [_PROOFS.get(check.proof, check.proof), shown(comparison.output)]
    if comparison.mismatch:
        return [*row, "", "", "", "", "", mark]
    if not comparison.is_float:
        return [*row, "", "", "", "", f"{comparison.agreement:.2%}", mark]
    return [
        *row,
        f"{comparison.cosine:.5f}",
        _number(comparison.relative_l2),
        _number(comparison.max_abs),
        _number(comparison.sqnr, ".1f"),
        "" if comparison.top1 is None else f"{comparison.top1:.2%}",
        mark,
    ]


def _holds(check: Check, comparison: Comparison) -> bool:
    return not any(
        failure.startswith(f"output '{comparison.output}'") for failure in check.failures
    )


def _table(*columns: str, right: tuple[str, ...] | None = None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        numeric = position > 0 if right is None else column in right
        long = position == 0 or column in ("output", "reason")
        table.add_column(
            column, justify="right" if numeric and not long else "left", overflow="fold"
        )
    return table


def _shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape)) if shape else ""


def _work(layer: LayerSummary) -> str:
    if layer.multiply_adds is None:
        return "?"
    count, unit = float(layer.multiply_adds), ""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
            break
        count /= 1000
    return f"{count:.3g}{unit}" + ("+" if layer.per else "")


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.2f} MB"


def _number(value: float | None, form: str = ".2g") -> str:
    if value is None or isnan(value):
        return ""
    return format(value, form) if isfinite(value) else ("∞" if value > 0 else "−∞")
