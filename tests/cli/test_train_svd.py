"""`onnxlr train-svd`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.cli.conftest import Run
from tests.training.small_cnn import images, small_cnn

LOSS = """
import torch


def loss(outputs, batch):
    return torch.nn.functional.cross_entropy(outputs["logits"], batch["label"])


def score(outputs, batch):
    return (outputs["logits"].argmax(1) == batch["label"]).float().mean()


steps = 0


def interrupted(outputs, batch):
    global steps
    steps += torch.is_grad_enabled()
    if steps == 7:
        raise KeyboardInterrupt
    return loss(outputs, batch)


def broken(outputs, batch):
    return torch.nn.functional.cross_entropy(outputs["logits"], batch["label"][:, None])
"""


@pytest.fixture
def task(folder: Path) -> Path:
    """Return the current folder, with a model, its data, and functions."""
    (folder / "model.onnx").write_bytes(small_cnn().SerializeToString())
    np.savez(folder / "data.npz", **images(80))
    (folder / "svd_task.py").write_text(LOSS)
    return folder


USUAL = ("train-svd", "model.onnx", "--data", "data.npz", "--loss", "svd_task:loss")


class TestTraining:
    @pytest.fixture(autouse=True)
    def torch_is_there(self) -> None:
        pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

    @pytest.mark.usefixtures("task")
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_weights_that_are_no_numbers(self, run: Run, value: float) -> None:
        model = onnx.load("model.onnx")
        weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        values = np.full(tuple(weight.dims), value, np.float32)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, "model.onnx")
        ended = run(*USUAL, "--steps", 3)
        assert ended.code == 3
        assert f"weight '{weight.name}' has {values.size:,} entries that are NaN" in ended.err

    def test_tables(self, run: Run, task: Path) -> None:
        ended = run(*USUAL, "--ratio", 0.5, "--steps", 8, "--dense", "dense.onnx")
        assert ended.code == 0, ended.err
        for words in (
            "Held-out loss (less is better): as it came",
            "sparsification: 4 steps",
            "fine-tuning: 4 steps",
            "Factored layers: parameters",
            "no factorization is smaller",
            "dense.onnx (the dense weights)",
        ):
            assert words in " ".join(ended.out.split())
        written = onnx.load(task / "model.onnxlr.onnx")
        onnx.checker.check_model(written, full_check=True)
        assert len(written.graph.node) > len(small_cnn().graph.node)
        assert (task / "dense.onnx").exists()
        assert not list(task.glob("*.checkpoint*"))

    @pytest.mark.usefixtures("task")
    def test_json(self, run: Run) -> None:
        ended = run(
            *(*USUAL, "--score", "svd_task:score", "--form", "spatial", "--sparsity", "l1"),
            *("--energy-loss", 0.2, "--steps", 6, "--skip", "stem", "-o", "out.onnx", "--json"),
        )
        assert ended.code == 0, ended.err
        document = json.loads(ended.out)
        assert document["schema"] == "onnxlr.svd_training/1"
        training = document["training"]
        assert training["judged_by"] == "score"
        layers = {layer["name"]: layer for layer in training["layers"]}
        assert layers["grouped"]["form"] == "spatial"
        assert layers["pointwise"]["form"] == "channel"
        assert layers["stem"]["reason"] == "skipped by pattern 'stem'"
        assert [stage["name"] for stage in training["stages"]] == ["sparsification", "fine-tuning"]
        assert document["rewriting"]["output"] == "out.onnx"
        assert document["dense"] is None

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--loss", "svd_task:nothing"], "module 'svd_task' has no function 'nothing'"),
            (["--loss", "svd_task:broken"], "svd_task:broken: failed with"),
            (["--form", "tucker"], "form 'tucker' is unknown"),
            (["--ratio", "2"], "ratio 2 is not above 0 and at most 1"),
            (["--holdout", "1"], "expected a fraction above 0 and below 1"),
            (["-o", "data.npz"], "is the input"),
            (["--dense", "model.onnx"], "is the input"),
            (["--device", "abacus"], "device 'abacus' cannot be used"),
        ],
    )
    def test_refusals(self, flags: list[str], message: str, run: Run, task: Path) -> None:
        before = sorted(path.name for path in task.iterdir() if path.suffix != "")
        usual = USUAL[:-2] if "--loss" in flags else USUAL
        ended = run(*usual, "--steps", 4, *flags)
        assert ended.code == 2
        assert message in " ".join(ended.err.split())
        after = sorted(path.name for path in task.iterdir() if path.suffix != "")
        assert [name for name in after if "pycache" not in name] == before

    def test_interrupted_it_names_what_is_left(self, run: Run, task: Path) -> None:
        ended = run(*USUAL[:-1], "svd_task:interrupted", "--steps", 10)
        assert ended.code == 130
        said = " ".join(ended.err.split())
        assert "checkpoint.1, model.onnxlr.onnx.checkpoint.2 hold what was reached" in said
        assert "the same command goes on from it" in said
        assert {path.name for path in task.glob("*.checkpoint*")} == {
            "model.onnxlr.onnx.checkpoint.1",
            "model.onnxlr.onnx.checkpoint.2",
        }

    @pytest.mark.usefixtures("task")
    def test_patience_of_0_never_ends_it(self, run: Run) -> None:
        ended = run(*USUAL, "--steps", 4, "--patience", 0)
        assert ended.code == 0, ended.err

    def test_labels_of_the_wrong_shape(self, run: Run, task: Path) -> None:
        data = images(40)
        np.savez(task / "data.npz", image=data["image"], label=data["label"][:7])
        ended = run(*USUAL, "--steps", 4)
        assert ended.code == 2
        assert "label" in ended.err


def test_without_torch(tmp_path: Path) -> None:
    """The command is there, and says what to install."""
    (tmp_path / "model.onnx").write_bytes(small_cnn().SerializeToString())
    np.savez(tmp_path / "data.npz", **images(8))
    program = (
        "import sys; sys.modules['torch'] = None\nfrom onnxlr.cli import main\nmain(sys.argv[1:])"
    )
    for arguments, code, words in (
        (["train-svd", "--help"], 0, "make singular values few"),
        ([*USUAL], 2, "pip install 'onnxlr[train]'"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == code, ended.stderr
        assert words in " ".join((ended.stdout + ended.stderr).split())
