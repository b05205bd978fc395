"""The planner on the command line: its flags, its tables, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxlr.errors import ExitCode
from tests.classifier import classifier, samples
from tests.cli.conftest import Run, contents
from tests.cli.test_interruption import left_behind, started
from tests.planned import count_time, without_processes

Refused = Callable[[Sequence[object], int, Sequence[str]], str]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    count_time(monkeypatch)
    without_processes(monkeypatch)


@pytest.fixture
def data(model: Path) -> Path:
    np.savez("d.npz", x=samples(64))
    return Path("d.npz")


def plan_of(file: str) -> dict[str, dict[str, str]]:
    entries = {e.key: e.value for e in onnx.load(file).metadata_props}
    return dict(json.loads(entries["onnxlr.plan"])["layers"])


# --- what is done --------------------------------------------------------------------------------


@pytest.mark.usefixtures("counted")
def test_every_flag_of_the_planner(run: Run, model: Path, data: Path) -> None:
    flags = ["--calibration", data, "--goal", "size", "--max-drop", "cosine=0.2"]
    flags += ["--max-drop", "relout=0.02", "--max-size", 0.9, "--max-latency", 0.99]
    flags += ["--cache", "c.sqlite", "--no-stock", "--jobs", 1, "--method", "auto"]
    ended = run("rewrite", model, *flags, "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found["schema"] == "onnxlr.rewrite/1"
    findings = found["findings"]
    for words in ("smallest", "cosine may drop by 0.2", "relout may drop by 0.02", "0.9", "0.99"):
        assert words in findings["goal"]
    assert [each["name"] for each in findings["contenders"]] == ["original", "onnxlr"]
    planned = findings["contenders"][1]
    assert planned["chosen"]
    assert planned["drops"]["relout"] <= 0.02
    assert planned["size"] <= 0.9
    assert planned["latency"] <= 0.99
    assert findings["rounds"]
    assert findings["candidates"] > findings["from_cache"] == 0
    assert sorted(contents(Path())) == ["c.sqlite", "d.npz", "m.onnx", "m.onnxlr.onnx"]
    content = Path("m.onnxlr.onnx").read_bytes()
    again = json.loads(run("rewrite", model, *flags, "--json").out)["findings"]
    assert again["from_cache"] == again["candidates"] == findings["candidates"]
    assert Path("m.onnxlr.onnx").read_bytes() == content


@pytest.mark.usefixtures("counted")
def test_what_is_printed_says_what_was_asked_and_found(run: Run, model: Path, data: Path) -> None:
    ended = run("rewrite", model, "--calibration", data, "--cache", "c.sqlite")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("auto: size and time, which count alike; cosine may drop by 0.01")
    assert max(map(len, lines)) <= 80
    text = " ".join(ended.out.split())
    for words in (
        "dynamic int8",
        "static int8",
        "original",
        "best",
        "meets",
        "Wrote m.onnxlr.onnx",
    ):
        assert words in text
    assert "from the cache" not in text
    assert "of them from the cache" in run(
        "rewrite", model, "--calibration", data, "--cache", "c.sqlite"
    ).out.replace("\n", " ")


@pytest.mark.usefixtures("counted")
def test_plan_writes_reasons(run: Run, model: Path, data: Path) -> None:
    ended = run("plan", model, "--calibration", data, "--no-stock", "--output", "p.json")
    assert (ended.code, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    layers = json.loads(Path("p.json").read_text())["layers"]
    assert list(layers) == ["first", "second", "head"]
    for entry in layers.values():
        assert entry["reason"]
        assert entry["rejected"]
    assert run("rewrite", model, "--plan", "p.json", "--calibration", data).code == 0
    assert plan_of("m.onnxlr.onnx")["first"]["method"] == layers["first"]["method"]


@pytest.mark.usefixtures("counted")
def test_without_data_a_warning_says_what_is_left_out(run: Run, model: Path) -> None:
    ended = run("rewrite", model)
    assert ended.code == 0
    assert ended.err.startswith("warning: there is no calibration data")
    assert ended.err.count("\n") == 1
    assert {entry["method"] for entry in plan_of("m.onnxlr.onnx").values()} == {"quantize"}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--goal", "sizes"], ["'sizes'", "did you mean 'size'"]),
        (["--max-drop", "cosine"], ["'cosine'", "METRIC=VALUE"]),
        (["--max-drop", "cosine=much"], ["'much' is not a number"]),
        (["--max-drop", "cosin=0.1"], ["did you mean 'cosine'"]),
        (["--max-drop", "cosine=-1"], ["not negative"]),
        (["--max-drop", "cosine=nan"], ["finite"]),
        (["--max-drop", "top1=2"], ["at most 1"]),
        (["--max-drop", "cosine=0.1", "--max-drop", "cosine=0.2"], ["more than one drop"]),
        (["--max-size", "0"], ["the largest size is 0"]),
        (["--max-size", "2"], ["the largest size is 2"]),
        (["--max-size", "nan"], ["the largest size is nan"]),
        (["--max-latency", "-0.5"], ["the largest latency is -0.5"]),
        (["--max-latency", "fast"], ["--max-latency", "fast"]),
        (["--jobs", "0"], ["0 jobs were asked for"]),
        (["--jobs", "1.5"], ["--jobs", "1.5"]),
        (["--seed", "-1"], ["seed -1 is negative"]),
        (["--calibration", "none.npz"], ["none.npz"]),
        (["--calibration", "d.npz", "--max-drop", "nowhere:score=0.1"], ["nowhere"]),
        (["--layers", "nothing*"], ["nothing*"]),
        (["--method", "auto", "--rank", "3"], ["'rank' is for one method"]),
        (["--method", "auto", "--format", "int8"], ["'format' is for one method"]),
        (["--method", "auto", "--sequential"], ["'sequential' is for one method"]),
        (["--method", "svd", "--goal", "size"], ["'goal' is for method auto"]),
        (["--method", "quantize", "--max-drop", "cosine=1"], ["'max_drop' is for method auto"]),
        (["--rank", "3", "--max-size", "0.5"], ["'max_size' is for method auto", "'rank'"]),
        (["--rank", "3", "--no-stock"], ["'stock' is for method auto"]),
        (["--rank", "3", "--jobs", "0"], ["0 jobs were asked for"]),
        (["--rank", "3", "--memory", "much"], ["memory 'much' is no size", "4G"]),
        (["--rank", "3", "--cache", "c.sqlite"], ["is a file of measurements", "give a folder"]),
    ],
)
@pytest.mark.parametrize("command", ["rewrite", "plan"])
@pytest.mark.usefixtures("data")
def test_bad_values_are_one_sentence(
    refused: Refused, model: Path, command: str, flags: list[str], words: list[str]
) -> None:
    refused([command, model, *flags], int(ExitCode.USAGE), words)


@pytest.mark.usefixtures("data")
def test_a_plan_says_already_what_to_do(run: Run, refused: Refused, model: Path) -> None:
    assert run("plan", model, "--rank", 3, "--output", "p.json").code == 0
    for flags in (["--goal", "size"], ["--max-size", "0.5"], ["--method", "auto", "--no-stock"]):
        refused(["rewrite", model, "--plan", "p.json", *flags], 2, ["give either a plan"])


# --- a goal that is not met ----------------------------------------------------------------------


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("stock", ["--stock", "--no-stock"])
def test_a_goal_that_nothing_meets_ends_with_1_and_writes_nothing(
    run: Run, model: Path, data: Path, stock: str
) -> None:
    before = contents(Path())
    ended = run("rewrite", model, "--calibration", data, "--max-size", 0.01, stock)
    assert ended.code == ExitCode.VERIFICATION_FAILED
    assert ended.err.startswith("error: m.onnx: no choice of candidates")
    assert ended.err.count("\n") == 1
    assert "original" in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert contents(Path()) == before


@pytest.mark.usefixtures("counted")
def test_a_goal_that_nothing_meets_as_json(run: Run, model: Path, data: Path) -> None:
    flags = ["--calibration", data, "--max-latency", 0.01, "--no-stock"]
    ended = run("rewrite", model, *flags, "--json", "--report", "r.json")
    assert ended.code == ExitCode.VERIFICATION_FAILED
    found = json.loads(Path("r.json").read_text())
    assert found["schema"] == "onnxlr.findings/1"
    assert found["contenders"][0]["name"] == "original"
    assert json.loads(ended.out) == found
    assert not Path("m.onnxlr.onnx").exists()
    ended = run("plan", model, *flags, "--output", "p.json")
    assert ended.code == ExitCode.VERIFICATION_FAILED
    assert not Path("p.json").exists()


@pytest.mark.usefixtures("counted")
def test_without_data_a_goal_that_nothing_meets(run: Run, model: Path) -> None:
    for flags in ((), ("--json",)):
        ended = run("rewrite", model, "--max-size", 0.01, *flags)
        assert ended.code == ExitCode.VERIFICATION_FAILED
        assert "error: m.onnx: nothing that is safe without data" in ended.err
        assert "defect" not in ended.err
    assert sorted(contents(Path())) == ["m.onnx"]


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds children in /proc")
@pytest.mark.parametrize("task", [b"fitting candidates", b"measuring candidates"])
def test_interrupted_leaves_nothing_but_the_cache(folder: Path, task: bytes) -> None:
    onnx.save(classifier(), "m.onnx")
    np.savez("d.npz", x=samples(64))
    screen, terminal = pty.openpty()
    arguments = ["m.onnx", "--calibration", "d.npz", "--cache", "c.sqlite", "--no-stock"]
    with started("rewrite", *arguments, "--jobs", "2", stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while task not in shown:
            shown += os.read(screen, 4096)
        os.killpg(process.pid, signal.SIGINT)
        with suppress(OSError):  # the terminal is gone when the process is
            while more := os.read(screen, 4096):
                shown += more
        process.wait(60)
    os.close(screen)
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert b"interrupted" in shown
    left = [path for path in left_behind() if not path.startswith("c.sqlite")]
    assert left == ["d.npz", "m.onnx", "tmp"]
    assert "c.sqlite" in left_behind()
