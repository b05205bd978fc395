"""The proofs, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from onnxlr.reporting.cells import MOST, number_of, shown, table_of
from onnxlr.verification import Check, Comparison, Report

__all__ = ["print_report"]

_PROOFS = {"approximation": "approx.", "equivalence": "equiv."}
"""Shorter names, which leave room for the outputs' own."""

_WAYS = {
    "kernels": "With the op library's kernels:",
    "functions": "With functions of standard operators, as where there is no op library:",
}


def print_report(console: Console, report: Report) -> None:
    """Print the proofs with one line per output, then what failed and where it drifts.

    A model with ternary operators gets a table for each way it ran in.
    """
    console.print(f"Verified with {shown(report.runtime)} on {shown(report.data)}")
    for way in dict.fromkeys(check.run_by for check in report.checks):
        if way is not None:
            console.print(_WAYS.get(way, way))
        _print_checks(console, [check for check in report.checks if check.run_by == way])
    tolerances = {check.proof: check.tolerance for check in report.checks}
    asked = "; ".join(f"{proof} {shown(text)}" for proof, text in tolerances.items())
    words = "opt.: graph optimisation on (all) and off (none); SQNR: in dB"
    if "equivalence" in tolerances:
        words += "; equiv.: ternary nodes by function, compared with kernels on the same data"
    console.print(f"[dim]asked: {asked}\n{words}[/]")
    for note in report.notes:
        console.print(f"[yellow]note:[/] {shown(note)}")
    for failure in report.failures:
        console.print(f"[red]failed:[/] {shown(failure)}")
    _print_drifts(console, report)


def _print_checks(console: Console, checks: Sequence[Check]) -> None:
    table = table_of(
        "proof", "opt.", "output", "cosine", "rel. L2", "max abs", "SQNR", "top-1", "", names=2
    )
    for levels, cells in _comparison_rows(checks):
        table.add_row(cells[0], levels, *cells[1:])
    console.print(table)


def _print_drifts(console: Console, report: Report) -> None:
    if not report.drifts:
        return
    drifts = table_of("drifts most at", "rel. L2", "cosine")
    for drift in report.drifts[:MOST]:
        drifts.add_row(
            shown(drift.layer), number_of(drift.relative_l2), number_of(drift.cosine, ".5f")
        )
    console.print(drifts)
    if len(report.drifts) > MOST:
        console.print(f"and {len(report.drifts) - MOST} more (--json lists all)")


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
        number_of(comparison.relative_l2),
        number_of(comparison.max_abs),
        number_of(comparison.sqnr, ".1f"),
        "" if comparison.top1 is None else f"{comparison.top1:.2%}",
        mark,
    ]


def _holds(check: Check, comparison: Comparison) -> bool:
    return not any(
        failure.startswith(f"output '{comparison.output}'") for failure in check.failures
    )
