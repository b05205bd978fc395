"""The fuzz target itself, and two thousand of its cases; `make fuzz` runs a hundred thousand."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tools import fuzz, fuzz_cases
from tools.fuzz_cases import Case, run_case


def test_two_thousand_cases(tmp_path: Path) -> None:
    run = fuzz.Run(2026, 2000, min(os.cpu_count() or 1, 8), tmp_path)
    run.carry_out()
    assert not run.failures
    done = run.done
    assert done["lower"] + done["run"] + done["command"] == 2000
    assert min(done["lower"], done["run"], done["command"]) > 0
    assert 500 < done["refused"] < 1900  # most are damaged, and some work all the same


def damaged(number: int, folder: Path) -> tuple[list[str], bytes]:
    folder.mkdir()
    case = Case(7, number, "lower")
    assert run_case(case, folder) is None
    return case.done, (folder / "in" / "m.onnx").read_bytes()


def test_a_case_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    first = [damaged(number, tmp_path / f"a{number}") for number in range(30)]
    second = [damaged(number, tmp_path / f"b{number}") for number in reversed(range(30))]
    assert first == second[::-1]
    assert len({content for _, content in first}) > 25


def escape(path: Path, method: object) -> None:
    (path.parent.parent / "escaped").write_text("x")


def outside(path: Path, method: object) -> None:
    (path.parents[2] / "escaped").write_text("x")


def defect(path: Path, method: object) -> None:
    raise KeyError("lost")


def crash(path: Path, method: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path: Path, method: object) -> None:
    time.sleep(3600)


def gluttony(path: Path, method: object) -> None:
    bytearray(64 << 30)


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (escape, "files beside the output"),
        (outside, "a write outside the case's folder"),
        (defect, "KeyError"),
        (crash, "the process ended with 9"),
        (hang, "no answer in 3 s"),
        (gluttony, "MemoryError"),
    ],
)
def test_what_it_is_to_find_is_found(
    act: object, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_cases, "_lower", act)
    monkeypatch.setattr(fuzz, "LIMIT", 3.0)
    monkeypatch.setattr(fuzz_cases, "_ARRAYS_SHARE", 0.0)
    run = fuzz.Run(7, 3, 2, tmp_path)
    run.carry_out()
    assert [failure.what for failure in run.failures] == [what] * 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "escaped") == [
        "7-0",
        "7-1",
        "7-2",
    ]
    told = (tmp_path / "7-0" / "failure.txt").read_text()
    assert "python tools/fuzz.py --replay 7:0 --stage lower" in told


def test_a_case_can_be_had_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz.main(["--replay", "7:3"]) == 0
    monkeypatch.setattr(fuzz_cases, "_lower", defect)
    monkeypatch.setattr(fuzz_cases, "_ARRAYS_SHARE", 0.0)
    assert fuzz.main(["--replay", "7:3"]) == 1
    assert "KeyError" in capsys.readouterr().out
