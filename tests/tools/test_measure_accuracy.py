"""Tests of `tools/measure_accuracy.py` on a model of one product."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from tests.tools.small_task import small_task
from tools import measure_accuracy
from tools.measure_accuracy import choose, main, table
from tools.measured_files import Result
from tools.measured_rows import ROWS, Ours, Peer
from tools.measured_tasks import mean_cosine


@pytest.fixture
def task(tmp_path):
    return small_task(tmp_path)


def test_rows_are_chosen_by_pattern():
    rows = [Ours("svd a", {}), Ours("int8", {}), Ours("svd b", {})]
    assert [row.name for row in choose(rows, ["svd *"])] == ["svd a", "svd b"]
    assert choose(rows, []) == rows
    assert choose(rows, ["none"]) == []


@pytest.mark.parametrize("name", ROWS)
def test_names_of_rows_are_distinct_and_listed(name, capsys):
    names = [row.name for row in ROWS[name]]
    assert len(set(names)) == len(names)
    assert main([name, "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == names


def test_table_shows_errors_as_they_are(task):
    console = Console(width=120)
    results = [Result("good", 1.5, 0.25, 3.0, 1.0, 0.9, 1.1, 2.0), Result("bad", error="E: [1, 2]")]
    with console.capture() as capture:
        console.print(table(task, results))
    text = capture.get()
    assert "E: [1, 2]" in text
    assert all(cell in text for cell in ("1.50", "0.2500", "1.000", "0.900–1.100", "2.0"))


def test_command_writes_every_row_and_reports_failure(task, tmp_path, monkeypatch, capsys):
    def fail(_model, _output):
        raise RuntimeError("no such kernel")

    rows = (Peer("copy", shutil.copy), Peer("failing", fail))
    monkeypatch.setitem(measure_accuracy.TASKS, "minilm", lambda: task)
    monkeypatch.setitem(measure_accuracy.ROWS, "minilm", rows)
    file = tmp_path / "out.json"
    assert main(["minilm", "--json", str(file), "--rounds", "2"]) == 1
    content = json.loads(file.read_text())
    assert [row["name"] for row in content["rows"]] == ["original", "copy", "failing"]
    assert [row["score"] for row in content["rows"]] == [0.5, 0.5, None]
    assert "no such kernel" in capsys.readouterr().out


def test_mean_cosine_is_of_rows_and_ignores_their_lengths():
    first = np.array([[1, 0], [0, 2], [3, 3]])
    second = np.array([[5, 0], [0, -1], [1, 0]])
    assert mean_cosine(first, second) == pytest.approx((1 - 1 + np.sqrt(0.5)) / 3)
