"""The kernels of each instruction set of this machine, without ONNX Runtime: custom_ops/tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "kernels"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def printed() -> str:
    """Build kernels_test and return what it prints; its build is kept for the next time."""
    for tool in ("cmake", os.environ.get("CXX", "c++")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    _run("cmake", "-S", str(ROOT / "custom_ops"), "-B", str(BUILD), "-DONNXLR_BUILD_TESTS=ON")
    _run("cmake", "--build", str(BUILD), "--target", "kernels_test", "--parallel", "2")
    return _run(str(BUILD / "tests" / "kernels_test"))


def test_no_case_fails(printed):
    closing = re.fullmatch(r"(\d+) passed, 0 failed", printed.splitlines()[-1])
    assert closing is not None
    counts = re.findall(r"^\w+ +(\d+) cases$", printed, re.MULTILINE)
    assert int(closing[1]) == sum(map(int, counts))


def test_each_instruction_set_of_this_machine_is_tried(printed):
    counts = dict(re.findall(r"^(\w+) +(\d+) cases$", printed, re.MULTILINE))
    best = re.findall(r"^best: (\w+)$", printed, re.MULTILINE)
    assert [list(counts)[1]] == best
    assert next(iter(counts)) == "dispatch"
    assert list(counts)[-1] == "scalar"
    del counts["dispatch"]
    assert len(set(counts.values())) == 1
    assert int(counts["scalar"]) > 1000
