"""What a command says while it works: bars, silence, one JSON document; and its threads."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from rich.console import Console

from onnxlr import console, runtime
from onnxlr.errors import UsageError
from onnxlr.runtime import execution
from onnxlr.runtime.threads import THREADS_VARIABLE, session_threads
from tests.classifier import FLOAT, one_node, samples
from tests.cli.conftest import Run

DEADLINE = 60


@pytest.fixture
def data(model: Path) -> Path:
    np.savez("c.npz", x=samples(64))
    return Path("c.npz")


def on_terminal(*arguments: str) -> str:
    """Run a command with standard error on a terminal; return what it drew there."""
    screen, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxlr", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env=environment,
    )
    os.close(terminal)
    drawn = b""
    with suppress(OSError):  # the terminal is gone when the process is
        while more := os.read(screen, 4096):
            drawn += more
    os.close(screen)
    assert process.wait(DEADLINE) == 0, drawn
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())


# --- quiet ---------------------------------------------------------------------------------------

QUIET = [
    ["inspect", "m.onnx"],
    ["observe", "m.onnx", "--calibration", "c.npz", "-o", "s.npz"],
    ["plan", "m.onnx", "--rank", "4", "-o", "p.json"],
    ["rewrite", "m.onnx", "--rank", "4"],
    ["verify", "m.onnx", "m.onnx"],
    ["ops"],
]


@pytest.mark.parametrize("arguments", QUIET, ids=" ".join)
def test_quiet_says_nothing_and_does_the_same(run: Run, data: Path, arguments: list[str]) -> None:
    assert run(*arguments).out != ""
    ended = run(*arguments, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    ended = run(*arguments, "-q", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["schema"].startswith("onnxlr.")
    assert run(*arguments).out != ""  # and the next command speaks again


def test_quiet_leaves_warnings_errors_and_exit_codes(run: Run, data: Path) -> None:
    ended = run("rewrite", "m.onnx", "--rank", 1, "--quiet")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: m.onnxlr.onnx: approximation proof")
    assert run("plan", "m.onnx", "--rank", 4, "--quiet").out.startswith("{")  # where it goes to


# --- bars ----------------------------------------------------------------------------------------


def test_a_terminal_sees_what_is_done_and_the_time(model: Path) -> None:
    drawn = on_terminal("rewrite", str(model), "--rank", "4")
    assert "factorizing" in drawn
    assert "verifying" in drawn
    assert re.search(r"\d/\d+ +\d:\d\d:\d\d (left|so far)", drawn)


def test_a_terminal_sees_nothing_where_it_is_not_to(model: Path) -> None:
    assert on_terminal("rewrite", str(model), "--rank", "4", "--quiet") == ""


def test_time_left_is_told_once_some_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    screen = Console(file=drawn, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(console, "err", screen)
    with console.at_work() as progress:
        for done in range(4):
            progress(f"working; now [that] {done}", done, 20)
            time.sleep(0.3)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.getvalue())
    assert "working; now [that] 3" in text
    assert "so far" in text
    left = [int(seconds) for seconds in re.findall(r"3/20 +0:00:(\d\d) left", text)]
    assert left
    assert left[0] >= 2  # 17 steps of .3 s at least


def test_a_bar_goes_when_the_next_task_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = io.StringIO()
    screen = Console(file=drawn, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(console, "err", screen)
    with console.at_work() as progress:
        progress("first", 1, 1)
        progress("second", 0, 1)
        drawn.truncate(0)
        time.sleep(0.3)
        text = drawn.getvalue()
    assert "second" in text
    assert "first" not in text


# --- threads -------------------------------------------------------------------------------------


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return the threads of each session that is opened."""
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    opened: list[int] = []
    usual = execution.open_session

    def note(source: object, options: ort.SessionOptions, *rest: object, **more: object) -> object:
        opened.append(options.intra_op_num_threads)
        return usual(source, options, *rest, **more)

    monkeypatch.setattr(execution, "open_session", note)
    yield opened
    assert THREADS_VARIABLE not in os.environ


def test_threads_reach_the_sessions_that_compare(
    run: Run, model: Path, sessions: list[int]
) -> None:
    assert run("verify", model, model, "--threads", 3).code == 0
    assert set(sessions) == {3}
    sessions.clear()
    assert run("verify", model, model).code == 0
    assert set(sessions) == {0}  # as ONNX Runtime likes


def test_threads_of_the_environment_reach_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS_VARIABLE, "2")
    code = "from onnxlr.runtime.threads import session_threads; print(session_threads())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "2\n"
    with runtime.with_threads(5):
        assert session_threads() == 5
    assert session_threads() == 2


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many"])
def test_numbers_of_threads_that_are_none(
    run: Run, model: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    ended = run("verify", model, model, f"--threads={number}")
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    monkeypatch.setenv(THREADS_VARIABLE, number)
    ended = run("verify", model, model)
    assert ended.code == 2
    assert THREADS_VARIABLE in ended.err
    with pytest.raises(UsageError, match="expected a whole number"):
        session_threads()


# --- documents -----------------------------------------------------------------------------------

FAILING = [
    (["inspect", "none.onnx"], 2),
    (["rewrite", "m.onnx", "--rank", "1"], 1),
    (["rewrite", "m.onnx", "--rank", "4", "--method", "nothing"], 2),
    (["rewrite", "m.onnx", "--no-such-flag"], 2),
    (["rewrite", "m.onnx", "--rank", "30", "--require-change"], 4),
    (["verify", "m.onnx", "wrong.onnx"], 3),
    (["plan", "m.onnx", "--plan"], 2),
    (["sweep", "m.onnx"], 2),
    (["fisher", "m.onnx", "--calibration", "c.npz", "-o", "m.onnx"], 2),
    (["tune", "m.onnx", "none.onnx", "--data", "c.npz"], 2),
    (["train-svd", "m.onnx", "--data", "none.npz", "--loss", "os:nothing"], 2),
    (["train-ternary", "m.onnx", "--data", "none.npz"], 2),
    (["bench", "none.onnx"], 2),
]


@pytest.mark.parametrize(("arguments", "code"), FAILING, ids=str)
def test_a_failure_is_one_document_with_a_schema(
    run: Run, data: Path, arguments: list[str], code: int
) -> None:
    node = one_node("MatMul", [("a", FLOAT, [1, 2])], [("b", FLOAT, [1, 2])], {"w": np.eye(2)})
    onnx.save(node, "wrong.onnx")
    ended = run(*arguments, "--json")
    assert ended.code == code, ended
    document = json.loads(ended.out)
    assert re.fullmatch(r"onnxlr\.\w+/\d+", document["schema"])
    if document["schema"] == "onnxlr.error/1":
        assert document["exit_code"] == code
        assert document["message"] in " ".join(ended.err.split())
    assert len(ended.err.splitlines()) == 1


# --- starting ------------------------------------------------------------------------------------


def test_interrupted_while_it_is_imported(tmp_path: Path) -> None:
    # The import of a library never ends: it is interrupted in there.
    (tmp_path / "cyclopts.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'here')!r}).touch()\ntime.sleep(60)\n"
    )
    code = "import onnxlr.__main__ as entry; entry.main()"
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", code, "inspect", "m.onnx"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    deadline = time.monotonic() + DEADLINE
    while not (tmp_path / "here").exists():
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=DEADLINE)
    assert (out, errors) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_a_model_in_memory_needs_no_command_line() -> None:
    code = "import sys, onnxlr; onnxlr.open; print('cyclopts' in sys.modules, onnxlr.plan.__name__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False plan\n"


def test_a_folder_does_not_hide_the_function_of_its_name() -> None:
    code = "import onnxlr.plan.choice, onnxlr; print(onnxlr.plan.__module__, onnxlr.Plan.__name__)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "onnxlr.pipeline Plan\n"
