"""What held-out data is judged by, against means by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training import TrainableModel  # noqa: E402
from onnxlr.training.judging import mean_over, tensors_of  # noqa: E402


def doubled(kind: int) -> TrainableModel:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["f", "f"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return TrainableModel(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def mean(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    return (outputs["y"] * batch["by"]).mean()


@pytest.mark.parametrize(
    "dtype", [np.float32, np.uint16, np.uint32, np.uint64, np.int8, ml_dtypes.bfloat16]
)
def test_batches_count_by_their_samples_whatever_type_they_have(dtype: Any) -> None:
    x = np.arange(10).astype(dtype)
    by = np.linspace(0, 1, 10)
    text = np.array(list("abcdefghij"))
    held = [{"x": x[a:b], "by": by[a:b], "text": text[a:b]} for a, b in ((0, 7), (7, 10))]
    model = doubled(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    model.train()
    found = mean_over(model, held, mean, "cpu")
    assert found == pytest.approx(float((2 * np.arange(10) * by).mean()))
    assert model.training


def test_texts_are_no_tensors() -> None:
    assert tensors_of({"text": np.array(["a", "b"])}, "cpu") == {}
