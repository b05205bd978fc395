"""`onnxlr fisher`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.classifier import samples
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]


@pytest.fixture
def data(model: Path) -> Path:
    """Return data of 6 samples beside the model."""
    np.savez("c.npz", x=samples(6))
    return Path("c.npz")


@pytest.fixture
def _torch() -> None:
    pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")


@pytest.mark.usefixtures("_torch")
def test_it_prints_and_writes(run: Run, model: Path, data: Path) -> None:
    ended = run("fisher", model, "--calibration", data, "-o", "f.npz", "--samples", 5)
    assert (ended.code, ended.err) == (0, "")
    for word in ("distill", "5 samples", "first", "24×32", "variance", "f.npz"):
        assert word in ended.out
    with np.load("f.npz") as found:
        names = set(found.files)
    sides = ("", "/input_covariance", "/output_covariance")
    assert names == {f"{weight}{side}" for weight in ("w1", "w2", "w3") for side in sides}


@pytest.mark.usefixtures("_torch")
def test_its_document_has_all_but_the_arrays(run: Run, model: Path, data: Path) -> None:
    arguments = ("--calibration", data, "-o", "f.npz", "--draws", 3, "--no-kronecker", "--json")
    ended = run("fisher", model, *arguments)
    assert (ended.code, ended.err) == (0, "")
    values = json.loads(ended.out)
    assert values["schema"] == "onnxlr.fisher/1"
    assert (values["samples"], values["draws"], values["loss"]) == (6, 3, "distill")
    assert "arrays" not in values
    assert [layer["weight"] for layer in values["layers"]] == ["w1", "w2", "w3"]
    with np.load("f.npz") as found:
        for layer in values["layers"]:
            array = found[layer["weight"]].astype(np.float64)
            assert layer["shape"] == list(array.shape)
            assert layer["variance"] == pytest.approx(array.var() / array.mean() ** 2, rel=1e-6)


@pytest.mark.usefixtures("_torch")
def test_the_file_is_one_that_rewrite_takes(run: Run, model: Path, data: Path) -> None:
    assert run("fisher", model, "--calibration", data, "-o", "f.npz").code == 0
    arguments = ("--metric", "fisher", "--importance", "f.npz", "--rank", 3)
    ended = run("rewrite", model, *arguments, "--tolerance", "cosine>=0")
    assert ended.code == 0
    assert "variance" in ended.out


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--calibration", "none.npz", "-o", "f.npz"), 2, ["none.npz", "no such file"]),
        (("--calibration", "c.npz", "-o", "m.onnx"), 2, ["m.onnx"]),
        (("--calibration", "c.npz", "-o", "c.npz"), 2, ["c.npz"]),
        (("--calibration", "c.npz", "-o", "no/f.npz"), 2, ["does not exist"]),
        (("--calibration", "c.npz", "-o", "f.npz", "--samples", "0"), 2, ["0 samples"]),
        (("--calibration", "c.npz", "-o", "f.npz", "--mask", "y"), 2, ["'y'"]),
        (("--calibration", "c.npz", "-o", "f.npz", "--loss", "labels"), 2, ["module:function"]),
        (("--calibration", "c.npz", "-o", "f.npz", "--draws", "1.5"), 2, ["1.5"]),
        (("--calibration", "c.npz"), 2, ["--output"]),
    ],
)
@pytest.mark.usefixtures("data")
def test_what_is_refused(
    refused: Refused, model: Path, arguments: Sequence[str], code: int, words: list[str]
) -> None:
    refused(("fisher", model, *arguments), code, words)


def test_without_torch_it_says_what_to_install(model: Path, data: Path) -> None:
    arguments = ["fisher", str(model), "--calibration", str(data), "-o", "f.npz"]
    code = (
        f"import sys; sys.modules['torch'] = None; from onnxlr.cli import main; main({arguments})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "pip install 'onnxlr[train]'" in ended.stderr
    assert not Path("f.npz").exists()
