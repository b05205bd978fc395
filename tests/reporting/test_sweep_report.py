"""A sweep in a terminal, as JSON, and as a drawing."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from onnxlr.errors import MissingExtraError, OutputError, UsageError
from onnxlr.planning import SweepPoint, SweepResult
from onnxlr.reporting import to_document
from onnxlr.reporting.sweep import chart_of, marks_of, print_sweep, summarise_sweep
from onnxlr.reporting.sweep_plot import check_plot, figure_of, write_plot

NAMES = (
    "dynamic int8",
    "MatMulNBits 4 bits, blocks of 32",
    "MatMulNBits 4 bits, blocks of 128, tables too",
    "static int8 (QDQ), uint8 data",
)


def point(
    name: str, kind: str, size: float, latency: float, drop: float, budget: float | None = None
) -> SweepPoint:
    return SweepPoint(
        name,
        kind,
        budget,
        round(90.3e6 * size),
        size,
        18 * latency,
        latency,
        0.98 * latency,
        1.02 * latency,
        drop,
        on_front=kind != "stock",
    )


def sweep_of(*points: SweepPoint) -> SweepResult:
    return SweepResult("m.onnx", "size", "cosine", points, 12, 4, 7)


@pytest.fixture
def swept() -> SweepResult:
    """Return what a small transformer gives, about."""
    return sweep_of(
        point("original", "original", 1.0, 1.0, 0.0),
        point("onnxlr, drop ≤ 0.001", "planned", 0.262, 0.41, 0.00092, 0.001),
        point("onnxlr, drop ≤ 0.01", "planned", 0.158, 0.352, 0.0096, 0.01),
        SweepPoint("onnxlr, drop ≤ 0", "planned", 0.0, problem="nothing holds to it"),
        *(
            point(name, "stock", 0.25 + 0.1 * n, 0.35 + 0.3 * n, 0.008 * 3**n)
            for n, name in enumerate(NAMES)
        ),
    )


def printed(result: SweepResult, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, emoji=False)
    print_sweep(console, result)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_keeps_within_80_columns_and_marks_the_front(swept: SweepResult) -> None:
    text = printed(swept)
    assert max(map(len, text.splitlines())) <= 80
    rows = {line[0]: line for line in text.splitlines() if re.match(r"^[0-9A-Za-z]  \w", line)}
    assert {mark for mark, row in rows.items() if "yes" in row} == {"O", "1", "2"}
    assert "0.352 (0.345–0.359)" in rows["2"]
    assert "0.158" in rows["2"]
    assert "0.0096" in rows["2"]
    assert "nothing holds to it" in text
    assert "12 candidates" in text
    assert "7 models" in text


def test_marks_are_different_until_they_run_out() -> None:
    points = [point(str(n), "planned", 1.0, 1.0, 0.1) for n in range(40)]
    marks = marks_of([point("original", "original", 1.0, 1.0, 0.0), *points])
    known = [mark for mark in marks if mark != "*"]
    assert len(known) == len(set(known)) == 35
    assert marks[-6:] == ["*"] * 6


def test_the_chart_has_small_ones_below_and_good_ones_left(swept: SweepResult) -> None:
    places = {}
    lines = chart_of(swept)
    for row, line in enumerate(lines):
        _, separator, body = line.partition(" |")
        if separator:
            places |= {mark: (row, column) for column, mark in enumerate(body) if mark != " "}
    assert set(places) == {"O", "1", "2", "a", "b", "c", "d"}  # one has no numbers
    by_size = sorted("O12abcd", key=lambda mark: places[mark][0])
    assert by_size == ["O", "d", "c", "b", *sorted("1a", key=lambda m: places[m][0]), "2"]
    assert "".join(sorted(places, key=lambda mark: places[mark][1])) == "O1a2bcd"
    assert max(map(len, lines)) <= 80


def test_there_is_no_chart_without_drops() -> None:
    assert chart_of(sweep_of(point("original", "original", 1.0, 1.0, 0.0))) == []


def test_names_cannot_change_the_terminal() -> None:
    evil = replace(sweep_of(point("[red]\x1b[2J", "stock", 0.5, 0.5, 0.1)), model="[bold]\x1b]")
    text = printed(evil)
    assert "\x1b" not in text
    assert "[red]" in text


def test_the_document_has_every_point_but_no_plans(swept: SweepResult) -> None:
    filed = replace(swept.points[1], plan_file=Path("m.0.001.plan.json"))
    points = (*swept.points[:1], filed, *swept.points[2:])
    document = json.loads(
        json.dumps(to_document("sweep", summarise_sweep(replace(swept, points=points))))
    )
    assert document["schema"] == "onnxlr.sweep/1"
    assert (document["model"], document["goal"], document["measure"]) == (
        "m.onnx",
        "size",
        "cosine",
    )
    assert (document["candidates"], document["from_cache"], document["built"]) == (12, 4, 7)
    assert [entry["name"] for entry in document["points"]] == [each.name for each in points]
    entry = document["points"][1]
    assert entry["plan_file"] == "m.0.001.plan.json"
    assert entry["budget"] == 0.001
    assert entry["latency_low"] < entry["latency"] < entry["latency_high"]
    assert entry["on_front"] is True
    assert "plan" not in entry


def test_a_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'onnxlr\[report\]'"):
        check_plot(tmp_path / "p.svg")


@pytest.mark.parametrize("name", ["p", "p.pdf", "p.png.gz", ".svg"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        check_plot(tmp_path / name)


def test_a_plot_is_never_written_over_an_input(tmp_path: Path) -> None:
    own = tmp_path / "m.png"
    own.write_bytes(b"model")
    with pytest.raises(OutputError, match="is the input"):
        check_plot(own, own)


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra onnxlr[report]")


@pytest.mark.usefixtures("_matplotlib")
def test_a_png_is_drawn_the_same_every_time(tmp_path: Path, swept: SweepResult) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.PNG"]
    for file in files:
        write_plot(file, swept)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("_matplotlib")
def test_an_svg_says_what_is_what(tmp_path: Path, swept: SweepResult) -> None:
    for name in ("a.svg", "b.svg"):
        write_plot(tmp_path / name, swept)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = "\n".join(ET.parse(tmp_path / "a.svg").getroot().itertext())  # noqa: S314
    for word in (*NAMES, "original", "onnxlr", "drop of cosine", "size", "time"):
        assert word in text


@pytest.mark.usefixtures("_matplotlib")
def test_no_text_lies_over_another(swept: SweepResult) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figure_of(swept)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [*(figure.texts), *figure.legends[0].get_texts()]
    for panel in figure.axes:
        texts += [panel.xaxis.label, panel.yaxis.label]
        texts += [*panel.get_xticklabels(), *panel.get_yticklabels()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts if text.get_text()]
    assert len(boxes) > 20
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    for panel in figure.axes:  # what is drawn is within the panels
        for line in panel.lines:
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
                assert panel.get_xlim()[0] <= x <= panel.get_xlim()[1]
                assert panel.get_ylim()[0] <= y <= panel.get_ylim()[1]


@pytest.mark.usefixtures("_matplotlib")
def test_the_front_is_joined_by_rising_drops(swept: SweepResult) -> None:
    off = point("onnxlr, drop ≤ 0.005", "planned", 0.5, 0.9, 0.005, 0.005)
    backwards = replace(swept, points=(replace(off, on_front=False), *reversed(swept.points)))
    sizes, times = (panel.lines[0] for panel in figure_of(backwards).axes)
    assert list(sizes.get_xdata()) == [0.00092, 0.0096]
    assert list(sizes.get_ydata()) == [0.262, 0.158]
    assert list(times.get_ydata()) == [0.41, 0.352]


@pytest.mark.usefixtures("_matplotlib")
@pytest.mark.parametrize("drop", [0.0, -0.02, 1e-9, 40.0])
def test_any_drop_can_be_drawn(tmp_path: Path, drop: float) -> None:
    points = (
        point("original", "original", 1.0, 1.0, 0.0),
        point("onnxlr, drop ≤ 50", "planned", 0.2, 0.3, drop, 50.0),
    )
    result = replace(sweep_of(*points), measure="my_module:dollars_$x$", model="a_$b$" * 30)
    write_plot(tmp_path / "p.svg", result)
    left, right = figure_of(result).axes[0].get_xlim()
    assert left <= drop <= right
    assert printed(result)


@pytest.mark.usefixtures("_matplotlib")
def test_a_plot_appears_whole_or_not_at_all(
    tmp_path: Path, swept: SweepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    file = tmp_path / "p.png"
    file.write_bytes(b"before")

    def fail(self: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_plot(file, swept)
    assert file.read_bytes() == b"before"
    assert [each.name for each in tmp_path.iterdir()] == ["p.png"]
