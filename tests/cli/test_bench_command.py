"""`onnxlr bench`: what it prints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxlr import benching
from tests.classifier import classifier, samples
from tests.cli.conftest import Run

Refused = Callable[[Sequence[object], int, Sequence[str]], str]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models run in this process."""
    monkeypatch.setattr(benching, "bench", partial(benching.bench, isolate=False))


def test_a_line_for_each_model_within_80_columns(run: Run, model: Path) -> None:
    folder = Path("a_folder_of_some_length")
    folder.mkdir()
    long = "a.model.of.a.name.that.does.not.fit.beside.so.many.numbers.onnx"
    for name in ("m.onnx", long):
        onnx.save(classifier(), folder / name)
    np.savez("d.npz", x=samples(4))
    paths = (model, folder / "m.onnx", folder / long)
    ended = run("bench", *paths, "--data", "d.npz", "--rounds", 2)
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    whole = "".join(ended.out.split())
    for word in ("size", "load", "memory", "time", "ratio", "1.00 (1.00–1.00)", "one thread"):
        assert word.replace(" ", "") in whole
    assert "a_folder_of_some_length/m.onnx" in whole  # as short as tells them apart
    assert long in whole
    assert "2 rounds on d.npz: 1 run: x [4, 24]" in " ".join(ended.out.split())


def test_json_has_all_of_it(run: Run, model: Path) -> None:
    ended = run("bench", model, "--threads", 2, "--rounds", 2, "--seed", 3, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert document["schema"] == "onnxlr.bench/1"
    assert (document["threads"], document["clock"], document["rounds"]) == (2, "wall", 2)
    (each,) = document["models"]
    assert each["bytes"] == model.stat().st_size
    assert each["seconds_low"] <= each["seconds"] <= each["seconds_high"]
    assert each["memory"] is None
    assert document["is_random"]
    assert "seed 3" in document["data"]


def test_quiet_prints_nothing(run: Run, model: Path) -> None:
    ended = run("bench", model, "--rounds", 2, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, ["MODEL"]),
        (("m.onnx", "missing.onnx"), 2, ["missing.onnx", "no such file"]),
        (("m.onnx", "--rounds", "1"), 2, ["rounds 1"]),
        (("m.onnx", "--rounds", "1.5"), 2, ["1.5"]),
        (("m.onnx", "--threads", "0"), 2, ["threads 0"]),
        (("m.onnx", "--data", "missing.npz"), 2, ["missing.npz"]),
        (("m.onnx", "text.onnx"), 3, ["text.onnx", "not an ONNX model"]),
    ],
)
def test_what_cannot_be_followed(
    refused: Refused, model: Path, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    Path("text.onnx").write_text("no model")
    refused(["bench", *arguments], code, words)
