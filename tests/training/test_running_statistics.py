"""Running means and variances, which the data moves."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training import TrainableModel


def test_a_batch_of_nan_leaves_running_statistics_as_they_are() -> None:
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [
            numpy_helper.from_array(np.full(2, value, np.float32), name)
            for name, value in (("scale", 1), ("bias", 0), ("mean", 3), ("var", 5))
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = TrainableModel(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    model.train()
    x = np.array([[np.nan, 1.0], [2.0, 5.0]], np.float32)
    model({"x": x})
    running = {name: value.numpy() for name, value in model.running.items()}
    # the second channel moves a tenth of the way to mean 3 and variance 4, the first stays
    np.testing.assert_allclose(running["mean"], [3.0, 3.0])
    np.testing.assert_allclose(running["var"], [5.0, 0.9 * 5 + 0.1 * 4], rtol=1e-6)
