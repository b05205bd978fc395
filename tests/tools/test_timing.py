"""Tests of `tools/timing.py`, with a clock of their own."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from tools.timing import compare_latency, ratios, time_rounds


class Clock:
    """Time that only passes while something runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: float):
        def one(inputs: dict[str, float]) -> None:
            self.calls.append(name)
            self.now += seconds * inputs["scale"]

        return one


def test_a_round_is_the_sum_over_all_inputs_and_the_first_round_is_not_counted():
    clock = Clock()
    runs = [clock.run("a", 2.0), clock.run("b", 3.0)]
    taken = time_rounds(runs, [{"scale": 1.0}, {"scale": 10.0}], rounds=3, clock=clock)
    np.testing.assert_allclose(taken, [[22.0] * 3, [33.0] * 3])
    assert clock.calls.count("a") == clock.calls.count("b") == 8


def test_models_take_turns_at_going_first():
    clock = Clock()
    runs = [clock.run(name, 1.0) for name in "abc"]
    time_rounds(runs, [{"scale": 1.0}], rounds=2, clock=clock)
    # Each round holds all three once, and begins with the next one.
    rounds = ["".join(clock.calls[k : k + 3]) for k in (0, 3, 6)]
    assert rounds == ["cab", "abc", "bca"]


def test_ratios_are_taken_within_a_round():
    # The machine is ten times slower in the second half: the ratio of medians would be 11 / 2.
    first, second = ratios([[1, 1, 1, 10, 10], [2, 2, 2, 20, 20]])
    assert (first.ratio, first.low, first.high) == (1.0, 1.0, 1.0)
    assert (second.ratio, second.low, second.high) == (2.0, 2.0, 2.0)
    assert second.milliseconds == 2000.0


def test_spread_is_the_quartiles():
    _, latency = ratios([[1.0] * 5, [0.5, 0.1, 0.2, 0.4, 0.3]])
    assert (latency.low, latency.ratio, latency.high) == pytest.approx((0.2, 0.3, 0.4))


def test_one_round_has_no_spread():
    with pytest.raises(ValueError, match="two rounds or more"):
        ratios([[1.0], [2.0]])


def test_files_are_timed_against_the_first(tmp_path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sin", ["x"], ["y"])], "sine", [x], [y])
    path = tmp_path / "sine.onnx"
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    feeds = [{"x": np.ones(size, np.float32)} for size in (1000, 2000)]
    found = compare_latency([path, path, path], feeds, rounds=3)
    assert len(found) == 3
    assert (found[0].low, found[0].ratio, found[0].high) == (1, 1, 1)
    assert all(0 < latency.low <= latency.ratio <= latency.high for latency in found)
