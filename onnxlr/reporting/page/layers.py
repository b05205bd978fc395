"""The layers of a rewrite as a page shows them: rows, errors along the graph, spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from onnxlr.plan import Choice
from onnxlr.reporting.cells import number_of, shape_of, size_of
from onnxlr.reporting.page.charts import Axis, Tick, decades, share, steps, thinned
from onnxlr.reporting.page.spectra import FLOOR, Spectra, WeightSpectrum

__all__ = [
    "Card",
    "Cell",
    "Column",
    "ErrorChart",
    "Kept",
    "Row",
    "card_of",
    "columns_of",
    "error_chart",
    "kept_of",
    "rows_of",
    "spectrum_axis",
]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """What a cell says; the number behind it, to sort by; the length of its bar in percent."""

    text: str
    value: float | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of numbers that is shown if a layer has one."""

    key: str
    title: str
    meaning: str
    say: Callable[[Any], str]
    has_bar: bool = False


@dataclass(frozen=True)
class Row:
    """A layer that was rewritten.

    Attributes
    ----------
    number
        Its position among all layers, in graph order.
    name, operator
        As in `LayerRecord`.
    summary
        Its method, and how numbers are kept.
    reason, rejected
        Why, and what else was measured.
    cells
        One for each column.
    """

    number: int
    name: str
    operator: str
    summary: str
    reason: str | None
    rejected: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Kept:
    """A layer that was left alone, and why."""

    number: int
    name: str
    operator: str
    shape: str
    size: Cell
    reason: str


def _share(value: float) -> str:
    return f"{value:.0%}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _short(value: float) -> str:
    return number_of(value)


_COLUMNS = (
    Column("error", "weight error", "relative Frobenius error of the weight", _short),
    Column("output_error", "output error", "relative, on held-out inputs", _short),
    Column("plain_error", "plain fit", "output error of a plain fit of the same size", _short),
    Column(
        "importance_variance",
        "variance",
        "of the importance, over its squared mean, which predicts the gain",
        _short,
    ),
    Column(
        "importance_gain",
        "gain",
        "how much less the error weighted by importance is than that of the plain fit",
        _percent,
    ),
    Column("ratio", "numbers", "stored for each entry of the weight", lambda value: f"{value:.3f}"),
    Column("trits_per_weight", "trits", "numbers −1, 0 and 1 for each entry", "{:.2f}".format),
    Column("additions", "additions", "for one row of data", "{:,}".format),
    Column("multiplications", "multiplications", "for one row of data", "{:,}".format),
    Column("bytes_before", "before", "bytes in the file", size_of),
    Column("bytes_after", "after", "bytes in the file", size_of),
    Column("of_before", "of before", "bytes, of those before", _share, has_bar=True),
)


def columns_of(records: Sequence[Record]) -> tuple[Column, ...]:
    """Return the columns in which some rewritten layer has a number."""
    rewritten = [record for record in records if not _is_kept(record)]
    return tuple(c for c in _COLUMNS if any(_value(r, c) is not None for r in rewritten))


def rows_of(records: Sequence[Record], columns: Sequence[Column]) -> tuple[Row, ...]:
    """Return a row for each rewritten layer, in graph order."""
    rows = []
    for number, record in enumerate(records, 1):
        if _is_kept(record):
            continue
        choice = Choice.from_json(record["choice"], record["name"])
        cells = (_shape(record), *(_cell(record, column) for column in columns))
        rejected = tuple((choice.rejected or {}).items())
        facts = (choice.summary, choice.reason, rejected, cells)
        rows.append(Row(number, record["name"], record["operator"], *facts))
    return tuple(rows)


def kept_of(records: Sequence[Record]) -> tuple[Kept, ...]:
    """Return a row for each layer that was left alone."""
    return tuple(
        Kept(
            number,
            record["name"],
            record["operator"],
            shape_of(record["shape"]),
            Cell(size_of(record["bytes_before"]), record["bytes_before"]),
            record["choice"].get("reason") or "kept",
        )
        for number, record in enumerate(records, 1)
        if _is_kept(record)
    )


def _is_kept(record: Record) -> bool:
    return bool(record["choice"]["method"] == "keep")


def _value(record: Record, column: Column) -> float | None:
    if column.key == "of_before":
        return float(record["bytes_after"] / max(record["bytes_before"], 1))
    value: float | None = record[column.key]
    return value


def _cell(record: Record, column: Column) -> Cell:
    value = _value(record, column)
    if value is None:
        return Cell("")
    return Cell(column.say(value), value, share(value, 1.0) if column.has_bar else None)


def _shape(record: Record) -> Cell:
    return Cell(shape_of(record["shape"]), float(prod(record["shape"] or (0,))))


@dataclass(frozen=True)
class Mark:
    """An error of a layer in the chart: where it is, and what it says."""

    kind: str
    x: float
    y: float


@dataclass(frozen=True)
class ErrorChart:
    """Errors of the rewritten layers along the graph, on a logarithmic axis.

    Attributes
    ----------
    ticks, numbers
        Of the axis of errors, and of the layers' numbers.
    layers
        What a pointer at a layer is told, how far it is from the left, the height of the highest
        mark, and its marks.
    kinds
        What is marked: `output`, `weight` and `plain`.
    """

    ticks: tuple[Tick, ...]
    numbers: tuple[Tick, ...]
    layers: tuple[tuple[str, float, float, tuple[Mark, ...]], ...]
    kinds: tuple[str, ...]


_ERRORS = {"error": "weight", "output_error": "output", "plain_error": "plain"}


def error_chart(records: Sequence[Record]) -> ErrorChart | None:
    """Return where errors of rewritten layers are drawn; None where none is known."""
    known = [
        (number, record, {k: record[k] for k in _ERRORS if record[k] is not None})
        for number, record in enumerate(records, 1)
        if not _is_kept(record)
    ]
    values = [value for _, _, errors in known for value in errors.values()]
    if not values:
        return None
    axis = decades(values)
    layers = []
    for number, record, errors in known:
        x = _place(number, len(records))
        marks = tuple(Mark(_ERRORS[key], x, axis.at(value)) for key, value in errors.items())
        said = ", ".join(f"{_ERRORS[key]} {number_of(value)}" for key, value in errors.items())
        top = min((mark.y for mark in marks), default=100.0)
        layers.append((f"{number}: {record['name']}: {said}", x, top, marks))
    kinds = tuple(kind for key, kind in _ERRORS.items() if any(key in e for _, _, e in known))
    numbers = tuple(Tick(_place(k, len(records)), str(k)) for k in steps(len(records)))
    return ErrorChart(axis.ticks, numbers, tuple(layers), kinds)


def _place(number: int, count: int) -> float:
    return round(100 * (number - 0.5) / count, 3)


@dataclass(frozen=True)
class Card:
    """A spectrum: the line, the rank that was kept, and a sentence on the energy.

    Attributes
    ----------
    layer, form
        As in `WeightSpectrum`.
    points
        Of the line, in percent of the chart's width and height.
    rank_at
        Where the rank is, in percent of the width; None where there is none.
    count
        Number of singular values.
    words
        What a reader cannot read off the line.
    """

    layer: str
    form: str | None
    points: str
    rank_at: float | None
    count: int
    words: str


def spectrum_axis(spectra: Spectra) -> Axis:
    """Return the axis that all spectra share."""
    values = [value for spectrum in spectra.found for value in spectrum.values]
    return decades(values, floor_at=FLOOR)


def card_of(spectrum: WeightSpectrum, axis: Axis) -> Card:
    """Return how a spectrum is drawn."""
    values, count = spectrum.values, len(spectrum.values)
    points = [(_place(k + 1, count), axis.at(values[k])) for k in thinned(values)]
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    rank_at = None if spectrum.rank is None else round(100 * spectrum.rank / count, 3)
    return Card(spectrum.layer, spectrum.form, line, rank_at, count, _words(spectrum))


def _words(spectrum: WeightSpectrum) -> str:
    energies = spectrum.energies
    ninety, most = (
        next((rank for rank, part in enumerate(energies, 1) if part >= least), len(energies))
        for least in (0.9, 0.99)
    )
    words = f"90 % of the energy lies in {ninety}, 99 % in {most} of {len(energies)}"
    if spectrum.rank is None:
        return words
    kept = energies[spectrum.rank - 1]
    return f"rank {spectrum.rank} keeps {kept:.1%}; {words}"
