"""The op library on emulated processors, by tools/check_aarch64.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import check_aarch64
from tools.check_aarch64 import AARCH64, X86_64, FailedError, Machine

TOOL = Path(check_aarch64.__file__)


def _run(
    *options: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.slow
def test_kernels_and_models_on_arm():
    if AARCH64.missing():
        pytest.skip(AARCH64.missing())
    runtime = os.environ.get("ONNXLR_AARCH64_RUNTIME")
    options = ["--runtime", *([runtime] if runtime else [])]
    done = _run("--machine", "aarch64", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    for processor, isa in {"cortex-a53": "neon", "cortex-a76": "dotprod", "max": "i8mm"}.items():
        assert f"aarch64 {processor}: best {isa}, " in done.stdout
    if "models left out" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.stdout.count("models agree with numpy") == 3


@pytest.mark.slow
def test_kernels_on_older_x86():
    if X86_64.missing():
        pytest.skip(X86_64.missing())
    done = _run("--machine", "x86_64")
    if done.returncode == check_aarch64.NOTHING_RAN:
        pytest.skip("this is no x86-64 machine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x86_64 Nehalem: best scalar, " in done.stdout


def test_a_machine_without_the_tools_is_left_out_by_name(tmp_path):
    done = _run("--build", str(tmp_path), environment={"PATH": str(tmp_path)})
    assert done.returncode == 77
    assert "aarch64-linux-gnu-g++ (g++-aarch64-linux-gnu)" in done.stdout
    assert "qemu-aarch64-static (qemu-user-static)" in done.stdout
    assert not list(tmp_path.iterdir())


def _stand_in(folder: Path, script: str) -> tuple[Machine, Path]:
    """Return a machine whose kernels_test is a shell script."""
    program = folder / "tests" / "kernels_test"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    # `env -u -cpu NAME` leaves the options of an emulator without effect.
    return Machine("stand_in", {}, ("env", "-u"), (), {"A=1": "neon"}), folder


def test_another_instruction_set_than_expected_is_a_failure(tmp_path):
    machine, folder = _stand_in(tmp_path, "echo 'best: scalar'; echo '9 passed, 0 failed'")
    with pytest.raises(FailedError, match="best instruction set is scalar, expected neon"):
        list(check_aarch64.check_kernels(machine, folder))


def test_a_failed_case_is_a_failure_and_is_shown(tmp_path):
    machine, folder = _stand_in(tmp_path, "echo 'best: neon'; echo '8 passed, 1 failed'; exit 1")
    with pytest.raises(FailedError, match="8 passed, 1 failed"):
        list(check_aarch64.check_kernels(machine, folder))


def test_what_holds_is_one_line(tmp_path):
    machine, folder = _stand_in(tmp_path, "echo 'best: neon'; echo '9 passed, 0 failed'")
    lines = list(check_aarch64.check_kernels(machine, folder))
    assert lines == ["stand_in A=1: best neon, 9 passed, 0 failed"]
