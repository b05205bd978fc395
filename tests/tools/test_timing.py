"""Tests of `tools/timing.py`."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, save

from tools.timing import compare_latency


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
