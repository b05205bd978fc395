"""Graphs as calls: constants, functions, subgraphs, and when a tensor is used for the last time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import ModelError
from onnxlr.model import open_model
from onnxlr.operators import TernaryMatMul, add_functions, make_node
from onnxlr.training import program as module
from onnxlr.training.program import Program
from tests.fixtures import runnable_model

FLOAT = TensorProto.FLOAT


def compiled(proto: onnx.ModelProto) -> Program:
    return module.compile_program(open_model(proto))


def model_of(*nodes: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(list(nodes), "g", [value("x", FLOAT, [2])], [value("y", FLOAT, [2])])
    imports = [helper.make_opsetid("ai.onnx", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_constants_of_all_kinds() -> None:
    tensor = numpy_helper.from_array(np.int8([3, 4]))
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensor),
        helper.make_node("Constant", [], ["b"], value_float=1.5),
        helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["d"], value_int=7),
        helper.make_node("Constant", [], ["e"], value_ints=[5]),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    found = compiled(model_of(*nodes))
    assert [call.operator for call in found.calls] == ["Add"]
    assert found.inputs == ("x",)
    kinds = {name: (array.dtype.name, array.shape) for name, array in found.constants.items()}
    assert kinds == {
        "a": ("int8", (2,)),
        "b": ("float32", ()),
        "c": ("float32", (2,)),
        "d": ("int64", ()),
        "e": ("int64", (1,)),
    }
    (call,) = found.calls
    assert (call.domain, call.version, call.kinds) == ("", 17, (FLOAT, FLOAT))
    assert call.label == "Add of 'y'"


def test_texts_are_no_numbers() -> None:
    nodes = [
        helper.make_node("Constant", [], ["a"], value_string=b"text"),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    with pytest.raises(ModelError, match="Constant 'a' has value_string, expected numbers"):
        compiled(model_of(*nodes))


def test_functions_are_inlined() -> None:
    found = compiled(runnable_model())
    assert not [call for call in found.all_calls() if call.domain]
    branch = next(call for call in found.calls if call.operator == "If")
    assert sorted(branch.programs) == ["else_branch", "then_branch"]
    assert set(branch.programs["then_branch"].constants) == {"inner.C"}
    assert {"condition", "captured.W", "k"} <= set(branch.reads())


def test_ternary_functions_are_left_as_operators() -> None:
    ternary = np.ones((1, 4, 3), np.int8)
    ones = np.ones(4, np.float32)
    weights = TernaryMatMul(ternary, np.ones((1, 1, 3), np.float32), ones, ones[:3], 4, 0)
    node, constants = make_node(weights, "x", "y", "ternary")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", FLOAT, [2, 4])], [value("y", FLOAT, [2, 3])], constants
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("onnxlr", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    add_functions(proto)
    assert [call.kind for call in compiled(proto).calls] == ["onnxlr.TernaryMatMul"]


def test_every_tensor_is_used_for_the_last_time_once() -> None:
    found = compiled(runnable_model())
    over = [name for names in found.last_uses for name in names]
    assert len(over) == len(set(over))
    for place, names in enumerate(found.last_uses):
        later = [name for call in found.calls[place + 1 :] for name in call.reads()]
        assert set(names).isdisjoint(later)
    used = {name for call in found.calls for name in call.reads()} - {""}
    assert used <= set(over)


def test_sparse_initializers_are_refused() -> None:
    proto = model_of(helper.make_node("Add", ["x", "s"], ["y"]))
    values = numpy_helper.from_array(np.float32([1]), "s")
    places = numpy_helper.from_array(np.array([1]), "s.places")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2]))
    with pytest.raises(ModelError, match="sparse initializers cannot be trained"):
        compiled(proto)
