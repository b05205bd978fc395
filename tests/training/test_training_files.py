"""Where training writes, and that it writes over nothing that is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

import onnxlr  # noqa: E402
from onnxlr.errors import OutputError, UsageError  # noqa: E402
from onnxlr.model import open_model  # noqa: E402
from onnxlr.training.files import TrainingFiles  # noqa: E402
from tests.training.small_cnn import images, small_cnn, softmax_loss  # noqa: E402


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(small_cnn(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    return path


def test_the_usual_names(model: Path) -> None:
    source = open_model(model)
    files = TrainingFiles.of(source, None)
    assert files.output == model.with_name("m.onnxlr.onnx")
    assert files.dense is None
    assert files.checkpoints == (model.with_name("m.onnxlr.onnx.checkpoint"),)
    tuned = TrainingFiles.of(source, None, suffix=".tuned.onnx")
    assert tuned.output == model.with_name("m.tuned.onnx")
    two = TrainingFiles.of(source, "o.onnx", "d.onnx", "c", stages=2)
    assert two == TrainingFiles(Path("o.onnx"), Path("d.onnx"), (Path("c.1"), Path("c.2")))
    with pytest.raises(UsageError, match="a model without a file needs an output path"):
        TrainingFiles.of(open_model(small_cnn()), None)


def test_checkpoints_are_forgotten_whether_they_are_there_or_not(tmp_path: Path) -> None:
    files = TrainingFiles(tmp_path / "o", None, (tmp_path / "c.1", tmp_path / "c.2"))
    files.checkpoints[1].write_bytes(b"")
    files.forget()
    files.forget()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", ["m.onnx", "m.bin", "data.npz", "held.npz"])
@pytest.mark.parametrize(
    ("verb", "place"),
    [
        (onnxlr.train_svd, "output"),
        (onnxlr.train_svd, "dense"),
        (onnxlr.train_ternary, "output"),
        (onnxlr.train_ternary, "dense"),
        (onnxlr.train_ternary, "checkpoint"),
    ],
)
def test_nothing_that_is_read_is_written_over(
    model: Path, verb: Any, place: str, read: str
) -> None:
    data, held = model.with_name("data.npz"), model.with_name("held.npz")
    for path in (data, held):
        np.savez(path, **images(20))
    target = model.with_name(read)
    before = target.read_bytes()
    given = {"output": model.with_name("o.onnx"), "loss": softmax_loss, "holdout": held}
    with pytest.raises(OutputError, match="is the input; inputs are never modified"):
        verb(model, data, **{**given, place: target})
    assert target.read_bytes() == before


def test_fisher_writes_over_nothing_that_it_reads(model: Path) -> None:
    with pytest.raises(OutputError, match="is the input"):
        onnxlr.fisher(model, [images(4)], model.with_name("m.bin"))
