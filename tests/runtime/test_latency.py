"""Latency of models against each other, with a clock of their own and with the runtime's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.runtime import Race, latency, measure_latency, store_arrays
from onnxlr.runtime.latency import ratios, time_rounds
from tests.onelayer import model_of


class Clock:
    """Time that only passes while something runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: float) -> Callable[[Any], None]:
        def one(inputs: Any) -> None:
            self.calls.append(name)
            self.now += seconds * inputs["scale"]

        return one


def test_a_round_is_the_sum_over_all_inputs_and_the_first_round_is_not_counted() -> None:
    clock = Clock()
    runs = [clock.run("a", 2.0), clock.run("b", 3.0)]
    taken = time_rounds(runs, [{"scale": 1.0}, {"scale": 10.0}], 3, clock)
    np.testing.assert_allclose(taken, [[22.0] * 3, [33.0] * 3])
    assert clock.calls.count("a") == clock.calls.count("b") == 8


def test_models_take_turns_at_going_first() -> None:
    clock = Clock()
    time_rounds([clock.run(name, 1.0) for name in "abc"], [{"scale": 1.0}], 2, clock)
    assert ["".join(clock.calls[k : k + 3]) for k in (0, 3, 6)] == ["cab", "abc", "bca"]


def test_ratios_are_taken_within_a_round() -> None:
    """The machine is ten times slower in the second half: the ratio of medians would be 11 / 2."""
    first, second = ratios([[1, 1, 1, 10, 10], [2, 2, 2, 20, 20]])
    assert (first.ratio, first.low, first.high) == (1.0, 1.0, 1.0)
    assert (second.ratio, second.low, second.high) == (2.0, 2.0, 2.0)
    assert (first.seconds, second.seconds) == (1, 2)


def test_a_clock_that_is_too_coarse_tells_nothing() -> None:
    _, second = ratios([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert (second.low, second.ratio, second.high) == (1.0, 1.0, 1.0)


def test_spread_is_the_quartiles() -> None:
    _, latency = ratios([[1.0] * 5, [0.5, 0.1, 0.2, 0.4, 0.3]])
    assert (latency.low, latency.ratio, latency.high) == pytest.approx((0.2, 0.3, 0.4))
    assert latency.milliseconds == pytest.approx(300.0)


def test_one_round_has_no_spread() -> None:
    with pytest.raises(ValueError, match="two rounds"):
        ratios([[1.0], [2.0]])


@pytest.mark.parametrize(
    ("seconds", "calls"),
    [
        (7e-6, 2 + 16 * 143),  # a millisecond for each round, fifteen of them and one to warm up
        (1e-9, 2 + 16 * 200),  # at most so many
        (0.01, 2 + 16),
        (0.1, 2 + 6),  # two models take a second in five rounds
        (10.0, 2 + 6),  # the least that has a spread
    ],
)
def test_short_runs_are_repeated_and_long_ones_few(seconds: float, calls: int) -> None:
    clock = Clock()
    runs = [clock.run("a", seconds), clock.run("b", 2 * seconds)]
    found = latency._race(runs, [{"scale": 1.0}], clock)
    assert clock.calls.count("a") == calls
    assert found[0].seconds == pytest.approx(seconds, rel=1e-3)
    assert found[1].ratio == pytest.approx(2, rel=1e-3)


def product(folder: Path, name: str, size: int) -> str:
    """Store a model that multiplies by a matrix there and back."""
    weights = {"a": np.ones((64, size), np.float32), "b": np.ones((size, 64), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    model = model_of(nodes, {"x": np.zeros((64, 64), np.float32)}, ["y"], weights)
    onnx.save(model, folder / name)
    return str(folder / name)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_hundred_times_the_work_takes_longer(tmp_path: Path, isolate: bool) -> None:
    models = [product(tmp_path, "small.onnx", 20), product(tmp_path, "large.onnx", 2000)]
    feed = str(tmp_path / "feed.npz")
    store_arrays(Path(feed), {"x": np.ones((64, 64), np.float32)})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    wrong = str(tmp_path / "wrong.npz")
    store_arrays(Path(wrong), {"x": np.ones((3, 2), np.float32)})
    races = [
        Race([*models], [feed]),
        Race([models[0], str(broken)], [feed]),
        Race(models[:1], [wrong]),
        Race(models[::-1], [feed, feed]),
    ]
    forward, unloadable, unrunnable, backward = measure_latency(races, "m", isolate)
    assert forward[0].ratio == 1
    assert forward[1].ratio > 3
    assert forward[1].seconds > forward[0].seconds > 0
    assert backward[1].ratio < 1 / 3
    assert "cannot be loaded" in str(unloadable)
    assert "cannot be run" in str(unrunnable)
