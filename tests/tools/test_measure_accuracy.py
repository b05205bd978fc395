"""Tests of `tools/measure_accuracy.py` on a model of one product; onnxlr's part is recorded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

import onnxlr
from tools import measure_accuracy
from tools.measure_accuracy import Bench, Result, choose, main, table
from tools.measured_rows import ROWS, Ours, Peer
from tools.measured_tasks import Task, mean_cosine

FEEDS = [{"x": np.ones((2, 4), np.float32)}, {"x": np.zeros((1, 4), np.float32)}]


@pytest.fixture
def task(tmp_path):
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 4]) for n in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "product", [x], [y], [weight])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return Task("small", path, "half", lambda _: 0.5, FEEDS, FEEDS[:1], FEEDS, mask="x")


@pytest.fixture
def bench(task, tmp_path):
    return Bench.prepare(task, tmp_path / "made", rounds=2)


def test_original_is_measured_against_itself(bench):
    result = bench.original()
    assert result.score == 0.5
    assert result.megabytes == bench.task.model.stat().st_size / 1e6
    assert result.seconds is None
    assert result.latency_low <= result.latency <= result.latency_high


def test_external_data_counts(bench):
    def make(model, output):
        shutil.copy(model, output)
        output.with_name(f"{output.name}.data").write_bytes(bytes(1_000_000))

    result = bench.measure(Peer("copy", make), 1)
    assert result.megabytes == 1 + bench.task.model.stat().st_size / 1e6


def test_a_failing_row_says_why_and_has_no_score(bench):
    def fail(_model, _output):
        raise RuntimeError("no such\nkernel")

    result = bench.measure(Peer("failing", fail), 1)
    assert result.error == "RuntimeError: no such kernel"
    assert (result.score, result.megabytes, result.latency) == (None, None, None)
    assert result.seconds >= 0


def test_a_row_that_fails_and_leaves_a_file_has_both(bench):
    def fail(model, output):
        shutil.copy(model, output)
        raise RuntimeError("outputs differ")

    result = bench.measure(Peer("failing", fail), 1)
    assert result.error == "RuntimeError: outputs differ"
    assert result.score == 0.5


@pytest.mark.parametrize("calibrated", [False, True])
def test_rows_of_onnxlr_are_its_arguments(bench, monkeypatch, calibrated):
    asked = {}

    def rewrite(model, output, **arguments):
        asked.update(arguments)
        shutil.copy(model, output)

    monkeypatch.setattr(onnxlr, "rewrite", rewrite)
    result = bench.measure(Ours("ours", {"ratio": 0.5}, calibrated), 1)
    assert result.error is None
    assert result.score == 0.5
    data = asked.pop("data")
    files = sorted(data.iterdir())
    with np.load(files[0]) as arrays:
        np.testing.assert_array_equal(arrays["x"], FEEDS[0]["x"])
    assert len(files) == 1
    expected = {"ratio": 0.5, "tolerance": "cosine>=0", "keep": True}
    if calibrated:
        calibration = asked.pop("calibration")
        assert len(list(calibration.iterdir())) == 2
        expected |= {"mask": "x", "statistics": bench.statistics}
    assert asked == expected


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
