"""The command `train-ternary`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxlr.errors import ExitCode
from tests.cli.conftest import Run
from tests.training.ternary_net import samples, ternary_net

LOSS = "tests.training.ternary_net:cross_entropy"

needs_torch = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("torch") is None,
    reason="training needs the extra onnxlr[train]",
)


@pytest.fixture
def here(folder: Path) -> Path:
    """Return the current folder, with the network and data in it."""
    onnx.save(ternary_net(), "m.onnx")
    np.savez("data.npz", **samples(80))
    return folder


COMMON = ("train-ternary", "m.onnx", "--data", "data.npz", "--steps", 4, "--layers", "head")


@needs_torch
def test_tables(run: Run, here: Path) -> None:
    ended = run(*COMMON, "--loss", LOSS, "--tolerance-spectral", 0.5, "--every", 2)
    assert ended.code == ExitCode.DONE, ended.err
    words = " ".join(ended.out.split())
    assert "loss tests.training.ternary_net:cross_entropy on held-out data" in words
    assert "1 ternary layer" in words
    assert "Wrote m.onnxlr.onnx" in words
    assert Path("m.onnxlr.onnx").exists()
    assert not list(here.glob("*.checkpoint"))


@needs_torch
def test_json_and_the_dense_model(run: Run, here: Path) -> None:
    ended = run(
        *COMMON, "--method", "ternary", "--terms", 1, "-o", "o.onnx", "--dense", "d.onnx", "--json"
    )
    assert ended.code == ExitCode.DONE, ended.err
    found = json.loads(ended.out)
    assert found["schema"] == "onnxlr.ternary_training/1"
    assert found["measure"] == "distance to the model's outputs"
    assert found["after"] <= found["before"]
    assert found["dense"] == "d.onnx"
    (record,) = (one for one in found["rewrite"]["layers"] if one["choice"]["method"] != "keep")
    assert record["choice"]["method"] == "ternary"
    assert record["trits_per_weight"] == 1
    assert Path("o.onnx").exists()
    assert Path("d.onnx").exists()


@needs_torch
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "svd"), "expected one of ternary_svd, ternary"),
        (("--data", "none.npz"), "none.npz"),
        (("--loss", "nothing:here"), "nothing"),
        (("--holdout", "0"), "holdout"),
        (("--rate", "0"), "rate"),
        (("-o", "m.onnx"), "m.onnx"),
        (("--eta", "0"), "eta 0 is not a number above 0"),
        (("--method", "ternary", "--rank", "3"), "rank"),
    ],
)
def test_what_cannot_be_followed(
    run: Run, here: Path, arguments: tuple[str, ...], words: str
) -> None:
    given = [*COMMON]
    if "--data" in arguments:
        del given[2:4]
    ended = run(*given, *arguments)
    assert ended.code == ExitCode.USAGE
    assert words in ended.err
    assert not list(here.glob("*.onnxlr.onnx"))


def test_without_torch(here: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom onnxlr.cli import main\nmain(sys.argv[1:])\n"
    )
    for arguments, status in (
        (("train-ternary", "--help"), ExitCode.DONE),
        (tuple(map(str, COMMON)), ExitCode.USAGE),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
    assert "pip install 'onnxlr[train]'" in done.stderr
