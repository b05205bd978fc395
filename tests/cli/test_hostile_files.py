"""Crafted models at the command line: one sentence, an exit code, bounds, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.model.growth import check_functions
from tests.classifier import classifier, one_node
from tests.cli.hostile import COMMANDS, Answered, Damage, Refused, answered, run_alone
from tests.fixtures import save_external

__all__ = ["answered"]  # a fixture

# --- external data -------------------------------------------------------------------------------


def change_first(**entries: str) -> onnx.ModelProto:
    """Return the stored external model with some entries of its first tensor replaced."""
    model = onnx.load("m.onnx", load_external_data=False)
    tensor = model.graph.initializer[0]
    for key, value in entries.items():
        kept = [entry for entry in tensor.external_data if entry.key != key]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
        tensor.external_data.add(key=key, value=value)
    return model


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "/etc/passwd"}, "absolute path '/etc/passwd'"),
        ({"location": "../outside.bin"}, "leads out of the model's folder"),
        ({"location": "link.bin"}, "leads out of the model's folder"),
        ({"location": "."}, "no regular file"),
        ({"location": "none.bin"}, "No such file"),
        ({"offset": "99999999999999"}, "which has"),
        ({"offset": "-8"}, "expected a number of bytes"),
        ({"length": "1e3"}, "expected a number of bytes"),
        ({"length": "7"}, "states 7 bytes of external data"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_external_data_that_lies(
    refused: Refused, folder: Path, entries: dict[str, str], reason: str, command: list[str]
) -> None:
    save_external(classifier(), folder / "m.onnx")
    (folder.parent / "outside.bin").write_bytes(bytes(1 << 16))
    Path("link.bin").symlink_to("../outside.bin")
    Path("bad.onnx").write_bytes(change_first(**entries).SerializeToString())
    message = refused(command, 3, ["bad.onnx: tensor 'w1' (float 24×32) cannot be read"])
    assert reason in message


def test_external_data_behind_a_pipe(folder: Path) -> None:
    """Nobody would ever write to it."""
    save_external(classifier(), folder / "m.onnx")
    onnx.save(change_first(location="pipe"), "bad.onnx")
    os.mkfifo("pipe")
    for command in COMMANDS:
        assert "'pipe' is no regular file" in run_alone(command, 3)


def test_external_data_stated_twice(refused: Refused, folder: Path) -> None:
    save_external(classifier(), folder / "m.onnx")
    model = onnx.load("m.onnx", load_external_data=False)
    model.graph.initializer[0].external_data.add(key="offset", value="64")
    onnx.save(model, "bad.onnx")
    refused(["inspect", "bad.onnx"], 3, ["states 'offset' twice"])


def constant_outside(model: onnx.ModelProto) -> TensorProto:
    node = model.graph.node.add(op_type="Constant", output=["fuzz"])
    attribute = node.attribute.add(name="value", type=AttributeProto.TENSOR)
    return attribute.t


def sparse_outside(model: onnx.ModelProto) -> TensorProto:
    node = model.graph.node.add(op_type="Constant", output=["fuzz"])
    attribute = node.attribute.add(name="sparse_value", type=AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.dims.append(8)
    attribute.sparse_tensor.indices.CopyFrom(numpy_helper.from_array(np.array([1])))
    return attribute.sparse_tensor.values


def function_outside(model: onnx.ModelProto) -> TensorProto:
    inner = helper.make_node("Constant", [], ["y"])
    function = helper.make_function("d", "f", [], ["y"], [inner], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    attribute = model.functions[0].node[0].attribute.add(name="value", type=AttributeProto.TENSOR)
    return attribute.t


@pytest.mark.parametrize("place", [constant_outside, sparse_outside, function_outside])
@pytest.mark.parametrize("location", ["../../escaped", "/dev/zero"])
def test_external_data_elsewhere_than_in_initializers(
    refused: Refused, place: Callable[[onnx.ModelProto], TensorProto], location: str
) -> None:
    """A copy of the model would copy such files, too: to places named in it."""
    model = classifier()
    tensor = place(model)
    tensor.name, tensor.data_type, tensor.data_location = "t", TensorProto.FLOAT, 1
    tensor.dims.append(1)
    tensor.external_data.add(key="location", value=location)
    Path("bad.onnx").write_bytes(model.SerializeToString())
    refused(["rewrite", "bad.onnx", "--method", "keep"], 3, ["tensor 't'", "cannot be read"])


# --- sizes ---------------------------------------------------------------------------------------

HUGE = [
    [2**32, 2**32],
    [2**62, 4],
    [2**20, 2**20],
    [10**6, 10**6, 10**6],
    [0, 2**62, 2**62],
    [-1, 4],
]


def huge_initializer(model: onnx.ModelProto, dims: list[int]) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = dims


def huge_constant(model: onnx.ModelProto, dims: list[int]) -> None:
    tensor = TensorProto(name="w1", data_type=TensorProto.FLOAT, dims=dims)
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=tensor))


def huge_sparse(model: onnx.ModelProto, dims: list[int]) -> None:
    values = TensorProto(name="w1", data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0])
    indices = TensorProto(data_type=TensorProto.INT64, dims=[1], int64_data=[5])
    del model.graph.initializer[0]
    model.graph.sparse_initializer.add(values=values, indices=indices, dims=dims)


def huge_sparse_indices(model: onnx.ModelProto, dims: list[int]) -> None:
    huge_sparse(model, [24, 32])
    model.graph.sparse_initializer[0].indices.dims[:] = dims


@pytest.mark.parametrize("dims", HUGE, ids=str)
@pytest.mark.parametrize("where", [huge_initializer, huge_constant, huge_sparse_indices])
def test_dimensions_that_claim_what_is_not_there(
    refused: Refused,
    folder: Path,
    where: Callable[[onnx.ModelProto, list[int]], None],
    dims: list[int],
) -> None:
    model = classifier()
    where(model, dims)
    Path("bad.onnx").write_bytes(model.SerializeToString())
    refused(["inspect", "bad.onnx"], 3, ["cannot be read"])
    refused(["rewrite", "bad.onnx", "--method", "svd", "--rank", "2"], 3, ["cannot be read"])


@pytest.mark.parametrize("dims", HUGE, ids=str)
def test_a_sparse_tensor_of_any_size_is_left_alone(answered: Answered, dims: list[int]) -> None:
    """Nothing makes it dense."""
    model = classifier()
    huge_sparse(model, dims)
    answered(model)


@pytest.mark.parametrize("dims", [*HUGE[:4], [2**40, 24], ["N", 2**50]], ids=str)
def test_inputs_that_claim_terabytes(refused: Refused, folder: Path, dims: list[int]) -> None:
    """Random inputs are not even tried."""
    value = TensorProto.FLOAT, dims
    model = one_node("Relu", [("x", *value)], [("y", *value)])
    Path("bad.onnx").write_bytes(model.SerializeToString())
    refused(["verify", "bad.onnx", "bad.onnx"], 2, ["bad.onnx", "random values", "--data"])


def test_claims_are_refused_in_little_memory(folder: Path) -> None:
    """Above what the libraries take by themselves, there is no room for what is claimed."""
    model = classifier()
    huge_initializer(model, [2**17, 2**18])
    Path("bad.onnx").write_bytes(model.SerializeToString())
    assert "cannot be read" in run_alone(["inspect", "bad.onnx"], 3, memory=4 << 30)


def test_values_of_shapes_that_double_and_double(folder: Path) -> None:
    """Shape inference would follow them into 2^60 numbers."""
    nodes = [
        helper.make_node("Concat", [f"s{i}", f"s{i}"], [f"s{i + 1}"], axis=0) for i in range(60)
    ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(np.array([2]), "s0"),
            numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "bad.onnx")
    assert "layer" in run_alone(["inspect", "bad.onnx"], 0, memory=4 << 30)


def test_ranks_that_double_and_double(folder: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["x" if i == 0 else f"g{i - 1}"] * 2, [f"g{i}"])
        for i in range(60)
    ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["z", "w"], ["y"], "layer")],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.INT64, [2, 2, 2]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "bad.onnx")
    assert "layer" in run_alone(["inspect", "bad.onnx"], 0, memory=4 << 30)


# --- shapes of graphs ----------------------------------------------------------------------------


def nested(levels: int) -> onnx.ModelProto:
    """Return a model of graphs within graphs, made by hand: helpers would copy each level."""
    model = classifier()
    graph = model.graph
    for level in range(levels):
        node = graph.node.add(op_type="If", input=["c"], output=[f"o{level}"], name=f"if{level}")
        node.attribute.add(name="then_branch", type=AttributeProto.GRAPH)
        graph = node.attribute[0].g
        graph.name = f"level {level}"
        graph.output.add(name=f"o{level}")
    graph.node.add(op_type="Relu", input=["x"], output=[f"o{levels - 1}"])
    return model


@pytest.mark.parametrize("levels", [40, 100, 1000])
def test_graphs_nested_deep(refused: Refused, folder: Path, levels: int) -> None:
    Path("bad.onnx").write_bytes(nested(levels).SerializeToString())
    for command in COMMANDS:
        refused(command, 3, ["bad.onnx", "nested more than 100 messages deep"])


def test_graphs_as_deep_as_protobuf_reads(
    answered: Answered,
) -> None:
    answered(nested(30))


def test_types_nested_deep(refused: Refused, folder: Path) -> None:
    model = classifier()
    kind = model.graph.input.add(name="s").type
    for _ in range(1000):
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = 1
    Path("bad.onnx").write_bytes(model.SerializeToString())
    refused(["inspect", "bad.onnx"], 3, ["nested more than 100 messages deep"])


def cycle_of_two(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "b"


def cycle_of_one(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = model.graph.node[1].output[0]


def cycle_on_the_way_to_a_weight(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "t"
    model.graph.node.add(op_type="Transpose", input=["u"], output=["t"])
    model.graph.node.add(op_type="Transpose", input=["t"], output=["u"])


def cycle_in_a_branch(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="If", input=["c"], output=["o"])
    for name in ("then_branch", "else_branch"):
        branch = node.attribute.add(name=name, type=AttributeProto.GRAPH).g
        branch.name = name
        branch.node.add(op_type="Relu", input=["p"], output=["q"])
        branch.node.add(op_type="Relu", input=["q"], output=["p"])
        branch.output.add(name="p")


@pytest.mark.parametrize(
    "cycle", [cycle_of_one, cycle_of_two, cycle_on_the_way_to_a_weight, cycle_in_a_branch]
)
def test_cyclic_graphs(refused: Refused, folder: Path, cycle: Damage) -> None:
    model = classifier()
    cycle(model)
    Path("bad.onnx").write_bytes(model.SerializeToString())
    for command in COMMANDS:
        refused(command, 3, ["bad.onnx: fails ONNX's checker"])


def calling(count: int, times: int, cyclic: bool = False) -> onnx.ModelProto:
    """Return a model of functions that each call the one before so many times."""
    model = classifier()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]
    model.opset_import.append(helper.make_opsetid("d", 1))
    for number in range(count):
        callee = number - 1 if number else count - 1
        nodes = [
            helper.make_node(f"f{callee}", [f"t{i}"], [f"t{i + 1}"], domain="d")
            for i in range(times)
        ]
        if not number and not cyclic:
            nodes = [helper.make_node("Relu", ["t0"], [f"t{times}"])]
        model.functions.append(
            helper.make_function("d", f"f{number}", ["t0"], [f"t{times}"], nodes, opsets)
        )
    model.graph.node.add(op_type=f"f{count - 1}", domain="d", input=["x"], output=["called"])
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (calling(40, 2), "written out where they are called, make"),
        (calling(2000, 1), "call each other more than 100 deep"),
        (calling(1, 1, cyclic=True), "calls itself"),
        (calling(3, 2, cyclic=True), "calls itself"),
    ],
    ids=["doubling", "long chain", "itself", "in a circle"],
)
def test_functions_without_end(refused: Refused, model: onnx.ModelProto, reason: str) -> None:
    Path("bad.onnx").write_bytes(model.SerializeToString())
    for command in COMMANDS:
        refused(command, 3, ["bad.onnx", reason])


def test_functions_whose_calls_are_counted_from_the_middle() -> None:
    """Each of the graph's calls goes 90 deep, to a function that was counted before."""
    model = calling(300, 1)
    del model.graph.node[-1]
    for number in (89, 179, 269):
        model.graph.node.add(op_type=f"f{number}", domain="d", input=["x"], output=[f"c{number}"])
    with pytest.raises(onnxlr.ModelError, match="call each other more than 100 deep"):
        check_functions(model)
