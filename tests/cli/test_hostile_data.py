"""Crafted plans, statistics and data at the command line: one sentence, and never a wait."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxlr
from onnxlr import cli
from onnxlr.statistics import Statistics
from tests.classifier import classifier, samples
from tests.cli.conftest import Run
from tests.cli.hostile import Refused, run_alone
from tests.fixtures import save_external

Json = dict[str, Any]
Array = np.ndarray[Any, Any]

SVD = ["--method", "svd", "--rank", "2"]
ANYTHING = ["--tolerance", "cosine>=-1"]

# --- what never begins, never ends, or is larger than anything -----------------------------------


@pytest.fixture
def impatient() -> Iterator[None]:
    """End what waits for ever with an exception."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "flags",
    [
        ["--data", "pipe.npz"],
        ["--data", "pipe.npy"],
        ["--data", "folder"],
        ["--statistics", "pipe.npz"],
        ["--statistics", "/dev/zero"],
        ["--importance", "pipe.npz", "--metric", "fisher"],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("impatient")
def test_data_behind_a_pipe(run: Run, model: Path, flags: list[str]) -> None:
    """Nobody would ever write to it, or stop."""
    Path("folder").mkdir()
    for name in ("pipe.npz", "pipe.npy", "folder/pipe.npz"):
        os.mkfifo(name)
    ended = run("rewrite", model, *SVD, *flags)
    assert ended.code == 2
    assert "is no regular file" in ended.err or "no such file" in ended.err


def test_a_plan_without_end(model: Path) -> None:
    said = run_alone(["rewrite", str(model), "--plan", "/dev/zero"], 2, memory=4 << 30)
    assert "/dev/zero: has more than 134,217,728 bytes, which no plan has" in said


def test_a_plan_may_be_a_pipe(run: Run, model: Path) -> None:
    plan = run("plan", model, *SVD, "--json").out
    reading, writing = os.pipe()
    os.write(writing, plan.encode())
    os.close(writing)
    ended = run("rewrite", model, *ANYTHING, "--plan", f"/dev/fd/{reading}")
    os.close(reading)
    assert ended.code == 0


@pytest.mark.parametrize("size", [2**31, 1 << 42])
def test_a_file_larger_than_any_model(run: Run, folder: Path, size: int) -> None:
    with Path("bad.onnx").open("wb") as stream:
        stream.truncate(size)  # all of it is a hole
    for command in (["inspect", "bad.onnx"], ["verify", "bad.onnx", "bad.onnx"]):
        ended = run(*command)
        assert ended.code == 3
        said = f"error: bad.onnx: has {size:,} bytes, an ONNX model file has 2 GB at most"
        assert ended.err.startswith(said)


def test_memory_that_does_not_suffice(
    refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gluttony(*_: object, **__: object) -> None:
        np.empty((1 << 20, 1 << 39))

    monkeypatch.setattr(cli.pipeline, "inspect", gluttony)
    message = refused(
        ["inspect", model], 3, ["memory does not suffice (Unable to allocate 4.00 Ei"]
    )
    assert "defect" not in message


# --- plans ---------------------------------------------------------------------------------------


@pytest.fixture
def plan(run: Run, model: Path) -> Json:
    """Return a plan of `m.onnx`."""
    run("plan", model, *SVD, "-o", "p.json")
    found: Json = json.loads(Path("p.json").read_text())
    return found


HALF = "\ud800"
HALVES: list[Callable[[Json], object]] = [
    lambda plan: plan["layers"]["first"].update(reason=HALF),
    lambda plan: plan["layers"]["first"].update(rejected={HALF: "x"}),
    lambda plan: plan.update(onnxlr=HALF),
    lambda plan: plan.update(statistics={"layers": [HALF]}),
]


@pytest.mark.parametrize("change", HALVES)
def test_a_plan_with_half_a_character(
    refused: Refused, plan: Json, change: Callable[[Json], object]
) -> None:
    """JSON can say it, a model cannot hold it."""
    change(plan)
    Path("q.json").write_text(json.dumps(plan))
    refused(["rewrite", "m.onnx", "--plan", "q.json"], 2, [r"q.json: holds '\ud800', half a char"])


def test_a_plan_of_many_keys_of_which_the_last_is_there_twice(
    refused: Refused, model: Path
) -> None:
    """Counting each key would take an hour."""
    keys = [f'"{number}": 0' for number in range(300_000)]
    Path("q.json").write_text("{" + ", ".join([*keys, keys[-1]]) + "}")
    refused(["rewrite", model, "--plan", "q.json"], 2, ["q.json", "'299999' stands twice"])


@pytest.mark.parametrize("depth", [*range(900, 1000, 5), 100_000])
def test_a_plan_nested_deep(refused: Refused, plan: Json, depth: int) -> None:
    """What can just be read may not be written into the message."""
    plan["seed"] = 5
    text = json.dumps(plan).replace('"seed": 5', f'"seed": {"[" * depth}{"]" * depth}')
    Path("q.json").write_text(text)
    refused(["rewrite", "m.onnx", "--plan", "q.json"], 2, ["q.json"])


def test_a_name_without_end_is_cut_short(refused: Refused, plan: Json) -> None:
    plan["layers"]["first"]["method"] = "a" * 1_000_000
    Path("q.json").write_text(json.dumps(plan))
    message = refused(["rewrite", "m.onnx", "--plan", "q.json"], 2, ["q.json", "is unknown", "svd"])
    assert len(message) < 5000


def test_training_that_a_model_tells_of_is_nested_deep(run: Run, model: Path) -> None:
    rewritten = classifier()
    rewritten.metadata_props.add(key="onnxlr.tuned", value="[" * 100_000)
    onnx.save(rewritten, "tuned.onnx")
    ended = run("verify", model, "tuned.onnx")
    assert ended.code == 0, ended.err


# --- statistics ----------------------------------------------------------------------------------


def content_hash(array: Array) -> str:
    """Return what stands for an array in statistics, a hash of its type, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class Crafted:
    """A file of statistics whose JSON and arrays can be replaced."""

    def __init__(self, path: str) -> None:
        with zipfile.ZipFile(path) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}
        self.json: Json = json.loads(self.files["statistics.json"])

    def put(self, array: Array) -> str:
        """Add an array and return what stands for it."""
        stream, key = io.BytesIO(), content_hash(array)
        np.lib.format.write_array(stream, array)
        self.files[f"{key}.npy"] = stream.getvalue()
        return key

    def of_first(self, **arrays: Array) -> None:
        """Replace arrays of the layer with 24 inputs, of those that are fitted to."""
        for layer in self.json["layers"].values():
            means = np.load(io.BytesIO(self.files[f"{layer['fit']['means']}.npy"]))
            if means.shape[-1] == 24:
                layer["fit"] |= {name: self.put(array) for name, array in arrays.items()}

    def save(self, path: str) -> None:
        """Write the file."""
        files = self.files | {"statistics.json": json.dumps(self.json).encode()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)


@cache
def observed() -> Statistics:
    return onnxlr.observe(classifier(), {"x": samples(64)}, isolate=False)


@pytest.fixture
def statistics(model: Path) -> Crafted:
    """Return statistics of `m.onnx`."""
    observed().save("s.npz")
    return Crafted("s.npz")


def of_sizes(sites: int, groups: int, inputs: int) -> dict[str, Array]:
    ones = np.ones(sites)
    ranges = {"low": -ones, "high": ones, "output_low": -ones, "output_high": ones}
    return {
        "counts": np.full(sites, 10),
        "means": np.zeros((sites, groups, inputs)),
        "covariance": np.stack([np.eye(inputs)] * groups),
        **ranges,
    }


INDEFINITE = 5 * np.ones((1, 24, 24)) - 4 * np.eye(24)
LIES: list[tuple[str, dict[str, Array], str]] = [
    ("counts of floats", {"counts": np.array([1.5])}, "counts must be whole numbers"),
    ("counts of text", {"counts": np.array(["a"])}, "counts must be whole numbers"),
    ("negative counts", {"counts": np.array([-5])}, "counts must be whole numbers"),
    ("huge counts", of_sizes(1, 1, 24) | {"counts": np.array([2**63], np.uint64)}, "there can be"),
    ("a covariance of NaN", {"covariance": np.full((1, 24, 24), np.nan)}, "of finite numbers"),
    ("a covariance too large", {"covariance": np.full((1, 24, 24), 1e308)}, "of finite numbers"),
    ("a covariance of text", {"covariance": np.ones((1, 24, 24), "S3")}, "of finite numbers"),
    ("complex", {"covariance": np.ones((1, 24, 24), complex)}, "of finite numbers"),
    ("negative squares", {"covariance": -np.eye(24)[None]}, "a diagonal of squares"),
    ("lopsided", {"covariance": np.triu(np.ones((1, 24, 24)))}, "must be symmetric"),
    ("indefinite", {"covariance": INDEFINITE}, "no negative eigenvalues"),
    ("means of NaN", {"means": np.full((1, 1, 24), np.nan)}, "means must be finite"),
    ("means of text", {"means": np.ones((1, 1, 24), "U2")}, "means and ranges must be floats"),
    ("ranges of text", {"low": np.array(["x"])}, "means and ranges must be floats"),
    ("fewer inputs", of_sizes(1, 1, 3), "'first' are of 1×1×3"),
    ("more sites", of_sizes(3, 1, 24), "'first' are of 3×1×24"),
    ("more groups", of_sizes(1, 7, 24), "'first' are of 1×7×24"),
]


@pytest.mark.parametrize(
    ("arrays", "reason"), [case[1:] for case in LIES], ids=[c[0] for c in LIES]
)
def test_statistics_that_lie(
    refused: Refused, statistics: Crafted, arrays: dict[str, Array], reason: str
) -> None:
    statistics.of_first(**arrays)
    statistics.save("t.npz")
    refused(["rewrite", "m.onnx", *SVD, "--statistics", "t.npz"], 2, ["statistics", reason])


TEXTS: list[Json] = [
    {"notes": [1, {}]},
    {"notes": 5},
    {"unobserved": ["first"]},
    {"unobserved": {"first": 5}},
    {"unobserved": 5},
    {"model_sha256": None},
    {"data": {}},
    {"layers": []},
]


@pytest.mark.parametrize("values", TEXTS, ids=str)
def test_statistics_of_other_values(refused: Refused, statistics: Crafted, values: Json) -> None:
    statistics.json |= values
    statistics.save("t.npz")
    command = ["rewrite", "m.onnx", *SVD, "--statistics", "t.npz"]
    refused(command, 2, ["t.npz: is a damaged statistics file"])


# --- outputs -------------------------------------------------------------------------------------


def test_weights_beside_the_model_are_not_written_over(refused: Refused, folder: Path) -> None:
    save_external(classifier(), folder / "m.onnx")
    np.savez("d.npz", x=samples(64))
    Path("link.json").symlink_to("weights.bin")
    for output in ("weights.bin", "link.json"):
        words = [f"{output}: is the input; inputs are never modified"]
        refused(["plan", "m.onnx", *SVD, "-o", output], 2, words)
        refused(["observe", "m.onnx", "--calibration", "d.npz", "-o", output], 2, words)
        refused(["rewrite", "m.onnx", *SVD, "-o", output], 2, words)
