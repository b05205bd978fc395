"""Captured inputs of layers, against what ONNX Runtime hands out and numpy computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxlr.errors import RuntimeFailureError
from onnxlr.layers import find_layers
from onnxlr.model import open_model
from onnxlr.planning.auto.inputs import Inputs, capture
from onnxlr.runtime import read_arrays, store_arrays
from tests.onelayer import Array, model_of

TABLE, FIRST, SECOND, THIRD = "table", "first", "second", "third"


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CONSTANTS = {"t": normal(20, 12), "a": normal(12, 7), "b": normal(12, 9), "c": normal(7, 5)}


def network(indices: type = np.int64) -> onnx.ModelProto:
    """Return a table, two products of its rows, and a third behind the first of them."""
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["x"], TABLE),
        helper.make_node("MatMul", ["x", "a"], ["p"], FIRST),
        helper.make_node("MatMul", ["x", "b"], ["q"], SECOND),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["s"], THIRD),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(indices))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", kind, ("batch", "length"))],
        [
            helper.make_tensor_value_info(n, 1, (None, None, size))
            for n, size in (("q", 9), ("s", 5))
        ],
        [onnx.numpy_helper.from_array(values, name) for name, values in CONSTANTS.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def captured(
    model: onnx.ModelProto, feeds: list[dict[str, Array]], folder: Path, **options: Any
) -> dict[str, Inputs]:
    files = []
    for number, feed in enumerate(feeds):
        files.append(str(folder / f"feed{number}.npz"))
        store_arrays(Path(files[-1]), feed)
    opened = open_model(model)
    (folder / "inputs").mkdir(exist_ok=True)
    options = {"isolate": False, **options}
    return capture(opened, find_layers(opened), files, folder / "inputs", **options)


IDS = [{"ids": np.array([[3, 1, 4], [1, 5, 9]])}, {"ids": np.array([[2, 6]])}]


@pytest.mark.parametrize("isolate", [True, False])
def test_every_layer_gets_what_it_takes_in_each_run(tmp_path: Path, isolate: bool) -> None:
    found = captured(network(), IDS, tmp_path, isolate=isolate)
    assert found.keys() == {TABLE, FIRST, SECOND, THIRD}
    rows = [CONSTANTS["t"][feed["ids"]] for feed in IDS]
    expected = {
        TABLE: ("ids", [feed["ids"] for feed in IDS]),
        FIRST: ("x", rows),
        SECOND: ("x", rows),
        THIRD: ("r", [np.maximum(x @ CONSTANTS["a"], 0) for x in rows]),
    }
    for name, (tensor, arrays) in expected.items():
        assert found[name].missing is None
        assert found[name].data.shapes == tuple(array.shape for array in arrays)
        assert found[name].data.dtype == arrays[0].dtype
        for file, array in zip(found[name].files, arrays, strict=True):
            stored = read_arrays(Path(file))
            assert [*stored] == [tensor]
            np.testing.assert_allclose(stored[tensor], array, rtol=1e-5, atol=1e-6)


def test_layers_that_take_one_tensor_share_its_files(tmp_path: Path) -> None:
    found = captured(network(), IDS, tmp_path)
    assert found[FIRST] == found[SECOND]
    assert len({file for inputs in found.values() for file in inputs.files}) == 3 * len(IDS)


def test_the_type_of_indices_is_the_models(tmp_path: Path) -> None:
    found = captured(network(np.int32), [{"ids": np.ones((1, 2), np.int32)}], tmp_path)
    assert found[TABLE].data.dtype == np.int32


def test_content_tells_inputs_apart(tmp_path: Path) -> None:
    first = captured(network(), IDS, tmp_path)
    same = captured(network(), IDS, tmp_path)
    other = captured(network(), [IDS[0], {"ids": np.array([[2, 7]])}], tmp_path)
    assert {n: i.content for n, i in first.items()} == {n: i.content for n, i in same.items()}
    assert all(first[name].content != other[name].content for name in first)
    turned = captured(network(), [{"ids": IDS[0]["ids"].reshape(3, 2)}], tmp_path)
    plain = captured(network(), IDS[:1], tmp_path)
    assert plain[TABLE].content != turned[TABLE].content


def test_what_is_too_large_is_left_out_and_said_so(tmp_path: Path) -> None:
    """The rows take 8 × 12 × 4 bytes in both runs together, what is behind them 8 × 7 × 4."""
    found = captured(network(), IDS, tmp_path, limit=383)
    assert found[FIRST].files == ()
    assert found[FIRST].data is None
    assert "384 bytes" in found[FIRST].missing
    assert found[THIRD].missing is None
    left = {file for inputs in found.values() for file in inputs.files}
    assert {str(file) for file in (tmp_path / "inputs").glob("*.npz")} == left
    assert captured(network(), IDS, tmp_path, limit=384)[FIRST].missing is None


def test_without_data_nothing_is_known(tmp_path: Path) -> None:
    found = captured(network(), [], tmp_path)
    assert all("no calibration data" in inputs.missing for inputs in found.values())


def test_layers_that_are_skipped_are_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], FIRST),
        helper.make_node("MatMul", ["y", "z"], ["u"], SECOND),
    ]
    inputs = {"x": normal(2, 5), "z": normal(4, 3)}
    model = model_of(nodes, inputs, ["u"], {"w": normal(5, 4)})
    assert captured(model, [inputs], tmp_path).keys() == {FIRST}


def branching() -> onnx.ModelProto:
    """Return a product in one branch, and rows of a table in the other."""
    graphs = [
        helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, 1, None)])
        for name, node in {
            "then": helper.make_node("MatMul", ["x", "a"], ["then"], FIRST),
            "else": helper.make_node("Gather", ["t", "ids"], ["else"], TABLE),
        }.items()
    ]
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=graphs[0], else_branch=graphs[1])
    inputs = {"x": normal(3, 12), "ids": np.zeros(3, np.int64), "c": np.array(True)}
    return model_of([node], inputs, ["y"], {name: CONSTANTS[name] for name in "at"})


def test_branches_are_seen_when_they_are_taken(tmp_path: Path) -> None:
    feeds = [
        {"x": normal(3, 12, seed=n), "ids": np.zeros(3, np.int64), "c": np.array(n == 1)}
        for n in range(2)
    ]
    found = captured(branching(), feeds, tmp_path)
    (file,) = found[FIRST].files
    np.testing.assert_array_equal(read_arrays(Path(file))["x"], feeds[1]["x"])
    assert "in a branch" in found[TABLE].missing
    never = captured(branching(), feeds[:1], tmp_path)
    assert "no run" in never[FIRST].missing


def test_layers_of_functions_are_not_seen(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17)]
    constant = helper.make_node(
        "Constant", [], ["w"], value=onnx.numpy_helper.from_array(CONSTANTS["a"])
    )
    product = helper.make_node("MatMul", ["x", "w"], ["y"], FIRST)
    body = helper.make_function("own", "Product", ["x"], ["y"], [constant, product], opsets)
    nodes = [
        helper.make_node("Product", ["x"], ["p"], domain="own"),
        helper.make_node("MatMul", ["p", "c"], ["y"], THIRD),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, (3, 12))],
        [helper.make_tensor_value_info("y", 1, (3, 5))],
        [onnx.numpy_helper.from_array(CONSTANTS["c"], "c")],
    )
    imports = [*opsets, helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=8)
    found = captured(model, [{"x": normal(3, 12)}], tmp_path)
    assert sorted(inputs.missing is None for inputs in found.values()) == [False, True]
    assert found[THIRD].missing is None
    reason = next(inputs.missing for inputs in found.values() if inputs.missing)
    assert "function" in reason


def test_a_model_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailureError):
        captured(network(), [{"ids": np.array([[99]])}], tmp_path)


def test_a_mask_leaves_rows_out_of_all_runs_but_the_timed_one(tmp_path: Path) -> None:
    proto = network()
    graph_input = helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, ("batch", "length"))
    proto.graph.input.append(graph_input)
    random = np.random.default_rng(1)
    files, kept = [], []
    for number in range(2):
        ids, mask = random.integers(0, 20, (3, 4)), np.tril(np.ones((3, 4), np.int64))
        store_arrays(tmp_path / f"{number}.npz", {"ids": ids, "mask": mask})
        files.append(str(tmp_path / f"{number}.npz"))
        kept.append((ids, mask))
    onnx.save(proto, tmp_path / "m.onnx")
    model = open_model(tmp_path / "m.onnx")
    layers = {layer.name: layer for layer in find_layers(model)}
    found = capture(model, [layers[FIRST]], files, tmp_path, isolate=False, mask="mask")[FIRST]
    timed, compared = (read_arrays(Path(file))["x"] for file in found.files)
    assert np.array_equal(timed, CONSTANTS["t"][kept[0][0]])
    ids, mask = kept[1]
    assert np.array_equal(compared, CONSTANTS["t"][ids[mask == 1]][None])
    alone = capture(model, [layers[FIRST]], files[:1], tmp_path, isolate=False, mask="mask")[FIRST]
    assert read_arrays(Path(alone.files[0]))["x"].shape == (1, 6, 12)
