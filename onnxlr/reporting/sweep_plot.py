"""A sweep as a drawing, by matplotlib: size and time against the drop, legible without colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxlr.errors import MissingExtraError, UsageError
from onnxlr.model.saving import check_output, staging
from onnxlr.planning import SweepPoint, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_plot", "figure_of", "write_plot"]

_ENDINGS = (".svg", ".png")
_STOCK_MARKS = ("s", "D", "^", "v", "<", ">", "p", "h", "P", "X", "d", "8")
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
_LONG = 60
"""Most characters of a model's name, the last ones."""

_ROOM = 1.15
"""Factor of empty space around the points."""


def check_plot(path: Path, *inputs: Path | None) -> None:
    """Refuse, before any work, what cannot be drawn.

    Raises
    ------
    UsageError
        If the file's name does not end as a drawing's does.
    OutputError
        If the file cannot be written, or is an input.
    MissingExtraError
        If matplotlib is not installed.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{path}: cannot be drawn, expected a name that ends in .svg or .png")
    check_output(path, *inputs)
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            "a plot needs matplotlib, which is not installed: pip install 'onnxlr[report]'"
        )


def write_plot(path: Path, result: SweepResult) -> None:
    """Draw a sweep into a file, which appears whole or not at all; raises as `check_plot` does."""
    check_plot(path)
    import matplotlib as mpl

    # The same sweep gives the same bytes, and an SVG's text stays text.
    fixed = {"svg.hashsalt": "onnxlr", "svg.fonttype": "none"}
    kind = path.suffix.lower()[1:]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with staging(path) as folder, mpl.rc_context(fixed):
        figure_of(result).savefig(folder / path.name, format=kind, dpi=150, metadata=metadata)


def figure_of(result: SweepResult) -> Figure:
    """Return two panels over one axis of drops: fractions of the original's size and time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    points = [point for point in result.points if point.costs is not None]
    _drops(panels[0], [point.costs[2] for point in points if point.costs])
    _draw(panels[0], points, "size", lambda point: point.size, None)
    _draw(panels[1], points, "time on one thread", lambda point: point.latency, _spread)
    for panel in panels:
        panel.set_xlabel(f"drop of {result.measure}".replace("$", r"\$"))
    figure.suptitle(_title(result))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _title(result: SweepResult) -> str:
    least = {"size": "size", "latency": "time", "balanced": "size and time"}[result.goal]
    name = result.model if len(result.model) <= _LONG else f"…{result.model[-_LONG:]}"
    return f"{name}: least {least} for each drop".replace("$", r"\$")


def _spread(point: SweepPoint) -> tuple[float, float] | None:
    """Return how far below and above the median the quartiles of the time are."""
    if point.latency is None or point.latency_low is None or point.latency_high is None:
        return None
    low = max(point.latency - point.latency_low, 0.0)
    return low, max(point.latency_high - point.latency, 0.0)


def _draw(
    panel: Axes,
    points: Sequence[SweepPoint],
    what: str,
    value: Callable[[SweepPoint], float | None],
    spread: Callable[[SweepPoint], tuple[float, float] | None] | None,
) -> None:
    """Draw one panel."""
    planned = [point for point in points if point.kind == "planned"]
    joined = sorted(
        ((point.drop, value(point)) for point in planned if point.on_front),
        key=lambda pair: pair[0] or 0.0,
    )
    panel.plot(*zip(*joined, strict=True) if joined else ([], []), color="black", linewidth=1.2)
    marks = iter(_STOCK_MARKS)
    seen = False
    for point in points:
        style: dict[str, Any] = {"color": "black", "markersize": 6, "linestyle": "none"}
        label: str | None = point.name
        if point.kind == "planned":
            style |= {"marker": "o", "markersize": 7, "zorder": 3}
            label, seen = None if seen else "onnxlr (joined where on the front)", True
        elif point.kind == "original":
            style |= {"marker": "*", "markersize": 12, "fillstyle": "none"}
        else:
            style |= {"marker": next(marks, "1"), "fillstyle": "none"}
        found = spread(point) if spread is not None else None
        errors = None if found is None else [[found[0]], [found[1]]]
        panel.errorbar(
            [point.drop or 0.0], [value(point) or 0.0], yerr=errors, label=label, capsize=2, **style
        )
    _fractions(panel, [value(point) or 1.0 for point in points])
    panel.set_ylabel(f"{what}, of the original's")
    panel.grid(visible=True, which="major", color="0.88", linewidth=0.6)
    panel.set_axisbelow(True)


def _fractions(panel: Axes, values: Sequence[float]) -> None:
    """Give a panel an axis of fractions on which half and double are alike."""
    low, high = min([*values, 1.0]) / _ROOM, max([*values, 1.0]) * _ROOM
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_yticks([], minor=True)


def _drops(panel: Axes, drops: Sequence[float]) -> None:
    """Give a panel an axis of drops: logarithmic, with nothing at all on its left."""
    sizes = [abs(drop) for drop in drops if drop]
    low = 10.0 ** floor(log10(min(sizes))) if sizes else 1e-3
    high = max([*sizes, low * 10])
    panel.set_xscale("symlog", linthresh=low, linscale=0.5)
    panel.set_xlim(min([*drops, 0.0]) * 1.5 - low / 4, high * 1.5)
    powers = range(round(log10(low)), floor(log10(high)) + 1)
    step = 1 + len(powers) // 6
    ticks = [10.0**power for power in powers][::step]
    if min(drops, default=0.0) < 0:  # a function's score may be better than the original's
        ticks = [-low, *ticks]
    panel.set_xticks([0.0, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    panel.set_xticks([], minor=True)
