"""Measurements on disk: what stays when processes end, files break and folders refuse."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxlr.errors import OnnxlrWarning
from onnxlr.planning.auto import cache as module
from onnxlr.planning.auto.cache import Cache, key_of, machine_key

TEXT = st.text("ab'\"\n\0ü☃", max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a folder" / "measurements.sqlite"


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_values_come_back(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("cache") / "c.sqlite"
    with Cache(file) as cache, Cache(None) as memory:
        for key, value in values.items():
            assert cache.get(key) is None
            cache.put(key, value)
            memory.put(key, value)
    with Cache(file) as again:
        for key, value in values.items():
            assert again.get(key) == value == memory.get(key)


def test_a_value_takes_the_place_of_another(path):
    with Cache(path) as cache:
        cache.put("k", 1)
        cache.put("k", (2, [3]))
        assert cache.get("k") == [2, [3]]
        assert cache.get("other") is None
    with Cache(path) as cache:
        assert cache.get("k") == [2, [3]]


def test_what_json_cannot_hold_is_refused(path):
    for place in (path, None):
        with Cache(place) as cache:
            with pytest.raises(TypeError):
                cache.put("k", object())
            assert cache.get("k") is None


def test_a_closed_cache_goes_on_in_memory(path):
    cache = Cache(path)
    cache.put("k", 1)
    cache.close()
    cache.close()
    cache.put("m", 2)
    assert (cache.get("k"), cache.get("m")) == (None, 2)
    with Cache(path) as again:
        assert (again.get("k"), again.get("m")) == (1, None)


def test_values_of_another_version_are_not_seen(path, monkeypatch):
    with Cache(path) as cache:
        cache.put("k", "old")
    monkeypatch.setattr(module, "_VERSION", 2)
    with Cache(path) as cache:
        assert cache.get("k") is None
        cache.put("k", "new")
    monkeypatch.setattr(module, "_VERSION", 1)
    with Cache(path) as cache:
        assert cache.get("k") == "old"


WRITER = """
import sys
from pathlib import Path
from onnxlr.planning.auto.cache import Cache
name, count = sys.argv[2], int(sys.argv[3])
with Cache(Path(sys.argv[1])) as cache:
    print("open", flush=True)
    sys.stdin.readline()
    for number in range(count):
        cache.put(f"{name}-{number}", [number] * 50)
        print(number, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Start a process that waits for a line, then puts values and says which."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", WRITER, str(path), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_two_processes_write_at_once(path):
    processes = [writer(path, name, 300) for name in ("a", "b")]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    with Cache(path) as cache:
        for name in ("a", "b"):
            assert all(cache.get(f"{name}-{n}") == [n] * 50 for n in range(300))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
@pytest.mark.parametrize("after", [0, 7, 150])
def test_what_was_put_survives_a_kill(path, after):
    process = writer(path, "k", 10**6)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(after):
        process.stdout.readline()
    process.kill()
    said, _ = process.communicate(timeout=60)
    done = after + said.count("\n") - (not said.endswith("\n") and bool(said))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Cache(path) as cache:
            assert all(cache.get(f"k-{n}") == [n] * 50 for n in range(done))
            cache.put("later", 1)
            assert cache.get("later") == 1


def test_a_busy_file_is_waited_for(path):
    with Cache(path) as cache:
        cache.put("k", 1)
        code = (
            "import sqlite3, sys, time\n"
            "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE'); print('mine', flush=True); time.sleep(1)\n"
            "c.execute('COMMIT')\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"mine"
        cache.put("k", 2)
        assert process.wait(60) == 0
    with Cache(path) as cache:
        assert cache.get("k") == 2


def test_a_file_that_stays_busy_is_given_up(path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    with Cache(path) as cache:
        cache.put("k", 1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.warns(OnnxlrWarning, match="locked"):
            cache.put("k", 2)
        cache.put("m", 3)  # warned of once
        assert (cache.get("k"), cache.get("m")) == (2, 3)
        other.execute("ROLLBACK")
        other.close()
    with Cache(path) as cache:
        assert (cache.get("k"), cache.get("m")) == (1, None)


@pytest.mark.parametrize("content", [b"this is no database" * 99, os.urandom(20000), b"\x00" * 9])
def test_a_file_that_is_no_database_is_set_aside(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.warns(OnnxlrWarning, match="is damaged") as warned:
        cache = Cache(path)
    assert len(warned) == 1
    with cache:
        cache.put("k", 1)
    with Cache(path) as again:
        assert again.get("k") == 1
    assert (path.parent / f"{path.name}.damaged-1").read_bytes() == content


def filled(path: Path, count: int = 400) -> None:
    """Make a cache of many pages, all of them in the main file."""
    with Cache(path) as cache:
        for number in range(count):
            cache.put(f"k{number}", "x" * 200)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert path.stat().st_size > 50_000


def test_a_file_with_broken_pages_is_set_aside(path):
    filled(path)
    with path.open("r+b") as stream:
        stream.seek(8192)
        stream.write(os.urandom(30_000))
    with pytest.warns(OnnxlrWarning, match="is damaged"):
        cache = Cache(path)
    with cache:
        assert cache.get("k0") is None
        cache.put("k0", 1)
        assert cache.get("k0") == 1


def test_a_file_cut_short_is_set_aside(path):
    filled(path)
    with path.open("r+b") as stream:
        stream.truncate(20_000)
    with pytest.warns(OnnxlrWarning, match="is damaged"):
        cache = Cache(path)
    with cache:
        cache.put("k", 1)
    with Cache(path) as again:
        assert again.get("k") == 1


def test_what_another_process_has_begun_anew_is_not_set_aside(path, monkeypatch):
    """Both found the same damage; the other was first to the lock."""
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    alone_in = module.alone_in

    @contextmanager
    def second(folder):
        path.unlink()
        with Cache(path) as other:
            other.put("k", 1)
        with alone_in(folder):
            yield

    monkeypatch.setattr(module, "alone_in", second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Cache(path) as cache:
            assert cache.get("k") == 1
    assert list(path.parent.glob("*.damaged-*")) == []


def test_damage_while_it_is_open_is_noticed(path):
    filled(path, 20_000)
    with Cache(path) as cache:
        size = path.stat().st_size
        assert size > 4_000_000  # more than is kept in memory
        with path.open("r+b") as stream:
            stream.seek(4096)
            stream.write(b"\xa5" * (size - 4096))
        with pytest.warns(OnnxlrWarning, match="is damaged"):
            assert {cache.get(f"k{n}") for n in range(0, 20_000, 100)} >= {None}
        cache.put("k0", 1)
        assert cache.get("k0") == 1
    with Cache(path) as again:
        assert again.get("k0") == 1


def test_damaged_files_do_not_replace_each_other(path):
    path.parent.mkdir()
    for number in (1, 2):
        path.write_bytes(b"no database %d" % number * 50)
        with pytest.warns(OnnxlrWarning, match=f"damaged-{number}"):
            Cache(path).close()
        path.unlink()
    assert len(list(path.parent.glob("*.damaged-?"))) == 2


ENDLESS = (
    "CREATE VIEW measurements (version, key, value) AS WITH RECURSIVE n (i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 1, 'other', '1' FROM n"
)
TRIGGER = "CREATE TRIGGER t BEFORE INSERT ON measurements BEGIN DELETE FROM measurements; END"
COMPUTED = "CREATE TABLE measurements (version, key, value AS (printf('%.*c', 1000000000, 'x')))"


@pytest.mark.parametrize("script", [ENDLESS, f"{module._TABLE}; {TRIGGER}", COMPUTED])
def test_a_file_that_computes_is_set_aside(path, script):
    """Reading a view may never end."""
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    with pytest.warns(OnnxlrWarning, match="damaged-1"):
        cache = Cache(path)
    with cache:
        cache.put("a", 1)
        cache.put("b", 2)
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, 2, None)


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_value_that_is_no_json_is_not_there(path, text):
    with Cache(path) as cache:
        cache.put("k", 1)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE measurements SET value = ?", (text,))
    connection.commit()
    connection.close()
    with Cache(path) as cache:
        assert cache.get("k") is None


def test_where_no_file_can_be_memory_serves(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file" / "c.sqlite", tmp_path):
        with pytest.warns(OnnxlrWarning, match="for this run only") as warned:
            cache = Cache(path)
        with cache:
            cache.put("k", [1])
            assert cache.get("k") == [1]
        assert len(warned) == 1
        assert "\n" not in str(warned[0].message)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_folder_that_is_read_only(path):
    path.parent.mkdir()
    path.parent.chmod(0o500)
    try:
        with pytest.warns(OnnxlrWarning, match="for this run only"):
            cache = Cache(path)
        with cache:
            cache.put("k", [1])
            assert cache.get("k") == [1]
    finally:
        path.parent.chmod(0o700)


def test_a_file_that_cannot_be_written_is_still_read(path):
    """As with a read-only file; permissions themselves do not bind every user."""
    with Cache(path) as cache:
        cache.put("k", 1)
    with Cache(path) as cache:
        assert cache._file is not None
        cache._file.execute("PRAGMA query_only = ON")
        with pytest.warns(OnnxlrWarning, match="for this run only"):
            cache.put("m", 2)
        cache.put("n", 3)
        assert (cache.get("k"), cache.get("m"), cache.get("n")) == (1, 2, 3)
    with Cache(path) as cache:
        assert (cache.get("k"), cache.get("m"), cache.get("n")) == (1, None, None)


def test_keys_tell_values_apart():
    keys = [
        key_of(),
        key_of("a"),
        key_of("a", "b"),
        key_of("ab"),
        key_of(["a", "b"]),
        key_of(1),
        key_of("1"),
        key_of(1.5, None, True),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": (2,), "a": 1})
    with pytest.raises(TypeError):
        key_of(object())


def test_keys_are_the_same_in_every_process():
    code = "from onnxlr.planning.auto.cache import key_of; print(key_of('ü', {'b': 1, 'a': .1}))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert runs == [key_of("ü", {"a": 0.1, "b": 1})] * 2


def test_the_key_of_the_machine_names_processor_and_runtime(monkeypatch):
    key = machine_key()
    assert json.loads(json.dumps(key)) == key
    assert key == machine_key()
    assert key["onnxruntime"] == ort.__version__
    assert key["processor"]
    monkeypatch.setenv("ONNXLR_OPS_LIBRARY", "off")
    assert machine_key() == {**key, "ops": None}


def test_processors_are_told_apart(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(module, "_CPU", file)
    file.write_text(
        "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Some CPU\nstepping\t: 8\n"
        "\nprocessor\t: 1\ncpu family\t: 6\nmodel\t\t: 1\nmodel name\t: Other\nstepping\t: 1\n\n"
    )
    assert machine_key()["processor"] == "Some CPU 6 143 8"
    file.write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n")
    assert machine_key()["processor"] == "0x41 0xd0c"
    file.unlink()
    assert machine_key()["processor"]
