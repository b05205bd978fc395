"""What tests of crafted files share: commands, how they must end, and a process of their own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

from tests.cli.conftest import Run, contents

Refused = Callable[[Sequence[object], int, Sequence[str]], str]
Damage = Callable[[onnx.ModelProto], object]

COMMANDS = (
    ["inspect", "bad.onnx"],
    ["plan", "bad.onnx", "--method", "svd", "--rank", "2"],
    ["rewrite", "bad.onnx", "--method", "svd", "--rank", "2"],
    ["verify", "bad.onnx", "bad.onnx"],
)


Answered = Callable[..., dict[str, int]]


@pytest.fixture
def answered(run: Run, folder: Path) -> Answered:
    """Check that each command either does its work or says one sentence; return exit codes."""

    def check(
        model: onnx.ModelProto, commands: Sequence[Sequence[str]] = COMMANDS
    ) -> dict[str, int]:
        Path("bad.onnx").write_bytes(model.SerializeToString())
        codes = {}
        before = contents(folder)
        for command in commands:
            ended = run(*command)
            errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
            assert ended.code in (0, 1, 2, 3, 4), (command, ended.err)
            assert len(errors) == bool(ended.code), (command, ended.err)
            assert "Traceback" not in ended.out + ended.err
            made = contents(folder).keys() - before.keys()
            assert made <= {"bad.onnxlr.onnx"}, (command, made)
            Path("bad.onnxlr.onnx").unlink(missing_ok=True)
            codes[command[0]] = ended.code
        return codes

    return check


def run_alone(command: Sequence[str], code: int, memory: int | None = None) -> str:
    """Run a command in a process of its own, with so much memory, and return its one sentence."""

    def limit() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    program = [sys.executable, "-m", "onnxlr", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        program,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=limit,
        env=environment,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        (sentence,) = done.stderr.splitlines()
        return sentence
    return done.stdout
