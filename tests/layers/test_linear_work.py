"""Twice the nodes are twice the work, whatever the graph looks like; counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.model import open_model
from onnxlr.model.growth import Growth
from onnxlr.model.names import Names
from onnxlr.model.shapes import infer_types

Node = onnx.NodeProto


def matrix(name: str) -> TensorProto:
    return numpy_helper.from_array(np.eye(4, dtype=np.float32), name)


def multiply(number: int, weight: str, name: str | None = None) -> Node:
    source = f"t{number - 1}" if number else "x"
    label = name if name is not None else f"n{number}"
    return helper.make_node("MatMul", [source, weight], [f"t{number}"], label)


def without_layers(count: int) -> Iterator[Node | TensorProto]:
    for i in range(count):
        yield helper.make_node("Relu", [f"t{i - 1}" if i else "x"], [f"t{i}"])


def many_layers(count: int) -> Iterator[Node | TensorProto]:
    for i in range(count):
        yield matrix(f"w{i}")
        yield multiply(i, f"w{i}")


def one_weight(count: int) -> Iterator[Node | TensorProto]:
    yield matrix("w")
    for i in range(count):
        yield multiply(i, "w")


def one_name(count: int) -> Iterator[Node | TensorProto]:
    for i in range(count):
        yield matrix(f"w{i}")
        yield multiply(i, f"w{i}", "the same")


def names_that_are_taken(count: int) -> Iterator[Node | TensorProto]:
    for i in range(count):
        yield matrix(f"w{i}")
        yield multiply(i, f"w{i}", "a" if i % 2 else f"a#{i}")


def constant_nodes(count: int) -> Iterator[Node | TensorProto]:
    for i in range(count):
        yield helper.make_node("Constant", [], [f"w{i}"], value=matrix(""))
        yield multiply(i, f"w{i}")


def one_moved_weight(count: int) -> Iterator[Node | TensorProto]:
    yield matrix("w")
    for i in range(count):
        yield helper.make_node("Transpose", ["w"], [f"w{i}"], perm=[1, 0])
        yield multiply(i, f"w{i}")


def a_chain_of_moves(count: int) -> Iterator[Node | TensorProto]:
    yield matrix("w0")
    for i in range(count):
        yield helper.make_node("Identity", [f"w{i}"], [f"w{i + 1}"])
        yield multiply(i, f"w{i + 1}")


def a_chain_of_scales(count: int) -> Iterator[Node | TensorProto]:
    yield matrix("w0")
    for i in range(count):
        yield helper.make_node("Mul", [f"w{i}", "w0"], [f"w{i + 1}"])
        yield multiply(i, f"w{i + 1}")


def a_chain_of_scales_read_backwards(count: int) -> Iterator[Node | TensorProto]:
    yield matrix("w0")
    for i in range(count):
        yield helper.make_node("Mul", [f"w{i}", "w0"], [f"w{i + 1}"])
    for i in range(count):
        yield multiply(i, f"w{count - i}")


def branches(count: int) -> Iterator[Node | TensorProto]:
    yield matrix("w")
    yield numpy_helper.from_array(np.array(True), "c")
    for i in range(count):
        value = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
        source = f"t{i - 1}" if i else "x"
        body = [helper.make_node("MatMul", [source, "w"], ["y"], f"inner{i}")]
        branch = helper.make_graph(body, "branch", [], [value])
        yield helper.make_node("If", ["c"], [f"t{i}"], then_branch=branch, else_branch=branch)


GRAPHS = [
    *(without_layers, many_layers, one_weight, one_name, names_that_are_taken, constant_nodes),
    *(one_moved_weight, a_chain_of_moves, a_chain_of_scales, a_chain_of_scales_read_backwards),
    branches,
]


def model_of(parts: Callable[[int], Iterator[Node | TensorProto]], count: int) -> bytes:
    graph = onnx.GraphProto(name="g")
    for part in parts(count):
        (graph.node if isinstance(part, Node) else graph.initializer).append(part)
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]))
    graph.output.append(helper.make_tensor_value_info(f"t{count - 1}", TensorProto.FLOAT, ["n", 4]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def work(act: Callable[[], object]) -> int:
    """Return how many functions are called, and how many lines of onnxlr are gone through."""
    steps = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return line if "onnxlr" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        act()
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("parts", GRAPHS)
def test_inspecting_is_linear(parts: Callable[[int], Iterator[Node | TensorProto]]) -> None:
    small, large = (model_of(parts, count) for count in (250, 1000))
    onnxlr.inspect(small)  # what is imported or cached once is no part of it
    first, second = work(lambda: onnxlr.inspect(small)), work(lambda: onnxlr.inspect(large))
    assert second < 4.6 * first


@pytest.mark.parametrize("parts", [many_layers, one_name, one_moved_weight])
def test_planning_is_linear(parts: Callable[[int], Iterator[Node | TensorProto]]) -> None:
    small, large = (model_of(parts, count) for count in (50, 200))

    def plan(model: bytes) -> object:
        return onnxlr.plan(model, method="svd", rank=1, isolate=False)

    plan(small)
    assert work(lambda: plan(large)) < 4.6 * work(lambda: plan(small))


def test_many_inputs_are_not_gone_through_for_each_weight() -> None:
    sizes = []
    for count in (100, 400):
        model = onnx.ModelProto.FromString(model_of(many_layers, count))
        for i in range(count):
            value = helper.make_tensor_value_info(f"unused{i}", TensorProto.FLOAT, [1])
            model.graph.input.append(value)
        content = model.SerializeToString()
        sizes.append(work(lambda content=content: find_layers(open_model(content))))
    assert sizes[1] < 4.6 * sizes[0]


def test_a_long_way_to_a_weight_is_refused_with_a_reason() -> None:
    layers = find_layers(open_model(model_of(a_chain_of_moves, 100)))
    usable = [layer for layer in layers if layer.skip is None]
    assert [len(layer.sites) for layer in usable] == [64]
    reasons = {layer.skip for layer in layers if layer.skip}
    assert reasons == {"its weight is moved about by more than 64 nodes: fold constants"}


def test_shapes_are_not_inferred_where_subgraphs_are_many() -> None:
    """ONNX copies what is around a subgraph for each of them."""
    model = onnx.ModelProto.FromString(model_of(branches, 30))
    assert infer_types(model)["t3"].dims == ("n", 4)
    assert Growth(model).visits == 30 * 2 * 30
    assert Growth(model).allows_shapes
    many = onnx.ModelProto.FromString(model_of(branches, 2500))
    assert not Growth(many).allows_shapes
    assert infer_types(many).keys() == {"x", "t2499", "w", "c"}


def test_trials_of_names_copy_nothing() -> None:
    names = Names(onnx.ModelProto())
    for i in range(50):
        names.new(f"n{i}")
    first = names.trial()
    assert [first.new("n3"), first.new("n3"), first.new("other")] == ["n3.2", "n3.3", "other"]
    second = first.trial()
    assert [second.new("n3"), second.new("other")] == ["n3.4", "other.2"]
    assert [names.new("n3"), names.new("other")] == ["n3.2", "other"]
    small, large = work(lambda: names.trial().new("a")), 0
    for i in range(1000):
        names.new(f"m{i}")
    large = work(lambda: names.trial().new("a"))
    assert large == small


@pytest.mark.slow
@pytest.mark.parametrize("parts", [without_layers, one_weight, one_name])
def test_a_hundred_thousand_nodes(parts: Callable[[int], Iterator[Node | TensorProto]]) -> None:
    count = 50_000 if parts is one_name else 100_000
    found = onnxlr.inspect(model_of(parts, count))
    assert len(found.layers) == {without_layers: 0, one_weight: 1, one_name: count}[parts]
