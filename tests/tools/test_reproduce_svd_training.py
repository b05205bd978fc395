"""Tests of `tools/reproduce_svd_training.py`: its tables, its counts, and a run on few images."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import onnx
import pytest

from tools.reproduce_svd_training import MODEL, main
from tools.svd_training_rows import (
    FULL,
    MARK,
    ORIGINAL,
    QUICK,
    WAYS,
    Document,
    Outcome,
    comparison,
)

has_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch, of extra train, is not installed"
)

SPATIAL = ("SVD training, L1, spatial", "truncated SVD, spatial")

FOUND = Document(
    {"sparse": 3, "tune": 4, "batch": 5, "seed": 6},
    [
        Outcome(ORIGINAL, 1.0, 30_000_000, 270_000, None, 0.93, 0.935, 12.0),
        Outcome(SPATIAL[0], 0.5, 15_000_000, 140_000, 0.25, 0.5, 0.9125, 20.0),
        Outcome(SPATIAL[1], 0.5, 15_000_000, 140_000, 0.5, 0.6, 0.9, 18.0),
        Outcome("tensor train (TT)", 0.5, problem="rank [1] is too large"),
    ],
)


def test_figures_are_written_and_read_as_they_are(tmp_path):
    file = tmp_path / "figures.json"
    FOUND.write(file)
    assert Document.read(file) == FOUND
    file.write_text('{"rows": [{}]}')
    with pytest.raises(ValueError, match="holds no figures of this tool"):
        Document.read(file)


def test_tables():
    grid, differences = FOUND.grids()
    assert grid.title == "Accuracy against multiply-adds: 3 + 4 steps of 5 images, seed 6"
    assert grid.rows == [
        [ORIGINAL, "30.00", "1.000", "270.0", "", "0.9300", "0.9350", "12"],
        [f"{SPATIAL[0]}, 0.5", "15.00", "0.500", "140.0", "0.250", "0.5000", "0.9125", "20"],
        [f"{SPATIAL[1]}, 0.5", "15.00", "0.500", "140.0", "0.500", "0.6000", "0.9000", "18"],
        ["tensor train (TT), 0.5 (refused)", *["–"] * 7],
    ]
    assert differences.header == ["", "0.5"]
    assert differences.rows == [["L1, spatial", "+1.25"]]


def test_only_the_same_form_at_the_same_budget_is_compared():
    rows = [
        Outcome(SPATIAL[0], 0.5, tuned=0.9),
        Outcome(SPATIAL[1], 0.25, tuned=0.8),
        Outcome("truncated SVD, channel", 0.5, tuned=0.8),
    ]
    assert comparison(rows) == {}


def test_every_way_of_svd_training_has_its_plain_one():
    forms = {way.form for way in WAYS if way.sparsity is not None}
    assert forms == {"channel", "spatial"}
    assert {way.sparsity for way in WAYS if way.sparsity} == {"l1", "hoyer"}
    assert {f"truncated SVD, {form}" for form in forms} <= {way.name for way in WAYS}
    assert set(QUICK.budgets) <= set(FULL.budgets)


def test_the_network_is_a_resnet_20_with_normalisations_of_its_own():
    model = onnx.load(MODEL)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 19 + 2  # two shortcuts
    assert kinds.count("BatchNormalization") == kinds.count("Conv")
    assert kinds.count("Gemm") == 1
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert float(known["accuracy_10000_test_images"]) >= 0.92
    assert "MIT" in known["dataset_licence"]


@has_torch
def test_multiply_adds_of_the_network():
    """He et al. count 41 million for 32×32 images; here they are 28×28, with 1×1 shortcuts."""
    from onnxlr.training.trainable import TrainableModel
    from tools.svd_training_figures import multiply_adds

    stages = 28**2 * 9 * (1 * 16 + 6 * 16 * 16)
    stages += 14**2 * (9 * (16 * 32 + 5 * 32 * 32) + 16 * 32)
    stages += 7**2 * (9 * (32 * 64 + 5 * 64 * 64) + 32 * 64)
    assert multiply_adds(TrainableModel(MODEL)) == stages + 64 * 10


@pytest.fixture
def few_images(monkeypatch):
    """Give noise for the data set."""
    train_demo_model = pytest.importorskip("tools.train_demo_model")

    def load(_, prefix):
        rng = np.random.default_rng(len(prefix))
        count = {"train": 40, "t10k": 24}[prefix]
        images = rng.random((count, 1, 28, 28), np.float32)
        return train_demo_model.Split(images, rng.integers(0, 10, count))

    monkeypatch.setattr(train_demo_model, "fetch_idx", lambda cache: cache)
    monkeypatch.setattr(train_demo_model, "load_split", load)


@has_torch
def test_quick_run_on_few_images(few_images, tmp_path, capsys):
    file, page = tmp_path / "found.json", tmp_path / "page.md"
    small = ["--quick", "--sparse", "1", "--tune", "1", "--batch", "4", "--threads", "1"]
    asked = [*small, "--ways", "*L1, spatial", "trunc*spatial", "semi-tensor train*"]
    assert main([*asked, "--json", str(file), "--write", str(page)]) == 0
    rows = {row.name: row for row in Document.read(file).rows}
    assert list(rows) == [ORIGINAL, *SPATIAL, "semi-tensor train (STT) t=2"]
    whole = rows[ORIGINAL].multiply_adds
    for name, row in rows.items():
        assert 0 <= row.tuned <= 1
        if name != ORIGINAL:
            assert 0.15 * whole < row.multiply_adds < 0.28 * whole
            assert row.parameters < 0.5 * rows[ORIGINAL].parameters
    assert MARK in page.read_text()
    capsys.readouterr()
    assert main(["--show", "--json", str(file)]) == 0
    assert "SVD training less truncated SVD" in capsys.readouterr().out
    assert json.loads(file.read_text())["run"]["budgets"] == list(QUICK.budgets)


@has_torch
def test_bfloat16_follows_weights_as_they_are_trained():
    """Autocast would keep the weights of the first step."""
    import torch

    from tools.svd_training_figures import Experiment

    experiment = Experiment(MODEL, None, (), QUICK, 0, bfloat16=True)
    weight = torch.nn.Parameter(torch.ones(4, 4))
    with experiment.precision():
        first = torch.nn.functional.linear(torch.ones(1, 4), weight)
        with torch.no_grad():
            weight.mul_(2)
        second = torch.nn.functional.linear(torch.ones(1, 4), weight)
    assert first.dtype == torch.bfloat16
    assert torch.equal(second, 2 * first)


def test_wrong_usage(tmp_path, capsys):
    for arguments, words in (
        (["--ways", "nothing"], "no way matches nothing; there are SVD training, Hoyer, channel"),
        (["--show"], "--show needs --json"),
        (["--tune", "0"], "number above 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
    assert main(["--show", "--json", str(tmp_path / "none.json")]) == 3
