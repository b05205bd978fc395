"""The tables of tools/bench_auto.py, and what counts as better."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tools import auto_tasks
from tools.bench_auto import MARK, Planned, main, read, tables


def contender(name: str, size: float, latency: float | None, **more: Any) -> dict[str, Any]:
    timed = latency is not None
    entry = {
        "name": name,
        "bytes": int(size * 1e6),
        "size": size,
        "milliseconds": 10 * latency if latency is not None else None,
        "latency": latency,
        "latency_low": latency if timed else None,
        "latency_high": latency if timed else None,
        "drops": {"m:f": 0.004},
        "meets": True,
        "is_stock": name != "onnxlr",
        "chosen": False,
        "problem": None,
    }
    return entry | more


def planned(*contenders: dict[str, Any]) -> Planned:
    return Planned("x", "accuracy", "onnx", "size", "m:f", 0.01, 60.0, 5.0, list(contenders))


@pytest.mark.parametrize(
    ("size", "latency", "beaten"),
    [
        (0.19, 0.5, 1),  # smaller, as fast
        (0.2, 0.4, 1),  # as small, faster
        (0.19, 0.505, 1),  # smaller, within what two sessions differ
        (0.19, 0.6, 0),  # smaller, slower
        (0.21, 0.3, 0),  # faster, larger
        (0.2, 0.5, 0),  # the same
        (0.2, 0.495, 0),  # the same, within what two sessions differ
    ],
)
def test_better_is_smaller_or_faster_and_not_worse_in_the_other(
    size: float, latency: float, beaten: int
) -> None:
    found = planned(contender("onnxlr", size, latency), contender("int8", 0.2, 0.5))
    assert found.verdict == f"better than {beaten} of 1 stock options that keep the limit"


def test_options_that_lose_too_much_are_not_beaten() -> None:
    lossy = contender("4 bits", 0.1, None, meets=False)
    found = planned(contender("onnxlr", 0.2, 0.5), lossy)
    assert found.verdict == "better than 0 of 0 stock options that keep the limit"
    assert planned(lossy).verdict == "no plan"


def test_tables_say_what_was_found() -> None:
    ours = contender("onnxlr", 0.2, 0.5, chosen=True)
    lossy = contender("4 bits", 0.1, None, meets=False, drops={"m:f": 0.2})
    failed = contender("static", 0.0, None, problem="cannot be made")
    summary, grid = tables([planned(ours, lossy, failed)])
    assert summary.rows == [
        ["x", "size", "0.200", "0.500", "0.0040", "0.01", planned(ours).verdict, "60 (5)"]
    ]
    assert grid.rows == [
        ["**onnxlr**", "0.20", "0.200", "5", "0.500", "0.500–0.500", "0.0040"],
        ["4 bits", "0.10", "0.100", "–", "–", "–", "0.2000 (too much)"],
    ]


def test_figures_are_kept_and_written_into_a_page(tmp_path, capsys) -> None:
    file, page = tmp_path / "auto.json", tmp_path / "auto.md"
    result = planned(contender("onnxlr", 0.2, 0.5), contender("int8", 0.25, 0.5))
    file.write_text(json.dumps([asdict(result)]))
    assert read(file) == [result]
    page.write_text(f"before\n{MARK}\nold\n{MARK.replace('<!-- ', '<!-- end of ')}\nafter\n")
    assert main(["--show", "--json", str(file), "--write", str(page)]) == 0
    text = page.read_text()
    assert "better than 1 of 1" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "better than 1 of 1" in " ".join(capsys.readouterr().out.split())


def test_files_are_given_to_magika_as_both_ends_without_blanks(tmp_path) -> None:
    file = tmp_path / "f.txt"
    file.write_bytes(b"  \n" + b"a" * 5000 + b"z" * 20 + b"\n\n")
    row = auto_tasks._row(file)
    assert row.shape == (2048,)
    assert set(row[:1024]) == {ord("a")}
    assert bytes(row[-20:].astype(np.uint8)) == b"z" * 20
    file.write_bytes(b" hello ")
    row = auto_tasks._row(file)
    assert bytes(row[:6].astype(np.uint8)) == b"hello "
    assert (row[6:-6] == 256).all()
    assert bytes(row[-6:].astype(np.uint8)) == b" hello"
