"""What models take, in a table of a terminal's width and in JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from onnxlr.delivery import RewriteResult
from onnxlr.plan import Plan
from onnxlr.reporting import print_rewrite, to_document
from onnxlr.reporting.footprint import _size, time_of
from onnxlr.runtime import Footprint, Footprints, Latency

BEFORE = Footprint(90_400_000, 0.1234, 95_000_000, 190_400_000, Latency(2.5e-3, 1.0, 1.0, 1.0))
AFTER = Footprint(9_870_000, 1.5, 5_000, 612, Latency(45e-6, 12.345, 11.014, 13.999))


def printed(footprints: Footprints | None) -> list[str]:
    console = Console(file=io.StringIO(), width=80, emoji=False)
    print_rewrite(console, result(footprints))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def result(footprints: Footprints | None) -> RewriteResult:
    plan = Plan({}, None, "onnx", 0, "1", None, False, None)
    return RewriteResult(Path("o.onnx"), plan, (), None, 1, 1, footprints)


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_each_column_by_itself() -> None:
    heads, before, after, *words = printed(Footprints(BEFORE, AFTER))
    assert cells(heads) == ["disk", "load", "memory", "peak", "latency", "of original"]
    assert cells(before) == [
        *("original", "90.4 MB", "123 ms", "95 MB", "190 MB", "2.5 ms", "1.00 (1.00–1.00)")
    ]
    assert cells(after) == [
        *("rewritten", "9.87 MB", "1.5 s", "5 kB", "612 B", "45 µs", "12.35 (11.01–14.00)")
    ]
    assert all(len(line) <= 80 for line in (heads, before, after, *words))
    text = " ".join(words)
    assert "recombine load" in text
    assert "recombine run" in text


def test_a_cell_without_a_figure_says_whether_it_failed() -> None:
    untold = Footprint(1000, 0.002, None, None, Latency(1.0, 1.0, 1.0, 1.0), ("no [memory] here",))
    failed = Footprint(1000, problems=("it died", "no [memory] here"))
    _, before, after, *words = printed(Footprints(untold, failed))
    assert cells(before)[1:6] == ["1 kB", "2 ms", "–", "–", "1 s"]
    assert cells(after)[1:] == ["1 kB", *["failed"] * 4]
    assert [line for line in words if line.startswith("note:")] == [
        "note: no [memory] here",
        "note: it died",
    ]


def test_nothing_measured_nothing_said() -> None:
    assert not any("latency" in line for line in printed(None))


def test_json_has_all_of_it() -> None:
    document = json.loads(json.dumps(to_document("rewrite", result(Footprints(BEFORE, AFTER)))))
    assert document["footprints"] == {
        "original": {
            "bytes": 90_400_000,
            "load_seconds": 0.1234,
            "memory": 95_000_000,
            "peak": 190_400_000,
            "latency": {"seconds": 2.5e-3, "ratio": 1.0, "low": 1.0, "high": 1.0},
            "problems": [],
        },
        "rewritten": {
            "bytes": 9_870_000,
            "load_seconds": 1.5,
            "memory": 5_000,
            "peak": 612,
            "latency": {"seconds": 45e-6, "ratio": 12.345, "low": 11.014, "high": 13.999},
            "problems": [],
        },
    }
    assert to_document("rewrite", result(None))["footprints"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9996, "1 s"), (0.9994, "999 ms"), (1234.5, "1234 s"), (9.994e-4, "999 µs"), (0.0, "0 µs")],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert time_of(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2_340_000_000, "2.34 GB")]
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert _size(count) == text
