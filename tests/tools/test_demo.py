"""Tests of `tools/demo.py`: what it says of a file is so, whether the file holds or not."""

from __future__ import annotations

import json

from onnxlr import inspect
from tools.demo import MODEL, MODELS, SAMPLES, SKIPPED, accuracy, rewrite


def test_the_accuracy_is_that_which_training_wrote_down():
    written = json.loads((MODELS / "demo.json").read_text())["accuracy_demo_test_512"]
    assert accuracy(MODEL, SAMPLES) == written


def test_what_is_refused_is_there_to_be_measured(tmp_path):
    file = tmp_path / "plain.onnx"
    result = rewrite(file)
    assert result.report is not None
    assert not result.report.passed
    assert accuracy(file, SAMPLES) < accuracy(MODEL, SAMPLES)


def test_what_is_left_alone_is_next_to_nothing_of_the_model():
    shares = {layer.name: layer.share for layer in inspect(MODEL).layers}
    assert 0 < sum(shares[name] for name in SKIPPED) < 0.002
