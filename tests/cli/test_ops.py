"""`onnxlr ops`: what is known of the op library."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest

import onnxlr
from tests.cli.conftest import Run
from tests.operators.oplibrary import installed_library

KEYS = ["library", "version", "layout", "isa", "available", "onnxruntime", "problem"]


def test_a_library_that_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = installed_library()
    monkeypatch.setenv("ONNXLR_ISA", "scalar")
    ended = run("ops")
    assert ended.code == 0
    assert ended.err == ""
    lines = {line[:17].strip(): line[17:] for line in ended.out.splitlines()}
    assert lines.pop("available").split(", ")[-1] == "scalar"
    assert lines == {
        "op library": file,
        "version": onnxlr.__version__,
        "packed layout": "1",
        "instruction set": "scalar",
        "ONNX Runtime": ort.__version__,
    }


def test_as_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    file = installed_library()
    monkeypatch.setenv("ONNXLR_ISA", "scalar")
    ended = run("ops", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert list(found) == ["schema", *KEYS]
    assert found["schema"] == "onnxlr.ops/1"
    assert found["library"] == file
    assert (found["isa"], found["layout"], found["problem"]) == ("scalar", 1, None)
    assert "scalar" in found["available"]


@pytest.mark.parametrize("value", ["off", "nothing.so"])
def test_no_library(run: Run, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", value)
    ended = run("ops")
    assert ended.code == 0
    assert ended.err == ""
    assert "op library       none" in ended.out
    assert f"ONNXLR_OPS_LIBRARY{'=' if value == 'off' else ' names '}" in ended.out
    assert "run all the same" in ended.out
    found = json.loads(run("ops", "--json").out)
    assert list(found) == ["schema", *KEYS]
    assert found["library"] is None
    assert value in found["problem"]
    assert found["onnxruntime"] == ort.__version__


def test_a_file_that_is_no_library(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "[red]other.so"
    other.write_text("no library")
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", str(other))
    ended = run("ops")
    assert ended.code == 0
    assert f"{other} cannot be used as the op library" in ended.out
    assert "run all the same" in ended.out


def test_an_instruction_set_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_library()
    monkeypatch.setenv("ONNXLR_ISA", "mmx")
    ended = run("ops")
    assert ended.code == 0
    assert "problem: ONNXLR_ISA names 'mmx'" in ended.out
    assert "run all the same" not in ended.out  # sessions of models with operators fail
