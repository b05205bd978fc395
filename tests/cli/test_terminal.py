"""What a terminal gets: within its width, in its encoding, with colours only where wanted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxlr import console
from tests.classifier import classifier, samples
from tests.cli.conftest import Run, contents

LONG = "/encoder/layers.11/attention/self/query/projection/MatMul_that_has_a_long_name"


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """Return the model with a tensor renamed everywhere."""
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    return model


def long_names() -> onnx.ModelProto:
    model = classifier()
    for number, node in enumerate(model.graph.node):
        node.name = f"{LONG}_{number}"
    return renamed(model, "logits", f"{LONG}/output_0")


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    return subprocess.run(
        [sys.executable, "-m", "onnxlr", *arguments],
        capture_output=True,
        check=False,
        env={**clean, **environment},
    )


COMMANDS = [
    ["inspect", "m.onnx"],
    ["plan", "m.onnx", "--rank", "4", "-o", "p.json"],
    ["rewrite", "m.onnx", "--rank", "4"],
    ["rewrite", "m.onnx", "--rank", "1"],
    ["rewrite", "m.onnx", "--rank", "4", "--calibration", "c.npz"],
    ["rewrite", "m.onnx", "--method", "ternary", "--terms", "1", "--target", "onnxlr"],
    ["observe", "m.onnx", "--calibration", "c.npz", "-o", "s.npz"],
    ["verify", "m.onnx", "m.onnx"],
]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("names", ["short", "long"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_tables_fit_and_cut_nothing(
    run: Run,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: str,
    arguments: list[str],
    width: int,
) -> None:
    model = classifier() if names == "short" else long_names()
    onnx.save(model, "m.onnx")
    np.savez("c.npz", x=samples(64))
    # COLUMNS is heeded when a process begins.
    monkeypatch.setattr(console.out, "width", width)
    ended = run(*arguments)
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in ended.out
    if arguments[0] not in ("verify", "observe"):
        unfolded = "".join(line.split("  ")[0] for line in lines)
        for node in (model.graph.node[i].name for i in (0, 2)):
            assert node in unfolded
    if arguments[0] == "verify":  # no number is broken, however narrow it is
        row = next(line.split() for line in lines if "approx." in line.split()[:1])
        assert [row[1], *row[-6:]] == ["both", "1.00000", "0", "0", "∞", "100.00%", "✓"]


def test_both_levels_of_optimisation_share_a_row_where_they_read_alike(
    run: Run, model: Path
) -> None:
    lines = run("verify", model, model).out.splitlines()
    rows = [line.split() for line in lines if line.startswith("approx")]
    assert [row[:3] for row in rows] == [["approx.", "both", "logits"]]
    assert rows[0][3] == "1.00000"
    assert rows[0][-1] == "✓"


def test_names_are_neither_markup_nor_control_characters_nor_emoji(run: Run, folder: Path) -> None:
    model = renamed(classifier(), "logits", "[red]o\x1b[2J")
    model.graph.node[0].name = "a:boom:[bold]"
    onnx.save(model, "m.onnx")
    out = run("rewrite", "m.onnx", "--rank", "4").out
    assert "[red]o\\x1b[2J" in out
    assert "a:boom:[bold]" in out
    assert "\x1b" not in out


def test_colour_only_where_wanted(folder: Path) -> None:
    onnx.save(classifier(), "m.onnx")
    assert b"\x1b[" in process("inspect", "m.onnx", FORCE_COLOR="1").stdout
    for environment in ({}, {"NO_COLOR": "1"}):
        ended = process("inspect", "m.onnx", **environment)
        assert ended.returncode == 0
        assert b"\x1b" not in ended.stdout


def test_an_encoding_without_the_signs_is_no_error(folder: Path) -> None:
    model = classifier()
    model.graph.node[0].name = "größe"
    onnx.save(model, "m.onnx")
    ended = process("inspect", "m.onnx", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"gr??e" in ended.stdout
    ended = process("inspect", "m.onnx", "--json", PYTHONIOENCODING="ascii")
    assert json.loads(ended.stdout)["layers"][0]["name"] == "größe"


@pytest.mark.parametrize("arguments", [["--help"], ["rewrite", "--help"], ["completion", "bash"]])
def test_a_reader_of_help_that_goes_away(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "onnxlr", *arguments]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_goes_away_does_not_stop_the_work(folder: Path, more: list[str]) -> None:
    onnx.save(classifier(), "m.onnx")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "onnxlr", "rewrite", "m.onnx", "--rank", "4", *more]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert sorted(contents(folder)) == ["m.onnx", "m.onnxlr.onnx"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_standard_output(folder: Path) -> None:
    onnx.save(classifier(), "m.onnx")
    command = [sys.executable, "-m", "onnxlr", "inspect", "m.onnx"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: standard output cannot be written")
    assert ended.stderr.count(b"\n") == 1


def test_a_file_of_the_name_of_a_library_in_the_current_folder(folder: Path) -> None:
    onnx.save(classifier(), "m.onnx")
    for name in ("onnx", "numpy", "random", "onnxlr"):
        Path(f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    script = Path(sys.executable).with_name("onnxlr")
    if not script.exists():
        pytest.skip(f"{script.name} is not installed beside the interpreter")
    command = [str(script), "rewrite", "m.onnx", "--rank", "4"]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
