"""Models timed in turn in several processes, against medians and quartiles made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from onnxlr.errors import RuntimeFailureError
from onnxlr.runtime import heats, run_heats, single_thread, store_arrays
from onnxlr.runtime.heats import Heat, paces_of, run_heat
from onnxlr.runtime.single_thread import OnThreads, SingleThread, clock_of
from tests.onelayer import model_of

FEED = {"x": np.ones((64, 64), np.float32)}


def product(folder: Path, name: str, size: int) -> str:
    """Store a model that multiplies by a matrix there and back."""
    weights = {"a": np.ones((64, size), np.float32), "b": np.ones((size, 64), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    onnx.save(model_of(nodes, FEED, ["y"], weights), folder / name)
    return str(folder / name)


@pytest.fixture
def feed(tmp_path: Path) -> str:
    store_arrays(tmp_path / "feed.npz", FEED)
    return str(tmp_path / "feed.npz")


def test_a_pace_is_medians_and_quartiles_and_ratios_are_of_one_round() -> None:
    """The machine is ten times slower in the last two rounds, for both."""
    times = np.array([[1.0, 2.0, 3.0, 40.0, 50.0], [3.0, 4.0, 9.0, 80.0, 200.0]])
    found = paces_of(times.tolist())
    for pace, row in zip(found, times, strict=True):
        taken = (pace.seconds_low, pace.seconds, pace.seconds_high)
        np.testing.assert_allclose(taken, np.percentile(row, [25, 50, 75]))
        ratio = (pace.ratio_low, pace.ratio, pace.ratio_high)
        np.testing.assert_allclose(ratio, np.percentile(row / times[0], [25, 50, 75]))


def test_rounds_of_all_heats_count_alike_and_times_are_of_one_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, str, bool]] = []
    answers = iter([[[2.0, 4.0], [6.0, 8.0]], [[8.0], [20.0]]])

    def perform(task: Heat, name: str, isolate: bool) -> dict[str, Any]:
        asked.append((task, name, isolate))
        return {"seconds": next(answers)}

    monkeypatch.setattr(heats, "run_task", perform)
    said: list[int] = []
    found, rounds = run_heats(["a", "b"], ["f", "g"], 3, [2, 1], "m", True, said.append)
    assert rounds == 3
    assert [pace.seconds for pace in found] == [2.0, 4.0]
    assert found[1].ratio == 2.5  # of 3, 2 and 2.5
    assert said == [0, 1]
    assert asked == [(Heat(["a", "b"], ["f", "g"], 3, count), "m", True) for count in (2, 1)]


@pytest.mark.parametrize(("threads", "isolate"), [(1, True), (2, False)])
def test_a_hundred_times_the_work_takes_longer(
    tmp_path: Path, feed: str, threads: int, isolate: bool
) -> None:
    models = [product(tmp_path, "small.onnx", 20), product(tmp_path, "large.onnx", 2000)]
    (first, second), rounds = run_heats(models, [feed], threads, [3, 2], "m", isolate)
    assert rounds == 5
    assert (first.ratio, first.ratio_low, first.ratio_high) == (1, 1, 1)
    assert 0 < first.seconds_low <= first.seconds <= first.seconds_high
    if threads == 1:  # counted by the processor's time, which other work does not touch
        assert second.ratio > 3


def test_a_round_that_is_not_told_takes_as_many_as_a_race(tmp_path: Path, feed: str) -> None:
    found = run_heat([product(tmp_path, "m.onnx", 20)], [feed], 1, None)["seconds"]
    assert [len(row) for row in found] == [15]


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, feed: str) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeFailureError, match="mine: cannot be loaded"):
        run_heats([str(tmp_path / "broken.onnx")], [feed], 1, [2], "mine", isolate=False)


def test_sessions_have_the_threads_that_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ort.SessionOptions] = []
    usual = single_thread.open_session

    def opened(model: Any, options: ort.SessionOptions, *rest: Any, **more: Any) -> Any:
        seen.append(options)
        return usual(model, options, *rest, **more)

    monkeypatch.setattr(single_thread, "open_session", opened)
    file = product(tmp_path, "m.onnx", 20)
    results: Sequence[Any] = [
        session.run(FEED)[0] for session in (OnThreads(file, 3), SingleThread(file))
    ]
    np.testing.assert_array_equal(*results)
    assert [(o.intra_op_num_threads, o.inter_op_num_threads) for o in seen] == [(3, 1), (1, 1)]
    stop = "session.force_spinning_stop"
    assert seen[0].get_session_config_entry(stop) == "1"
    with pytest.raises(RuntimeError, match=stop):
        seen[1].get_session_config_entry(stop)


def test_only_one_thread_is_timed_by_its_own_time() -> None:
    """The thread's clock stands still while it sleeps; the wall's does not."""
    import time

    spans = []
    for threads in (1, 2):
        clock = clock_of(threads)
        start = clock()
        time.sleep(0.05)
        spans.append(clock() - start)
    assert spans[0] < 0.04 < spans[1]
