"""An output appears whole or not at all, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnxlr
from onnxlr import delivery
from onnxlr.model import open_model, saving
from onnxlr.plan import Plan
from tests.fixtures import runnable_model, save_external, svd_plan

PLAN, EMPTY = svd_plan(["fc"], 1), svd_plan([], 1)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fail_with(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def half_written(_: Any, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"half a mo")
    (folder / f"{name}.data").write_bytes(b"half the da")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def rewrite(source: Path, output: Path, plan: Plan = PLAN, **arguments: Any) -> None:
    arguments = {"tolerance": "cosine>=-1"} | arguments
    onnxlr.rewrite(source, output, plan=plan, isolate=False, **arguments)


@pytest.fixture(params=["no older output", "an older output"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Return a model with external data, and the output path in another folder."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    save_external(runnable_model(), tmp_path / "in" / "m.onnx")
    if request.param == "an older output":
        (tmp_path / "out" / "m.onnx").write_bytes(b"what was there before")
        (tmp_path / "out" / "m.onnx.data").write_bytes(b"and its data")
    return tmp_path / "in" / "m.onnx", tmp_path / "out" / "m.onnx"


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["write_model", "prove_rewriting"])
def test_a_failure_leaves_everything_as_it_was(
    places: tuple[Path, Path], step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = places
    before = contents(source.parent.parent)
    monkeypatch.setattr(delivery, step, fail_with(error))
    with pytest.raises(type(error)):
        rewrite(source, output)
    assert contents(source.parent.parent) == before
    assert not [path for path in output.parent.iterdir() if path.is_dir()]


@pytest.mark.parametrize(("step", "plan"), [("write_model", PLAN), ("copy_model", EMPTY)])
def test_a_full_disk_is_an_output_error(
    places: tuple[Path, Path], step: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = places
    before = contents(source.parent.parent)
    monkeypatch.setattr(delivery, step, half_written)
    with pytest.raises(onnxlr.OutputError) as raised:
        rewrite(source, output, plan)
    assert str(raised.value) == f"{output}: cannot be written: No space left on device"
    assert contents(source.parent.parent) == before


def test_a_full_disk_is_that_of_the_output_where_files_are_copied(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python says first what was copied, and then where to."""
    source, output = places
    before = contents(source.parent.parent)

    def copied(one: Path, other: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(one), None, str(other))

    monkeypatch.setattr(shutil, "copyfile", copied)
    with pytest.raises(onnxlr.OutputError) as raised:
        rewrite(source, output, EMPTY)
    assert str(raised.value) == f"{output}: cannot be written: No space left on device"
    assert contents(source.parent.parent) == before


def test_a_failed_proof_hands_nothing_out(places: tuple[Path, Path]) -> None:
    source, output = places
    before = contents(source.parent.parent)
    with pytest.raises(onnxlr.VerificationError) as raised:
        rewrite(source, output, tolerance="cosine>=0.9999999")
    assert contents(source.parent.parent) == before
    assert raised.value.result is not None
    assert raised.value.result.output is None


def test_a_failed_proof_hands_it_out_if_asked(places: tuple[Path, Path]) -> None:
    source, output = places
    with pytest.raises(onnxlr.VerificationError) as raised:
        rewrite(source, output, tolerance="cosine>=0.9999999", keep=True)
    assert raised.value.result is not None
    assert raised.value.result.output == output
    assert {path.name for path in output.parent.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert open_model(output).proto.metadata_props[-1].key == "onnxlr.plan"


def test_a_rewrite_replaces_an_older_output(places: tuple[Path, Path]) -> None:
    source, output = places
    rewrite(source, output)
    assert {path.name for path in output.parent.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert open_model(output).external_files() == ["m.onnx.data"]


def test_the_model_moves_last(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model never stands beside data that is not its own, even if moving fails halfway."""
    source, output = places
    replace = Path.replace

    def fails_for_the_model(path: Path, target: Path) -> Path:
        if path.name == output.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fails_for_the_model)
    with pytest.raises(onnxlr.OutputError, match="Input/output error"):
        rewrite(source, output)
    assert [path.name for path in output.parent.iterdir()] == ["m.onnx.data"]


def test_files_are_on_the_disk_before_they_move(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = places
    steps: list[tuple[str, str]] = []
    sync, replace = saving._sync, Path.replace

    def note_sync(path: Path) -> None:
        steps.append(("sync", path.name))
        sync(path)

    def note_move(path: Path, target: Path) -> Path:
        steps.append(("move", path.name))
        return replace(path, target)

    monkeypatch.setattr(saving, "_sync", note_sync)
    monkeypatch.setattr(Path, "replace", note_move)
    rewrite(source, output)
    assert steps == [
        ("sync", "m.onnx.data"),
        ("sync", "m.onnx"),
        ("move", "m.onnx.data"),
        ("move", "m.onnx"),
        ("sync", "out"),
    ]


def test_an_interruption_does_not_part_model_and_data(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = places
    replace = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # so that it would be heard here
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    before = signal.signal(signal.SIGINT, interrupted_once())
    try:
        with pytest.raises(KeyboardInterrupt):
            rewrite(source, output)
    finally:
        signal.signal(signal.SIGINT, before)
    assert {path.name for path in output.parent.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert open_model(output).external_files() == ["m.onnx.data"]


def interrupted_once() -> Callable[..., None]:
    """Return a handler of signals that heeds the first of them, as the command line's does."""
    heard: list[int] = []

    def interrupt(number: int, _: object) -> None:
        heard.append(number)
        if len(heard) == 1:
            raise KeyboardInterrupt

    return interrupt


def test_nobody_else_moves_files_meanwhile(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with one output do not leave the model of one beside the data of the other."""
    fcntl = pytest.importorskip("fcntl")
    source, output = places
    place, seen = saving._place, list[Path]()

    def others_wait(*arguments: Any) -> None:
        folder = os.open(output.parent, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(folder)
        seen.extend(arguments[0])
        place(*arguments)

    monkeypatch.setattr(saving, "_place", others_wait)
    rewrite(source, output)
    assert [path.name for path in seen] == ["m.onnx.data", "m.onnx"]
    rewrite(source, output)  # nothing is held any more


def test_a_folder_in_the_place_of_the_data_stays(places: tuple[Path, Path]) -> None:
    source, output = places
    output.with_name("m.onnx.data").unlink(missing_ok=True)
    output.with_name("m.onnx.data").mkdir()
    rewrite(source, output)
    assert open_model(output).external_files() == ["m.onnx.2.data"]
    assert output.with_name("m.onnx.data").is_dir()


def test_require_change_writes_nothing(places: tuple[Path, Path]) -> None:
    source, output = places
    before = contents(source.parent.parent)
    with pytest.raises(onnxlr.NothingRewrittenError, match="no layer was rewritten"):
        rewrite(source, output, EMPTY, require_change=True)
    assert contents(source.parent.parent) == before


def test_outputs_are_refused_before_any_work(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = places
    folder = source.parent.parent
    before = contents(folder)
    monkeypatch.setattr(delivery, "Rewriting", fail_with(AssertionError("work was done")))
    link = folder / "link.onnx"
    link.symlink_to(source)
    for output, reason in (
        (source, "is the input"),
        (link, "is the input"),
        (folder / "in" / ".." / "in" / "m.onnx", "is the input"),
        (folder / "out", "is a folder"),
        (folder / "nowhere" / "m.onnx", "does not exist"),
    ):
        with pytest.raises(onnxlr.OutputError, match=reason) as raised:
            rewrite(source, output)
        assert str(raised.value).startswith(str(output))
    link.unlink()
    assert contents(folder) == before
