"""Inputs made up from a model's signature."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.calibration import random_feeds, random_inputs, signature
from onnxlr.calibration.random_inputs import SIZES
from onnxlr.errors import DataError, UsageError
from onnxlr.runtime import Job, run_job, store_arrays
from tests.classifier import BOOL, FEATURES, FLOAT, INT64, STRING, classifier, one_node

Values = list[tuple[str, int, list[Any] | None]]


def first(model: onnx.ModelProto, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return the feeds of the first attempt."""
    _, feeds = next(random_feeds(onnxlr.open(model), seed))
    return [dict(feed) for feed in feeds]


def takes(*inputs: tuple[str, int, list[Any] | None]) -> onnx.ModelProto:
    """Return a model that passes its inputs on."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, *_ in inputs]
    graph = helper.make_graph(
        nodes,
        "passes_on",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(f"{n}_out", k, s) for n, k, s in inputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_floats_are_standard_normal() -> None:
    values = np.concatenate([f["x"].ravel() for f in first(takes(("x", FLOAT, [100, 100])))])
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.UINT8, BOOL]
)
def test_types_are_those_of_the_inputs(kind: int) -> None:
    (feed, *_) = first(takes(("x", int(kind), [2, 3])))
    assert feed["x"].dtype == helper.tensor_dtype_to_np_dtype(kind)
    assert feed["x"].shape == (2, 3)


def test_the_seed_decides() -> None:
    one, same, other = (first(classifier(), seed) for seed in (5, 5, 6))
    for a, b, c in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])
        assert not np.array_equal(a["x"], c["x"])
    assert not np.array_equal(one[0]["x"], one[1]["x"])


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="seed -1 is negative"):
        first(classifier(), -1)


def embedding(rows: int, through: list[str]) -> onnx.ModelProto:
    """Return a model that looks ids up in a table, behind other operators and with a mask."""
    nodes, name = [], "ids"
    for position, operator in enumerate(through):
        extra = {"Cast": {"to": INT64}}.get(operator, {})
        inputs = [name, "axis"] if operator == "Unsqueeze" else [name]
        nodes.append(helper.make_node(operator, inputs, [f"step{position}"], **extra))
        name = f"step{position}"
    nodes.append(helper.make_node("Gather", ["table", name], ["out"]))
    nodes.append(helper.make_node("Identity", ["attention_mask"], ["mask_out"]))
    graph = helper.make_graph(
        nodes,
        "embedding",
        [
            helper.make_tensor_value_info("ids", INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("attention_mask", INT64, ["batch", "sequence"]),
        ],
        [
            helper.make_tensor_value_info("out", FLOAT, None),
            helper.make_tensor_value_info("mask_out", INT64, ["batch", "sequence"]),
        ],
        [
            numpy_helper.from_array(np.zeros((rows, 4), np.float32), "table"),
            numpy_helper.from_array(np.array([0]), "axis"),
        ],
    )
    for value in graph.output:
        value.type.tensor_type.shape.SetInParent()
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("through", [[], ["Identity"], ["Cast", "Unsqueeze"]])
def test_ids_are_within_the_table(rows: int, through: list[str]) -> None:
    model = embedding(rows, through)
    del model.graph.output[0]  # of no known rank, which the checker would refuse
    ids = np.concatenate([feed["ids"].ravel() for feed in first(model)])
    assert ids.min() >= 0
    assert ids.max() < rows
    assert ids.max() > 1 or rows <= 7  # not merely zeros and ones


def test_the_smallest_of_several_tables_counts() -> None:
    model = embedding(1000, [])
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 5), np.float32), "small"))
    model.graph.node.insert(0, helper.make_node("Gather", ["small", "ids"], ["other"]))
    del model.graph.output[0]
    ids = np.concatenate([feed["ids"].ravel() for feed in first(model)])
    assert set(ids) == {0, 1, 2}


def test_a_table_along_another_axis() -> None:
    table = np.zeros((9, 5), np.float32)
    model = one_node(
        "Gather", [("ids", INT64, [40])], [("y", FLOAT, [9, 40])], {"t": table}, axis=1
    )
    node = model.graph.node[0]
    node.input[:] = ["t", "ids"]
    ids = np.concatenate([feed["ids"] for feed in first(model)])
    assert set(ids) == {0, 1, 2, 3, 4}


def test_masks_are_ones_with_a_tail_of_zeros() -> None:
    model = embedding(10, [])
    del model.graph.output[0]
    masks = [feed["attention_mask"] for feed in first(model)]
    assert all(mask.shape == (2, SIZES[0]) for mask in masks)
    for row in np.concatenate(masks):
        length = int(row.sum())
        assert length >= len(row) // 2
        np.testing.assert_array_equal(row, np.arange(len(row)) < length)
    assert all(mask[0].all() for mask in masks)
    assert any(not mask[1].all() for mask in masks)


def test_other_integers_are_zero_or_one() -> None:
    values = np.concatenate([f["x"].ravel() for f in first(takes(("x", INT64, [50, 4])))])
    assert set(values) == {0, 1}


def test_open_dimensions_get_sizes_until_the_model_runs() -> None:
    model = onnxlr.open(takes(("x", FLOAT, ["batch", 3, "height", None])))
    shapes = [feeds[0]["x"].shape for _, feeds in random_feeds(model, 0)]
    assert shapes == [(batch, 3, size, size) for size in SIZES for batch in (2, 1)]


def test_a_dimension_called_batch_is_one_wherever_it_stands() -> None:
    (feed, *_) = first(takes(("x", FLOAT, ["time", "batch", 4])))
    assert feed["x"].shape == (2, 2, 4)


def test_fixed_dimensions_are_tried_once() -> None:
    attempts = list(random_feeds(onnxlr.open(takes(("x", FLOAT, [3, 5]))), 1))
    assert [feeds[0]["x"].shape for _, feeds in attempts] == [(3, 5)]
    assert attempts[0][0] == "3 random runs, seed 1: x [3, 5]"


def test_sizes_that_would_fill_the_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnxlr.open(takes(("x", FLOAT, ["n", None, None])))
    monkeypatch.setattr(random_inputs, "_MOST_ENTRIES", 100**2)
    shapes = {feeds[0]["x"].shape for _, feeds in random_feeds(model, 0)}
    small = {(b, s, s) for s in SIZES for b in (2, 1) if b * s * s <= 100**2}
    assert shapes == small
    assert len(small) < 2 * len(SIZES)


def test_a_negative_dimension_is_an_open_one() -> None:
    model = takes(("x", FLOAT, [-1, FEATURES]))
    assert signature(onnxlr.open(model))[0].dims == (None, FEATURES)
    assert first(model)[0]["x"].shape == (2, FEATURES)


def test_initializers_of_ir_3_are_not_fed() -> None:
    model = classifier(ir_version=3, opset=9)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    onnx.checker.check_model(model)
    assert [spec.name for spec in signature(onnxlr.open(model))] == ["x"]
    assert [list(feed) for feed in first(model)] == [["x"]] * 3


def test_a_model_without_inputs() -> None:
    model = takes(("x", FLOAT, [1]))
    del model.graph.input[:]
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "x"))
    assert first(model) == [{}, {}, {}]


@pytest.mark.parametrize("kind", ["string", "sequence"])
def test_what_cannot_be_made_up(kind: str) -> None:
    model = takes(("x", STRING if kind == "string" else FLOAT, ["N"]))
    if kind == "sequence":
        for value in (model.graph.input[0], model.graph.output[0]):
            sequence = helper.make_tensor_sequence_value_info(value.name, FLOAT, None)
            value.CopyFrom(sequence)
    with pytest.raises(DataError, match=r"no random values can be made for input 'x'.*--data"):
        first(model)


def test_they_run(tmp_path: Any) -> None:
    onnx.save(classifier(), tmp_path / "m.onnx")
    files = []
    for position, feed in enumerate(first(classifier())):
        files.append(str(tmp_path / f"{position}.npz"))
        store_arrays(tmp_path / f"{position}.npz", feed)
    outcome = run_job(
        Job(str(tmp_path / "m.onnx"), files, str(tmp_path / "results")), "m", isolate=False
    )
    assert outcome.outputs == ("logits",)
