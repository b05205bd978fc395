"""What became of each layer, for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from rich.console import Console

from onnxlr.records import LayerRecord, Parameters
from onnxlr.reporting.cells import (
    count_of,
    number_of,
    print_reasons,
    shape_of,
    shown,
    size_of,
    table_of,
)

__all__ = ["print_records"]


@dataclass(frozen=True)
class _Column:
    """A column that is shown if it has something in it."""

    name: str
    meaning: str
    of: Callable[[LayerRecord], str]


_UNMEASURED = (
    _Column("shape", "", lambda record: shape_of(record.shape)),
    _Column(
        "error",
        "relative Frobenius error of the weight",
        lambda record: number_of(record.error),
    ),
)
"""What is known without calibration; with it, the error of the outputs says more."""

_MEASURED = (
    _Column(
        "output",
        "relative error of its outputs on held-out inputs",
        lambda record: number_of(record.output_error),
    ),
    _Column(
        "plain",
        "the same of a plain fit of the same size",
        lambda record: number_of(record.plain_error),
    ),
    _Column(
        "variance",
        "variance of the importance over its squared mean, which predicts the gain",
        lambda record: number_of(record.importance_variance),
    ),
    _Column(
        "gain",
        "how much less the error weighted by importance is than that of the plain fit",
        lambda record: "" if record.importance_gain is None else f"{record.importance_gain:.1%}",
    ),
)


_RATIO = _Column(
    "ratio",
    "numbers stored for each entry of the weight",
    lambda record: number_of(record.ratio, ".3f"),
)
"""Not shown of ternary layers alone, whose numbers are the trits of a table of their own."""


def print_records(console: Console, records: Sequence[LayerRecord]) -> None:
    """Print a line for each rewritten layer, what ternary ones add up, and why others stay."""
    rewritten = [record for record in records if not record.choice.keeps]
    if rewritten:
        measured = [column for column in _MEASURED if any(column.of(r) for r in rewritten)]
        factorized = any(_is_factorized(record) for record in rewritten)
        columns = (
            *(_UNMEASURED if not measured else ()),
            *measured,
            *((_RATIO,) if factorized else ()),
        )
        titles = [column.name for column in columns]
        table = table_of(
            "layer", "method", *titles, "bytes", "of before", right=(*titles, "bytes", "of before")
        )
        for record in rewritten:
            table.add_row(
                shown(record.name),
                record.choice.summary,
                *(column.of(record) for column in columns),
                size_of(record.bytes_after),
                f"{record.bytes_after / max(record.bytes_before, 1):.0%}",
            )
        console.print(table)
        words = [f"{column.name}: {column.meaning}" for column in columns if column.meaning]
        console.print(f"[dim]{'; '.join(words)}[/]")
        if factorized:
            _print_parameters(console, rewritten, records)
        _print_ternary(console, rewritten)
    print_reasons(console, [r.choice.reason or "kept" for r in records if r.choice.keeps])


def _is_factorized(record: LayerRecord) -> bool:
    """Return whether other numbers, and not the weight's own in another format, are stored."""
    return record.trits_per_weight is None and record.parameters_after != record.parameters_before


def _print_parameters(
    console: Console, rewritten: Sequence[LayerRecord], records: Sequence[LayerRecord]
) -> None:
    """Print the numbers before and after, of the rewritten layers and of all."""
    own, whole = Parameters.of(rewritten), Parameters.of(records)
    many = "s" if len(rewritten) != 1 else ""
    line = f"{len(rewritten)} layer{many} rewritten: {_change_of(own)}"
    if whole.before > own.before:
        line += f"; with those left alone: {_change_of(whole)}"
    console.print(line, highlight=False)


def _change_of(numbers: Parameters) -> str:
    before, after = count_of(numbers.before), count_of(numbers.after)
    return f"{before} → {after} numbers (ratio {number_of(numbers.ratio, '.3f')})"


def _print_ternary(console: Console, records: Sequence[LayerRecord]) -> None:
    """Print what the arithmetic of ternary layers consists of."""
    ternary = [record for record in records if record.trits_per_weight is not None]
    if not ternary:
        return
    table = table_of("ternary layer", "trits", "non-zero", "adds", "muls")
    for record in ternary:
        trits = (record.trits_per_weight or 0.0) * prod(record.shape or ())
        table.add_row(
            shown(record.name),
            f"{record.trits_per_weight:.2f}",
            f"{(record.nonzeros or 0) / max(trits, 1):.1%}",
            count_of(record.additions or 0),
            count_of(record.multiplications or 0),
        )
    console.print(table)
    console.print(
        "[dim]trits: numbers −1, 0 and 1 for each entry of the weight; adds, muls: additions and "
        "multiplications for one row of data, or for one place in the output of each step of a "
        "convolution: counts, which do not say how long they take[/]"
    )
    if any(record.choice.method == "ternary_svd" for record in ternary):
        console.print(
            "[dim]a ternary SVD takes three to four trits (six to eight bits) a weight for the "
            "quality of int4 with GPTQ: it is for additions and for speed on few rows, not the "
            "smallest file[/]"
        )
