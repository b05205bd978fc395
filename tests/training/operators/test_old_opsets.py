"""Attributes that became inputs, and axes that counted otherwise, beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.training import TrainableModel
from tests.onelayer import distance, run

X = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
IMAGE = np.random.default_rng(1).standard_normal((1, 2, 5, 6)).astype(np.float32)
ONES = np.ones(2, np.float32)
HALVES = np.float32([1, 1, 1.5, 2])

CASES: list[tuple[int, str, dict[str, Any], dict[str, Any]]] = [
    (9, "Softmax", {"axis": 1}, {}),
    (12, "Softmax", {}, {}),
    (13, "Softmax", {}, {}),
    (12, "LogSoftmax", {"axis": -1}, {}),
    (9, "Hardmax", {"axis": 1}, {}),
    (11, "Unsqueeze", {"axes": [0, 2]}, {}),
    (12, "Squeeze", {"axes": [0]}, {}),
    (9, "ReduceSum", {"axes": [1, 2]}, {}),
    (12, "ReduceSum", {"axes": [-1], "keepdims": 0}, {}),
    (13, "ReduceMean", {"axes": [1]}, {}),
    (18, "ReduceMean", {}, {"axes": np.array([1])}),
    (11, "ReduceL2", {}, {}),
    (13, "ReduceLogSumExp", {"axes": [2]}, {}),
    (9, "Slice", {"starts": [1, -9], "ends": [9, -2], "axes": [1, 2]}, {}),
    (9, "Slice", {"starts": [0, 1], "ends": [1, 3]}, {}),
    (
        11,
        "Slice",
        {},
        {
            "starts": np.array([-1, 0]),
            "ends": np.array([-99, 5]),
            "axes": np.array([1, -1]),
            "steps": np.array([-1, 2]),
        },
    ),
    (10, "Pad", {"pads": [0, 1, 2, 0, 0, 1], "value": 1.5}, {}),
    (10, "Pad", {"pads": [0, 1, 2, 0, 0, 1], "mode": "reflect"}, {}),
    (11, "Pad", {"mode": "edge"}, {"pads": np.array([1, 0, 2, 0, 3, 0])}),
    (6, "Clip", {"min": -0.5, "max": 0.25}, {}),
    (7, "Clip", {"max": 0.25}, {}),
    (8, "TopK", {"k": 3, "axis": 2}, {}),
    (10, "TopK", {"axis": 1}, {"k": np.array([2])}),
    (11, "Split", {"axis": 2, "split": [1, 5]}, {}),
    (13, "Split", {"axis": 2}, {"split": np.array([4, 2])}),
    (11, "Split", {"axis": 1}, {}),
    (7, "Dropout", {"ratio": 0.9}, {}),
    (12, "ArgMax", {"axis": 2, "select_last_index": 1}, {}),
    (11, "CumSum", {"reverse": 1, "exclusive": 1}, {"axis": np.array(1)}),
    (9, "Flatten", {"axis": 2}, {}),
    (8, "Expand", {}, {"shape": np.array([3, 1, 1, 6])}),
    (13, "Tile", {}, {"repeats": np.array([1, 2, 3])}),
    (17, "LpNormalization", {"p": 1, "axis": 1}, {}),
]
IMAGES: list[tuple[int, str, dict[str, Any], dict[str, Any]]] = [
    (7, "Upsample", {"scales": [1.0, 1.0, 2.0, 3.0]}, {}),
    (9, "Upsample", {"mode": "linear"}, {"scales": np.float32([1, 1, 2, 2])}),
    (10, "Resize", {}, {"scales": np.float32([1, 1, 2, 0.5])}),
    (10, "Resize", {"mode": "linear"}, {"scales": HALVES}),
    (11, "Resize", {"mode": "cubic"}, {"roi": np.float32([]), "scales": HALVES}),
    (
        13,
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        {"roi": np.float32([]), "scales": np.float32([]), "sizes": np.array([1, 2, 9, 4])},
    ),
    (
        13,
        "Resize",
        {
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "mode": "linear",
            "extrapolation_value": 7.0,
        },
        {"roi": np.float32([0, 0, 0.1, -0.5, 1, 1, 0.9, 1.2]), "scales": np.float32([1, 1, 3, 2])},
    ),
    (
        18,
        "Resize",
        {"mode": "linear", "antialias": 1},
        {"roi": np.float32([]), "scales": np.float32([1, 1, 0.6, 0.5])},
    ),
    (7, "AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}, {}),
    (10, "AveragePool", {"kernel_shape": [3, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, {}),
    (11, "AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, {}),
    (12, "MaxPool", {"kernel_shape": [3, 2], "dilations": [2, 1], "pads": [2, 1, 1, 0]}, {}),
    (12, "MaxPool", {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}, {}),
    (11, "LpPool", {"kernel_shape": [2, 3], "p": 3}, {}),
    (11, "GlobalLpPool", {"p": 1}, {}),
    (
        11,
        "Conv",
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"w": np.random.default_rng(2).standard_normal((3, 2, 4, 3)).astype(np.float32)},
    ),
    (
        11,
        "Conv",
        {"auto_pad": "VALID", "dilations": [2, 2]},
        {"w": np.random.default_rng(2).standard_normal((3, 2, 2, 2)).astype(np.float32)},
    ),
    (
        11,
        "Conv",
        {"pads": [0, 2, 1, 0]},
        {"w": np.random.default_rng(2).standard_normal((3, 2, 2, 2)).astype(np.float32)},
    ),
    (
        11,
        "ConvTranspose",
        {"output_shape": [9, 13], "strides": [2, 2]},
        {"w": np.random.default_rng(2).standard_normal((2, 3, 3, 3)).astype(np.float32)},
    ),
    (
        11,
        "ConvTranspose",
        {"pads": [1, 0, 0, 2], "output_padding": [1, 0], "strides": [2, 2]},
        {
            "w": np.random.default_rng(2).standard_normal((2, 3, 3, 3)).astype(np.float32),
            "b": np.float32([1, 2, 3]),
        },
    ),
    (7, "BatchNormalization", {"epsilon": 0.1}, dict.fromkeys("sbmv", ONES)),
    (13, "LRN", {"size": 3, "alpha": 0.5, "bias": 2.0}, {}),
    (11, "DepthToSpace", {"blocksize": 1, "mode": "CRD"}, {}),
]


@pytest.mark.parametrize(
    ("opset", "operator", "attributes", "constants", "x"),
    [(*case, X) for case in CASES] + [(*case, IMAGE) for case in IMAGES],
)
def test_operators_of_an_opset(
    opset: int, operator: str, attributes: dict[str, Any], constants: dict[str, Any], x: Any
) -> None:
    x = x[:1] if operator == "Squeeze" else x
    outputs = {"TopK": ["y", "z"], "Split": ["y", "z"]}.get(operator, ["y"])
    inputs = ["x", *constants]
    if operator == "Pad" and opset > 10:
        inputs.append("")
    node = helper.make_node(operator, inputs, outputs, **attributes)
    kinds = {"z": TensorProto.INT64} if operator == "TopK" else {}
    kinds |= {"y": TensorProto.INT64} if operator == "ArgMax" else {}
    unknown = rank_of(operator, attributes, constants, x)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [
            helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), [None] * unknown)
            for n in outputs
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=4 if opset < 13 else 8)
    found = TrainableModel(proto)({"x": x})
    for name, expected in zip(outputs, run(proto, {"x": x}), strict=True):
        assert found[name].shape == expected.shape
        assert distance(found[name].detach().numpy(), expected) < 1e-5


def rank_of(operator: str, attributes: dict[str, Any], constants: dict[str, Any], x: Any) -> int:
    """Return the rank of the result."""
    if operator in ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp", "ArgMax"):
        return 2 if attributes.get("keepdims") == 0 else x.ndim
    ranks = {"Unsqueeze": x.ndim + 2, "Squeeze": x.ndim - 1, "Flatten": 2, "Expand": 4}
    return ranks.get(operator, x.ndim)
