"""Ternary nodes in branches, loop bodies, and functions of the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlr.stages import Scale
from tests.lowering.ternary import (
    by_functions,
    by_kernels,
    factors,
    lowered,
    matrix,
    normal,
)
from tests.onelayer import distance


def _branching(weights, opset=17):
    """Return a model of an If with the layer in one branch or both."""
    branches = []
    for number, name in enumerate(weights):
        output = helper.make_tensor_value_info(f"r{number}", TensorProto.FLOAT, [3, 7])
        nodes = [helper.make_node("MatMul", ["x", name], [f"r{number}"], name=f"layer{number}")]
        if number == 0:
            nodes[0].output[0] = "inner"
            nodes.append(helper.make_node("Neg", ["inner"], ["r0"]))
        branches.append(helper.make_graph(nodes, f"branch{number}", [], [output]))
    graph = helper.make_graph(
        [helper.make_node("If", ["on"], ["y"], then_branch=branches[0], else_branch=branches[1])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 20]),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 7])],
        [numpy_helper.from_array(normal(9, 20, 7), name) for name in sorted(set(weights))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
def test_branches_have_constants_of_their_own(activations):
    stage, dense = matrix(0, 20, 7)
    d, x = factors(0, 20), normal(1, 3, 20)
    changed = lowered(_branching(["w", "w"]), [Scale(d), stage], "onnxlr", activations)
    assert not changed.graph.initializer
    branches = [a.g for a in changed.graph.node[0].attribute]
    for branch in branches:
        kinds = [node.op_type for node in branch.node]
        assert kinds[:5] == ["Constant"] * 4 + ["TernaryMatMul"]
    limit = 1e-5 if activations == "float" else 0.05
    for on, sign in ((True, -1), (False, 1)):
        inputs = {"x": x, "on": np.array(on)}
        expected = sign * ((x * d) @ dense)
        function, kernels = by_functions(changed, inputs), by_kernels(changed, inputs)
        assert distance(function, expected) < limit
        assert distance(kernels, function.astype(np.float64)) < 1e-5


def test_two_sites_of_one_branch_share_constants_there():
    stage, dense = matrix(0, 20, 20)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["r"]),
    ]
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [3, 20])
    other = helper.make_tensor_value_info("o", TensorProto.FLOAT, [3, 20])
    graph = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["on"],
                ["y"],
                then_branch=helper.make_graph(nodes, "then", [], [result]),
                else_branch=helper.make_graph(
                    [helper.make_node("Identity", ["x"], ["o"])], "else", [], [other]
                ),
            ),
            helper.make_node("MatMul", ["x", "w"], ["z"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 20]),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 20]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 20]),
        ],
        [numpy_helper.from_array(normal(9, 20, 20), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    changed = lowered(model, [stage])
    (branch,) = (a.g for a in changed.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["Constant"] * 4 + ["TernaryMatMul"] * 2
    assert len(changed.graph.initializer) == 4  # the main graph's own
    x = normal(1, 3, 20)
    inputs = {"x": x, "on": np.array(True)}
    for found in (by_functions(changed, inputs), by_kernels(changed, inputs)):
        assert distance(found, x @ dense @ dense) < 1e-5


def test_a_loop_body():
    stage, dense = matrix(0, 6, 6)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("MatMul", ["state", "w"], ["next"], name="layer"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 6]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 6]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["count", "", "x"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6])],
        [
            numpy_helper.from_array(normal(9, 6, 6), "w"),
            numpy_helper.from_array(np.array(3), "count"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    changed = lowered(model, [stage])
    assert [t.name for t in changed.graph.initializer] == ["count"]
    x = normal(1, 2, 6)
    expect = x @ dense @ dense @ dense
    for found in (by_functions(changed, {"x": x}), by_kernels(changed, {"x": x})):
        assert distance(found, expect) < 1e-5


def _with_function(nested, opset, model_opset=17):
    body = [
        helper.make_node(
            "Constant", [], ["w"], value=numpy_helper.from_array(normal(0, 64, 48), "w")
        ),
        helper.make_node("MatMul", ["a", "w"], ["r"], name="layer"),
    ]
    inputs = ["a"]
    if nested:
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        taken, other = (
            helper.make_graph(nodes, "branch", [], [result])
            for nodes in (body, [helper.make_node("Neg", ["a"], ["r"])])
        )
        body = [helper.make_node("If", ["on"], ["r"], then_branch=taken, else_branch=other)]
        inputs = ["a", "on"]
    function = helper.make_function(
        "own", "F", inputs, ["r"], body, [helper.make_opsetid("", opset)]
    )
    feeds = {"x": (TensorProto.FLOAT, [5, 64]), "on": (TensorProto.BOOL, [])}
    used = list(feeds)[: len(inputs)]
    graph = helper.make_graph(
        [helper.make_node("F", used, ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info(name, *feeds[name]) for name in used],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 48])],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", model_opset), helper.make_opsetid("own", 1)],
        functions=[function],
        ir_version=8,
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
def test_inside_a_function(nested, activations):
    stage, dense = matrix(0, 64, 48, 2)
    changed = lowered(_with_function(nested, 17), [stage], "onnxlr", activations)
    (function,) = (f for f in changed.functions if f.domain == "own")
    assert {e.domain: e.version for e in function.opset_import} == {"": 17, "onnxlr": 1}
    x = normal(1, 5, 64)
    inputs = {"x": x} | ({"on": np.array(True)} if nested else {})
    function_result, kernels = by_functions(changed, inputs), by_kernels(changed, inputs)
    assert distance(function_result, x @ dense) < (1e-5 if activations == "float" else 0.05)
    assert distance(kernels, function_result.astype(np.float64)) < 1e-5


def test_a_function_of_an_older_opset_than_the_models():
    stage, dense = matrix(0, 64, 48)
    changed = lowered(_with_function(False, 13, 16), [stage])
    x = normal(1, 5, 64)
    for found in (by_functions(changed, {"x": x}), by_kernels(changed, {"x": x})):
        assert distance(found, x @ dense) < 1e-5
