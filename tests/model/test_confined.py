"""Shape inference takes no more memory than a model is worth, whatever sizes a file states."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxlr.model import open_model
from onnxlr.model.confined import confined
from tests.cli.conftest import folder
from tests.cli.hostile import run_alone

__all__ = ["folder"]  # a fixture

INT64 = TensorProto.INT64


def integers(name: str, dims: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, INT64, dims)


def followed_by_a_layer(
    node: onnx.NodeProto, inputs: list[onnx.ValueInfoProto], constants: dict[str, Any]
) -> onnx.ModelProto:
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    values = {name: np.array(value) for name, value in constants.items()}
    graph = helper.make_graph(
        [node, helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        "g",
        [data, *inputs],
        [result],
        [
            numpy_helper.from_array(value, name)
            for name, value in (values | {"w": np.eye(4, dtype=np.float32)}).items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


SUM = helper.make_node("Add", ["a", "b"], ["s"])
TAKEN = helper.make_node("Gather", ["a", "at"], ["s"], axis=0)
SHAPED = helper.make_node("Reshape", ["x", "b"], ["s"])
PARTS = helper.make_node("Split", ["a"], ["s"], num_outputs=2**31 - 1)
CASES = {
    "sums of values that are not there": (SUM, [integers("a", []), integers("b", [2**62])], {}),
    "one of values that are not there": (TAKEN, [integers("a", [2**31])], {"at": 2**40}),
    "a shape of as many dimensions": (SHAPED, [integers("b", [2**40])], {}),
    "two thousand million parts": (PARTS, [integers("a", [1])], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_shapes_could_be_is_not_listed_without_end(folder: Path, case: str) -> None:
    onnx.save(followed_by_a_layer(*CASES[case]), "bad.onnx")
    assert "layer" in run_alone(["inspect", "bad.onnx"], 0, memory=6 << 30)


STFT = helper.make_node("STFT", ["signal", "step", "window"], ["s"])
ODD = {
    equation: helper.make_node("Einsum", ["x", "a"], ["s"], equation=equation)
    for equation in (b"\xff", b"....", b"ij,\xff", b"i\xff,->", b"ij,1->i")
}


@pytest.mark.parametrize("equation", ODD, ids=repr)
def test_equations_that_are_none(folder: Path, equation: bytes) -> None:
    """Shape inference of ONNX goes round and round on some of them."""
    onnx.save(followed_by_a_layer(ODD[equation], [integers("a", [])], {}), "bad.onnx")
    assert "layer" in run_alone(["inspect", "bad.onnx"], 0)


@pytest.mark.parametrize("equation", ["ij,jk->ik", "...j, jk -> ...k", "ij,jk", "ij, jk->"])
def test_shapes_behind_equations_are_inferred(equation: str) -> None:
    node = helper.make_node("Einsum", ["x", "v"], ["s"], equation=equation)
    model = followed_by_a_layer(node, [], {"v": np.ones((4, 4), np.float32)})
    assert "s" in open_model(model).types


def test_shape_inference_that_fails_in_its_own_way() -> None:
    """Of a step that is no number, ONNX takes the first one all the same."""
    inputs = [
        helper.make_tensor_value_info("signal", TensorProto.FLOAT, [3, 3, 3]),
        helper.make_tensor_value_info("window", TensorProto.FLOAT, [3, 3, 2, 4]),
    ]
    model = followed_by_a_layer(STFT, inputs, {"step": np.array([], np.int64)})
    assert open_model(model).types["x"].dims == ("n", 4)


def test_sizes_that_are_usual_are_inferred() -> None:
    model = followed_by_a_layer(SUM, [integers("a", []), integers("b", [1000])], {})
    known = open_model(model).types["s"]
    assert known.dims == (1000,)


def test_the_bound_is_lifted_again() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with confined(1 << 30):
        assert 0 < resource.getrlimit(resource.RLIMIT_AS)[0] < 1 << 42
        with pytest.raises(MemoryError):
            np.zeros(2 << 30, np.uint8)
        np.zeros(1 << 20, np.uint8)
        inside = resource.getrlimit(resource.RLIMIT_AS)
        with confined(1 << 40):  # no wider than it was
            assert resource.getrlimit(resource.RLIMIT_AS) == inside
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    with pytest.raises(KeyError), confined(1 << 30):
        raise KeyError
    assert resource.getrlimit(resource.RLIMIT_AS) == before
