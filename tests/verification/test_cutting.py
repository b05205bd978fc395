"""Layers with int8 data are cut out of models of any depth."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxlr


def test_a_layer_behind_thousands_of_nodes_is_proved(tmp_path: Path) -> None:
    """Python calls no function as deep as this model is."""
    depth = 3000
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    names = ["x", *(f"t{number}" for number in range(depth))]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]
    nodes.append(helper.make_node("MatMul", [names[-1], "w"], ["y"], name="last"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")]
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    result = onnxlr.rewrite(
        tmp_path / "m.onnx",
        tmp_path / "o.onnx",
        method="quantize",
        format="int8",
        activations="dynamic_int8",
        isolate=False,
    )
    assert result.report is not None
    assert result.report.passed
    assert "emission" in {check.proof for check in result.report.checks}
    assert not result.plan.layers["last"].keeps
