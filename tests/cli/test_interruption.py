"""Ctrl-C and other signals, in a real process: nothing of it stays behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.classifier import FLOAT, classifier, one_node

PROC = Path("/proc/self/task")
DEADLINE = 60
"""Seconds after which a test gives up; none of them waits for a time to pass."""


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*arguments: str, stderr: int) -> Iterator[subprocess.Popen[str]]:
    """Start the command line in a session of its own, with an empty folder for temporary files.

    Ctrl-C reaches it whatever started the tests: background jobs of a shell ignore the signal, and
    hand that on to their children.
    """
    Path("tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(Path("tmp").absolute())}
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxlr", *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  (it starts no thread and takes no lock)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_child(process: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        # Not any child: some versions of numpy start one while they are imported.
        for child in children(process.pid):
            if b"answer.json" in command_line(child):
                return child
        time.sleep(0.01)
    raise AssertionError("no model was run in a child process")


def command_line(pid: int) -> bytes:
    """Return a process's command line, nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_alive(pid: int) -> bool:
    return bool(command_line(pid))


def wait_until_gone(pid: int) -> None:
    """Wait for a process that is ending; one that was just forked notices a little later."""
    deadline = time.monotonic() + DEADLINE
    while is_alive(pid):
        assert time.monotonic() < deadline, "the child process is left over"
        time.sleep(0.01)


def left_behind() -> list[str]:
    """Return all files but the one ONNX Runtime itself keeps among the temporary ones."""
    return sorted(str(path) for path in Path().rglob("*") if path != Path("tmp/.ses"))


@pytest.mark.skipif(not PROC.exists(), reason="finds child processes in /proc, which is not here")
@pytest.mark.parametrize("command", ["rewrite", "verify"])
@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [
        (signal.SIGINT, False, 130),
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, False, 129),
    ],
)
def test_interrupted_while_a_model_runs(
    folder: Path, command: str, number: signal.Signals, to_group: bool, code: int
) -> None:
    onnx.save(classifier(), "m.onnx")
    arguments = {"rewrite": ["m.onnx", "--rank", "4"], "verify": ["m.onnx", "m.onnx"]}[command]
    with started(command, *arguments, stderr=subprocess.PIPE) as process:
        child = wait_for_child(process)
        (os.killpg if to_group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == code, errors
    wait_until_gone(child)
    assert left_behind() == ["m.onnx", "tmp"]
    assert "Traceback" not in errors
    if number is signal.SIGINT:
        assert errors.startswith("error: interrupted")
        assert errors.count("\n") == 1


def test_interrupted_while_layers_are_factorized(folder: Path) -> None:
    size = 1500
    matrix = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    model = one_node("MatMul", [("x", FLOAT, [1, size])], [("y", FLOAT, [1, size])], {"w": matrix})
    onnx.save(model, "m.onnx")
    Path("m.onnxlr.onnx").write_bytes(b"older")
    screen, terminal = pty.openpty()
    with started("rewrite", "m.onnx", stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while b"factorizing" not in shown:
            shown += os.read(screen, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal is gone when the process is
            while more := os.read(screen, 4096):
                shown += more
                process.send_signal(signal.SIGINT)  # as impatient people do
        process.wait(DEADLINE)
    os.close(screen)
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert b"interrupted" in shown
    assert left_behind() == ["m.onnx", "m.onnxlr.onnx", "tmp"]
    assert Path("m.onnxlr.onnx").read_bytes() == b"older"
