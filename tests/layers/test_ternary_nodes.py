"""What is ternary already is listed as it is; functions that stand in for kernels are not."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.model import open_model
from tests.lowering.ternary import kernel, lowered, matmul_model, matrix, normal
from tests.onelayer import model_of

REASON = "ternary already: left alone"


@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
def test_matrices(activations: str) -> None:
    x = normal(1, 3, 20)
    model = lowered(matmul_model(normal(0, 20, 7), x), [matrix(0, 20, 7)[0]], "onnxlr", activations)
    assert [function.name for function in model.functions] == ["TernaryMatMul"]
    (layer,) = find_layers(open_model(model))
    (node,) = (node for node in model.graph.node if node.domain == "onnxlr")
    assert (layer.name, layer.operator, layer.skip) == (node.name, "TernaryMatMul", REASON)
    assert layer.weight is None


def test_convolutions() -> None:
    x = normal(1, 2, 4, 6, 6)
    node = helper.make_node("Conv", ["x", "w"], ["y"], "layer")
    model = model_of([node], {"x": x}, ["y"], {"w": normal(0, 5, 4, 3, 3)})
    (layer,) = find_layers(open_model(lowered(model, [kernel(0, (5, 4, 3, 3))[0]])))
    assert (layer.operator, layer.skip) == ("TernaryConv", REASON)


def test_other_functions_of_the_domain_and_other_domains_are_searched() -> None:
    """Only the two functions that stand in for kernels are left out."""
    for domain, name in (("onnxlr", "Other"), ("elsewhere", "TernaryMatMul")):
        weight = onnx.numpy_helper.from_array(normal(0, 20, 7), "w")
        body = [
            helper.make_node("Constant", [], ["w"], value=weight),
            helper.make_node("MatMul", ["x", "w"], ["y"], "inner"),
        ]
        opsets = [helper.make_opsetid("", 17)]
        function = helper.make_function(domain, name, ["x"], ["y"], body, opsets)
        graph = helper.make_graph(
            [helper.make_node(name, ["x"], ["y"], domain=domain)],
            "g",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, 20])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, 7])],
        )
        imports = [*opsets, helper.make_opsetid(domain, 1)]
        model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
        (layer,) = find_layers(open_model(model))
        assert (layer.name, layer.skip) == ("inner", None)


def test_a_rewritten_model_is_rewritten_again(tmp_path: Path) -> None:
    """What was left the first time is found the second time, at the same place."""
    x = normal(1, 3, 24)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], "second"),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"a": normal(0, 24, 32), "b": normal(1, 32, 16)})
    asked = {"method": "ternary", "target": "onnxlr", "isolate": False, "data": {"x": x}}
    options = {**asked, "tolerance": "cosine>=0.5", "activations": "float"}
    onnxlr.rewrite(model, tmp_path / "1.onnx", layers=["first"], **options)
    found = onnxlr.inspect(tmp_path / "1.onnx").layers
    assert [(layer.name, layer.skip) for layer in found] == [
        ("first.TernaryMatMul", REASON),
        ("second", None),
    ]
    again = onnxlr.rewrite(tmp_path / "1.onnx", tmp_path / "2.onnx", **options)
    assert again.report is not None
    assert again.report.passed
    found = onnxlr.inspect(tmp_path / "2.onnx").layers
    assert [layer.skip for layer in found] == [REASON] * 2
    assert len(onnx.load(tmp_path / "2.onnx").functions) == 1
