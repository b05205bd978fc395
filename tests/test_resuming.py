"""A run ended at any moment leaves the input as it was, and the next one goes on from it."""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxlr
from onnxlr.errors import ExitCode
from onnxlr.model import open_model
from tests.classifier import FLOAT, one_node
from tools.bench_large_model import make_model

LAYERS, SIZE, RANK = 24, 128, 12


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return make_model(tmp_path / "in", LAYERS, SIZE)


@pytest.fixture(autouse=True)
def own_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give processes a folder for temporary files of their own, which can be looked into."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def command(model: Path, output: Path, *more: str) -> list[str]:
    asked = ["--method", "svd", "--rank", str(RANK), "--tolerance", "cosine>=-1", *more]
    return [sys.executable, "-m", "onnxlr", "rewrite", str(model), "-o", str(output), *asked]


def begin(model: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(model, output, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def ended(process: subprocess.Popen[bytes], seconds: float, number: int) -> tuple[int, str]:
    """Send a signal after so long; return how the process ended, and what it said."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    _, said = process.communicate()
    return process.returncode, said.decode()


def staged(folder: Path) -> set[str]:
    """Return the names of the folders that outputs are built in."""
    return {path.name for path in folder.iterdir() if path.name.startswith(".onnxlr-")}


def interrupt_often(model: Path, folder: Path, times: int, more: tuple[str, ...]) -> None:
    """End runs at random moments, and check what each leaves."""
    source, chance = hashes(model.parent), random.Random(4)
    (folder / "undisturbed").mkdir()
    begun = time.monotonic()
    subprocess.run(command(model, folder / "undisturbed" / "m.onnx", *more), check=True)
    longest = time.monotonic() - begun
    expected = hashes(folder / "undisturbed")
    output, cache = folder / "out" / "m.onnx", folder / "cache"
    output.parent.mkdir()
    known = 0
    for number in range(times):
        sent, before = signal.SIGKILL if number % 3 else signal.SIGINT, staged(output.parent)
        process = begin(model, output, "--cache", str(cache), *more)
        code, said = ended(process, chance.uniform(0, longest), sent)
        expected_codes = (ExitCode.DONE, -signal.SIGKILL, -signal.SIGINT, ExitCode.INTERRUPTED)
        assert code in expected_codes, said
        assert hashes(model.parent) == source
        if output.exists():
            assert {name: hashes(output.parent)[name] for name in expected} == expected
            output.unlink()
        assert len(list(cache.rglob("*.npz"))) >= known
        known = len(list(cache.rglob("*.npz")))
        # One that is interrupted before it writes leaves what was left by another.
        left = staged(output.parent) - before
        assert len(left) <= (2 if sent == signal.SIGKILL or code < 0 else 0)
    subprocess.run(command(model, output, "--cache", str(cache), *more), check=True)
    assert hashes(output.parent) == expected
    assert hashes(model.parent) == source
    assert len(list(cache.rglob("*.npz"))) == LAYERS


@pytest.mark.parametrize("more", [(), ("--jobs", "2")])
def test_a_run_that_is_ended_goes_on(
    model: Path, tmp_path: Path, own_temporary_files: Path, more: tuple[str, ...]
) -> None:
    interrupt_often(model, tmp_path, 4, more)
    assert list(own_temporary_files.glob("onnxlr-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--jobs", "2")])
def test_fifty_runs_that_are_ended_go_on(
    model: Path, tmp_path: Path, own_temporary_files: Path, more: tuple[str, ...]
) -> None:
    interrupt_often(model, tmp_path, 50, more)
    assert list(own_temporary_files.glob("onnxlr-*")) == []


def test_an_interrupted_run_does_not_fit_again_what_it_has(model: Path, tmp_path: Path) -> None:
    output, cache = tmp_path / "m.onnx", tmp_path / "cache"
    process = begin(model, output, "--cache", str(cache), "--jobs", "1")
    while len(list(cache.rglob("*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    onnxlr.rewrite(
        model, output, method="svd", rank=RANK, tolerance="cosine>=-1", cache=cache, isolate=False
    )
    found = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    assert len(found) == LAYERS
    assert found | kept == found


SMALL_DISK = """
import resource, sys
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
from onnxlr.cli import main
main(sys.argv[1:])
"""


def run_on_a_small_disk(most: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(most), *arguments[3:]],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("most", "jobs"), [(100_000, ()), (1_000_000, ()), (1_000_000, ("--jobs", "2"))]
)
def test_a_full_disk_leaves_nothing_and_the_next_run_goes_on(
    model: Path, tmp_path: Path, most: int, jobs: tuple[str, ...]
) -> None:
    """No file can have more than some bytes: too few for the factors, or the reference model."""
    source = hashes(model.parent)
    output, cache = tmp_path / "out" / "m.onnx", tmp_path / "cache"
    output.parent.mkdir()
    done = run_on_a_small_disk(most, command(model, output, "--cache", str(cache), *jobs))
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert f"error: {output}: cannot be written: File too large" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert hashes(model.parent) == source
    assert list(output.parent.iterdir()) == []
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    assert kept
    subprocess.run(command(model, output, "--cache", str(cache), *jobs), check=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert open_model(output).external_files() == ["m.onnx.data"]


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")])
def test_a_cache_that_takes_nothing_is_said_once(
    model: Path, tmp_path: Path, jobs: tuple[str, ...]
) -> None:
    """Whoever fits the layers: files lie where folders of entries would be."""
    output, cache = tmp_path / "m.onnx", tmp_path / "cache"
    (cache / "fits").mkdir(parents=True)
    for number in range(256):
        (cache / "fits" / f"{number:02x}").touch()
    arguments = command(model, output, "--cache", str(cache), *jobs)
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert " ".join(done.stderr.split()).count("fits cannot be kept there (File exists)") == 1
    assert output.exists()


@pytest.mark.parametrize("where", ["here", "in a child process"])
def test_a_full_disk_of_temporary_files_is_no_fault_of_the_model(
    tmp_path: Path, own_temporary_files: Path, where: str
) -> None:
    """No file can have more than a megabyte: too few for the inputs, or the outputs."""
    inputs, outputs = (512, 64) if where == "here" else (64, 512)
    weight = np.random.default_rng(0).standard_normal((inputs, outputs)).astype(np.float32)
    file, output = tmp_path / "m.onnx", tmp_path / "out" / "m.onnx"
    onnx.save(
        one_node(
            "MatMul", [("x", FLOAT, [1000, inputs])], [("y", FLOAT, [1000, outputs])], {"w": weight}
        ),
        file,
    )
    np.save(tmp_path / "d.npy", np.ones((1000, inputs), np.float32))
    output.parent.mkdir()
    arguments = command(file, output, "--data", str(tmp_path / "d.npy"))
    done = run_on_a_small_disk(1_000_000, arguments)
    said = f"error: {own_temporary_files}: temporary files cannot be written there (File too large)"
    assert said in " ".join(done.stderr.split())
    assert done.returncode == ExitCode.USAGE
    assert list(output.parent.iterdir()) == []
    assert list(own_temporary_files.glob("onnxlr-*")) == []
