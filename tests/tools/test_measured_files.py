"""Tests of `tools/measured_files.py` on models of one product; onnxlr's part is recorded or run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import onnxlr
from tests.tools.small_task import FEEDS, product_task, small_task
from tools.measured_files import Bench, Counts
from tools.measured_rows import Again, Ours, Peer


@pytest.fixture
def bench(tmp_path):
    return Bench.prepare(small_task(tmp_path), tmp_path / "made", rounds=2)


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
        arguments["progress"]("verifying", 0, 1)
        shutil.copy(model, output)
        return SimpleNamespace(layers=(), plan=None)

    monkeypatch.setattr(onnxlr, "rewrite", rewrite)
    result = bench.measure(Ours("ours", {"ratio": 0.5}, calibrated), 1)
    assert result.error is None
    assert result.score == 0.5
    data = asked.pop("data")
    assert callable(asked.pop("progress"))
    assert (result.counts, result.fit_seconds) == (None, None)
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


def test_a_file_that_does_not_run_is_left_out_of_timing(bench):
    def make(_model, output):
        output.write_bytes(b"no model")

    def score(path):
        return float(len(onnx.load(path).graph.node))

    unscored = replace(bench, task=replace(bench.task, score=score))
    result, path = unscored.make(Peer("broken", make), 1)
    assert path is None
    assert result.error
    assert result.score is None


def test_files_are_timed_together_against_the_original(bench):
    made = [bench.make(Peer(name, shutil.copy), number) for number, name in enumerate("ab")]
    bench.time(made)
    for result, _ in made:
        assert 0 < result.latency_low <= result.latency <= result.latency_high
        assert result.milliseconds > 0


@pytest.mark.slow
def test_a_plan_is_followed_for_another_target_and_counts_add_up(tmp_path):
    task = product_task(tmp_path)
    bench = Bench.prepare(task, tmp_path / "made", rounds=2)
    bench.observe()
    ours = Ours("ours", {"method": "ternary_svd", "ratio": 2.0, "target": "onnxlr"})
    first, _ = bench.make(ours, 1)
    again, path = bench.make(Again("again", "ours", "onnx"), 2)
    assert first.error is None
    assert again.error is None
    assert again.counts == first.counts
    size = 96 * 128
    rank = 2 * size // (96 + 128)
    assert first.counts.layers == 1
    assert first.counts.weights == size
    assert first.counts.trits == rank * (96 + 128)
    # One for each input and one for each rank.
    assert first.counts.multiplications == 96 + rank
    assert 0 < first.counts.nonzeros == first.counts.additions < first.counts.trits
    assert first.fit_seconds > 0
    domains = {node.domain for node in onnx.load(path).graph.node}
    assert domains == {""}
    assert bench.plans["again"].target == "onnx"


def test_a_plan_that_was_not_made_is_an_error_of_the_row(bench):
    result, path = bench.make(Again("again", "ours", "ort"), 1)
    assert path is None
    assert "the plan of 'ours', which was not made before" in result.error


def test_layers_that_are_kept_have_no_counts():
    assert Counts.of([SimpleNamespace(trits_per_weight=None)]) is None
