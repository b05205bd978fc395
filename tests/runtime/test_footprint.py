"""What models take: memory against the bytes of their weights, and what is said where it fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.errors import RuntimeFailureError
from onnxlr.runtime import (
    Latency,
    ModelFile,
    Race,
    footprint,
    measure_footprints,
    memory,
    store_arrays,
)
from onnxlr.runtime.footprint import MOST_FEEDS, Loading, load_and_run
from tests.onelayer import Array, model_of

SIZE = 2048
WEIGHT = SIZE * SIZE * 4
FEED = {"x": np.ones((2, SIZE), np.float32)}
LINUX = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="nobody tells the memory of a process here"
)


def stored(folder: Path, name: str, kind: str) -> ModelFile:
    """Store a model that multiplies by a matrix: kept, made at load, or made in each run."""
    shape = np.array([SIZE, SIZE], np.int64)
    row = np.ones((1, SIZE), np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    constants: dict[str, Array] = {"row": row, "shape": shape}
    if kind == "kept":
        nodes, constants = [product], {"w": np.broadcast_to(row, shape).copy()}
    elif kind == "made at load":
        nodes = [helper.make_node("Expand", ["row", "shape"], ["w"]), product]
    else:
        constants = {"shape": shape, "begin": np.array([0]), "end": np.array([1])}
        first = helper.make_node("Slice", ["x", "begin", "end", "begin"], ["row"])
        nodes = [first, helper.make_node("Expand", ["row", "shape"], ["w"]), product]
    model = model_of(nodes, FEED, ["y"], constants)
    onnx.save(model, folder / name)
    return ModelFile(name, folder / name, (folder / name).stat().st_size)


@LINUX
@pytest.mark.parametrize("kind", ["made at load", "made in each run"])
def test_memory_is_that_of_the_weights_where_they_are(tmp_path: Path, kind: str) -> None:
    kept, made = stored(tmp_path, "kept.onnx", "kept"), stored(tmp_path, "made.onnx", kind)
    found = measure_footprints(kept, made, [FEED])
    before, after = found.original, found.rewritten
    assert before.problems == after.problems == ()
    assert before.bytes > WEIGHT > 1000 * after.bytes
    assert None not in (before.memory, before.peak, after.memory, after.peak)
    assert before.memory > 0.9 * WEIGHT
    if kind == "made at load":
        assert after.memory > 0.9 * WEIGHT
    else:
        assert after.memory < 0.3 * WEIGHT
    assert min(before.peak, after.peak) > 0.9 * WEIGHT
    for one in (before, after):
        assert one.peak >= one.memory
        assert one.load_seconds > 0
        assert one.latency is not None
        assert one.latency.seconds > 0
    assert before.latency.ratio == 1


def small(folder: Path, name: str = "small.onnx") -> ModelFile:
    """Store a model of one matrix of 4×3."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, w = np.zeros((2, 4), np.float32), np.ones((4, 3), np.float32)
    onnx.save(model_of([node], {"x": x}, ["y"], {"w": w}), folder / name)
    return ModelFile(name, folder / name, 7)


FEEDS = [{"x": np.full((2, 4), value, np.float32)} for value in range(6)]


def test_a_latency_is_of_one_run_on_few_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    races: list[Race] = []

    def measure(given: Sequence[Race], name: str, isolate: bool) -> list[list[Latency]]:
        races.extend(given)
        return [[Latency(8.0, 1.0, 1.0, 1.0), Latency(12.0, 1.5, 1.25, 2.0)]]

    monkeypatch.setattr(footprint, "measure_latency", measure)
    said: list[tuple[str, int, int]] = []
    models = [small(tmp_path), small(tmp_path, "other.onnx")]
    found = measure_footprints(
        *models, FEEDS, isolate=False, progress=lambda *step: said.append(step)
    )
    assert found.original.latency == Latency(8.0 / MOST_FEEDS, 1.0, 1.0, 1.0)
    assert found.rewritten.latency == Latency(12.0 / MOST_FEEDS, 1.5, 1.25, 2.0)
    (race,) = races
    assert list(race.models) == [str(model.file) for model in models]
    assert len(race.feeds) == MOST_FEEDS
    assert [step[1:] for step in said] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert len({step[0] for step in said}) == 1


def test_memory_is_nobodys_own_in_a_shared_process(tmp_path: Path) -> None:
    model = small(tmp_path)
    found = measure_footprints(model, model, FEEDS[:1], isolate=False)
    for one in (found.original, found.rewritten):
        assert one.bytes == 7
        assert (one.memory, one.peak) == (None, None)
        assert one.load_seconds is not None
        assert one.latency is not None
        assert "in this process" in one.problems[0]


def test_a_platform_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "no status")
    monkeypatch.setattr(memory, "_RESET", tmp_path / "no folder" / "clear_refs")
    store_arrays(tmp_path / "feed.npz", FEEDS[0])
    found = load_and_run(str(small(tmp_path).file), [str(tmp_path / "feed.npz")], True)
    assert (found["memory"], found["peak"]) == (None, None)
    assert found["load_seconds"] > 0

    def told(task: Loading, name: str, isolate: bool) -> dict[str, Any]:
        return found

    monkeypatch.setattr(footprint, "run_task", told)
    one = footprint._loaded(small(tmp_path), [], True)
    assert one.problems == ("memory was not measured: this platform does not tell it of a process",)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_model_that_cannot_be_loaded_or_run_says_why(tmp_path: Path, isolate: bool) -> None:
    broken = ModelFile("broken.onnx", tmp_path / "broken.onnx", 8)
    broken.file.write_bytes(b"no model")
    found = measure_footprints(small(tmp_path), broken, FEEDS[:1], isolate)
    assert found.rewritten.load_seconds is None
    assert found.rewritten.bytes == 8
    assert "broken.onnx: cannot be loaded: " in found.rewritten.problems[0]
    assert found.original.load_seconds is not None
    assert found.original.latency is None
    assert "broken.onnx has none to compare with" in found.original.problems[-1]
    wrong = [{"x": np.ones((5, 5), np.float32)}]
    unrun = measure_footprints(small(tmp_path), small(tmp_path), wrong, isolate)
    assert "small.onnx: cannot be run: " in unrun.original.problems[0]


def die(**arguments: Any) -> None:
    """End the process as a crash of the runtime does."""
    os.abort()


def test_a_child_that_dies_costs_its_cells_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loading, "function", f"{__name__}:die")
    found = measure_footprints(small(tmp_path), small(tmp_path), FEEDS[:1])
    assert "was ended by SIGABRT" in found.original.problems[0]
    assert found.original.memory is None


def test_a_race_that_dies_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*arguments: object) -> None:
        raise RuntimeFailureError("it died")

    monkeypatch.setattr(footprint, "measure_latency", dead)
    found = measure_footprints(small(tmp_path), small(tmp_path), FEEDS[:1], isolate=False)
    assert found.rewritten.load_seconds is not None
    assert found.rewritten.problems[-1] == "latency was not measured: it died"


def test_without_inputs_only_loading_is_measured(tmp_path: Path) -> None:
    found = measure_footprints(small(tmp_path), small(tmp_path), [], isolate=False)
    assert found.original.load_seconds is not None
    assert found.original.latency is None
    assert "there are no inputs" in found.original.problems[-1]


@pytest.mark.parametrize(
    ("start", "end", "peak"),
    [
        ((10, 10), (15, 60), 50),
        ((10, 40), (15, 60), 50),  # an earlier peak, lower than this one
        ((10, 40), (15, 40), None),  # an earlier one that hides it
        ((10, 10), (9, 10), 0),
        ((10, None), (9, None), None),
    ],
)
def test_a_peak_is_above_what_there_was(
    start: tuple[int, int | None], end: tuple[int, int | None], peak: int | None
) -> None:
    assert memory.Memory(*end).above(memory.Memory(*start)) == peak
