"""The command line run in this process, and a folder with the small classifier in it."""

from __future__ import annotations

import hashlib
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from onnxlr import cli
from onnxlr.errors import ExitCode, OnnxlrWarning
from onnxlr.runtime import Job, Outcome, run_job
from onnxlr.verification import runs
from tests.classifier import classifier


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]

HEEDED = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process; models run in it, too, instead of in child processes."""

    def run_here(job: Job, name: str, isolate: bool = True) -> Outcome:
        return run_job(job, name, isolate=False)

    monkeypatch.setattr(runs, "run_job", run_here)
    for name in ("ONNXLR_DEBUG", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def command(*arguments: object) -> Ended:
        capsys.readouterr()
        with warnings.catch_warnings(), signals_as_they_were():
            warnings.simplefilter("always", OnnxlrWarning)
            with pytest.raises(SystemExit) as ended:
                cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(int(ended.value.code), captured.out, captured.err)

    return command


@contextmanager
def signals_as_they_were() -> Iterator[None]:
    """Restore what a process does when it is interrupted or asked to end."""
    before = {number: signal.getsignal(number) for number in HEEDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty current folder."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def model(folder: Path) -> Path:
    """Return `m.onnx`, the classifier, alone in the current folder."""
    onnx.save(classifier(), "m.onnx")
    return Path("m.onnx")


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by path."""
    found = {}
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root, file)
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def refused(run: Run, folder: Path) -> Callable[[Sequence[object], int, Sequence[str]], str]:
    """Check that a command ends with one sentence, touches nothing, and return the sentence."""

    def check(arguments: Sequence[object], code: int, words: Sequence[str]) -> str:
        before = contents(folder)
        ended = run(*arguments)
        lines = ended.err.splitlines()
        assert ended.code == code, ended
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1, ended.err
        assert lines == errors, ended.err
        assert "Traceback" not in ended.out + ended.err
        assert not (code == ExitCode.USAGE and ended.out), ended.out
        for word in words:
            assert word in errors[0]
        assert contents(folder) == before
        return errors[0]

    return check
