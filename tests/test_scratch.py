"""Folders of a process alone, and what becomes of them when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxlr.scratch import LOCK, scratch

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


def test_links_and_files_of_such_names_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "treasure").mkdir()
    (tmp_path / "treasure" / LOCK).touch()
    (tmp_path / "work-link").symlink_to(tmp_path / "treasure")
    (tmp_path / "work-file").touch()
    with scratch("work-", tmp_path):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {"treasure", "work-link", "work-file"}
    assert (tmp_path / "treasure" / LOCK).exists()
