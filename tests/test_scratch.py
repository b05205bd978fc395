"""Folders of a process alone, and what becomes of them when it is killed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import onnxlr
from onnxlr.errors import ScratchError
from onnxlr.scratch import LOCK, Scratch, scratch, temporary, undisturbed

HOLDER = """
import sys
from pathlib import Path
from onnxlr.scratch import scratch
with scratch("work-", Path(sys.argv[1])) as folder:
    (folder / "part").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def hold(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_fresh_and_goes_away(tmp_path: Path) -> None:
    with scratch("work-", tmp_path) as folder:
        assert folder.parent == tmp_path
        assert [path.name for path in folder.iterdir()] == [LOCK]
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_it_goes_away_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="why"), scratch("work-", tmp_path):
        raise ValueError("why")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process, left = hold(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (left / "part").read_text() == "half"
    with scratch("other-", tmp_path):
        assert left.exists()
    with scratch("work-", tmp_path) as folder:
        assert [path for path in tmp_path.iterdir() if path != folder] == []


def test_what_a_live_process_holds_stays(tmp_path: Path) -> None:
    process, held = hold(tmp_path)
    with scratch("work-", tmp_path):
        assert (held / "part").exists()
    assert process.poll() is None
    process.communicate("")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("days", [0, 30])
def test_a_folder_without_a_lock_stays_until_it_is_old(tmp_path: Path, days: int) -> None:
    (tmp_path / "work-of-another-version").mkdir()
    then = time.time() - days * 86400
    os.utime(tmp_path / "work-of-another-version", (then, then))
    with scratch("work-", tmp_path):
        assert (tmp_path / "work-of-another-version").exists() == (days == 0)


@pytest.mark.parametrize("minutes", [0, 5])
def test_an_empty_folder_without_a_lock_goes_when_nobody_can_be_making_it(
    tmp_path: Path, minutes: int
) -> None:
    """It was being made, or removed, when its process was killed."""
    (tmp_path / "work-empty").mkdir()
    then = time.time() - minutes * 60
    os.utime(tmp_path / "work-empty", (then, then))
    with scratch("work-", tmp_path):
        assert (tmp_path / "work-empty").exists() == (minutes == 0)


def test_the_lock_is_the_last_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it is gone, the folder can still be told to be nobody's."""
    folder = Scratch("work-", tmp_path)
    (folder.path / "below").mkdir()
    (folder.path / "below" / "file").touch()
    (folder.path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile.TemporaryDirectory, "cleanup", lambda _: None)
        folder.remove()
    assert [path.name for path in folder.path.iterdir()] == [LOCK]
    with scratch("work-", tmp_path) as other:
        assert list(tmp_path.iterdir()) == [other]


INTERRUPTED = """
import os, shutil, signal, sys, tempfile
from onnxlr.scratch import Scratch

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
interrupts = [signal.SIGINT]

def interrupting(function, after):
    def interrupt(*given, **named):
        found = function(*given, **named) if after else None
        if interrupts:
            os.kill(os.getpid(), interrupts.pop())
        for _ in range(1000):  # so that it would be heard here
            pass
        return found if after else function(*given, **named)
    return interrupt

place, moment = sys.argv[1:]
if moment == "made":
    tempfile.mkdtemp = interrupting(tempfile.mkdtemp, True)
else:
    os.unlink = interrupting(os.unlink, False)
try:
    folder = Scratch("work-", __import__("pathlib").Path(place))
    for name in "abc":
        (folder.path / name).touch()
    folder.remove()
except KeyboardInterrupt:
    print("heard")
"""


@pytest.mark.parametrize("moment", ["made", "removed"])
def test_an_interruption_leaves_nothing_at_whatever_moment(tmp_path: Path, moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), moment],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "heard\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_undisturbed_gives_its_result_or_its_error() -> None:
    assert undisturbed(lambda: 17) == 17
    with pytest.raises(ZeroDivisionError):
        undisturbed(lambda: 1 // 0)


def test_nothing_else_makes_temporary_folders() -> None:
    """What others would make stayed for ever where their process is killed."""
    package = Path(onnxlr.__file__).parent
    makers = re.compile(r"mkdtemp|mkstemp|TemporaryDirectory|TemporaryFile")
    found = {p.name for p in package.rglob("*.py") if makers.search(p.read_text("utf-8"))}
    assert found == {"scratch.py"}


def test_where_no_thread_can_begin_it_is_done_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in what is cleaned up while Python ends."""

    class NoThread:
        def __init__(self, target: object) -> None:
            pass

        def start(self) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr("onnxlr.scratch.Thread", NoThread)
    assert undisturbed(lambda: 17) == 17


# --- full disks ----------------------------------------------------------------------------------


def full(*named: str | Path) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *map(str, named))


@pytest.fixture
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_full_disk_of_temporary_files_names_their_folder(temporary_files: Path) -> None:
    said = rf"^{temporary_files}: temporary files cannot be written there \(No space left"
    with pytest.raises(ScratchError, match=said), scratch("work-"):
        raise full()
    with pytest.raises(ScratchError, match=said), scratch("work-") as folder:
        raise full(folder / "file")
    with pytest.raises(ScratchError, match=said), temporary():
        raise full()
    assert list(temporary_files.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(
    temporary_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise full(temporary_files)

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with pytest.raises(ScratchError, match=str(temporary_files)):
        Scratch("work-")
    with pytest.raises(OSError, match="No space left"):
        Scratch("work-", temporary_files)


@pytest.mark.usefixtures("temporary_files")
def test_other_errors_are_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="elsewhere") as error, scratch("work-"):
        raise full(tmp_path / "elsewhere")
    assert not isinstance(error.value, ScratchError)
    with pytest.raises(OSError, match="No space left"), scratch("work-", tmp_path):
        raise full()
    with pytest.raises(FileNotFoundError), scratch("work-") as folder:
        (folder / "nowhere" / "file").touch()


def test_links_and_files_of_such_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "treasure").mkdir()
    (tmp_path / "treasure" / LOCK).touch()
    (tmp_path / "work-link").symlink_to(tmp_path / "treasure")
    (tmp_path / "work-file").touch()
    with scratch("work-", tmp_path):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"treasure", "work-link", "work-file"}
    assert (tmp_path / "treasure" / LOCK).exists()
