"""Values back into a model's constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.errors import ModelError
from onnxlr.model import open_model
from onnxlr.training.writing import constant_tensors, write_constants
from tests.training.low_bit_models import drawn, model_of

W = drawn(0, 4, 3)
HELD = helper.make_tensor("held", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])  # float_data


def small(kind: Any = np.float32) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Constant", [], ["b"], value=HELD),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    return model_of(nodes, {"w": W, "other": np.ones(3).astype(kind)}, ("n", 4), ("n", 3))


def values_of(proto: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_initializers_and_constant_nodes() -> None:
    model = open_model(small())
    write_constants(model, {"w": 2.0 * W.astype(np.float64), "b": np.array([4, 5, 6.5])})
    assert values_of(model.proto)["w"].dtype == np.float32
    np.testing.assert_array_equal(values_of(model.proto)["w"], 2 * W)
    np.testing.assert_array_equal(values_of(model.proto)["other"], np.ones(3))
    held = model.proto.graph.node[1].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(held), [4, 5, 6.5])
    assert held.name == "held"


def test_what_stays_keeps_its_bytes() -> None:
    """Numbers as typed fields stay typed fields, which raw data would not."""
    model = open_model(small())
    before = model.proto.SerializeToString()
    write_constants(model, {"w": W, "b": np.array([1, 2, 3.0])})
    assert model.proto.SerializeToString() == before
    write_constants(model, {"b": np.array([1, 2, 4.0])})
    assert model.proto.SerializeToString() != before


def test_a_zero_that_changes_its_sign_is_written() -> None:
    model = open_model(small())
    write_constants(model, {"b": np.zeros(3)})
    write_constants(model, {"b": -np.zeros(3)})
    held = numpy_helper.to_array(model.proto.graph.node[1].attribute[0].t)
    assert np.signbit(held).all()


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4])
def test_numbers_take_the_type_of_the_file(kind: Any) -> None:
    model = open_model(small(kind))
    write_constants(model, {"other": np.array([1.0, 2.0, 5.0])})
    found = values_of(model.proto)["other"]
    assert found.dtype == kind
    assert found.astype(np.float64).tolist() == [1, 2, 5]


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small(), path, save_as_external_data=True, size_threshold=0, location="m.bin")
    model = open_model(path)
    write_constants(model, {"w": W, "other": np.full(3, 7.0)})
    kept, changed = (model.initializers[name] for name in ("w", "other"))
    assert kept.data_location == TensorProto.EXTERNAL
    assert changed.data_location == TensorProto.DEFAULT
    assert not changed.external_data
    np.testing.assert_array_equal(numpy_helper.to_array(changed), np.full(3, 7.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"v": W}, "there is no constant 'v' in its main graph"),
        ({"w": W.T}, r"constant 'w' has shape \[4, 3\], found \[3, 4\]"),
        ({"w": np.full((4, 3), np.nan)}, "constant 'w' would hold NaN or infinity"),
        ({"other": np.full(3, 1e6)}, "constant 'other' would hold NaN or infinity"),
    ],
)
def test_all_or_nothing(values: dict[str, Any], message: str) -> None:
    model = open_model(small(np.float16))
    before = model.proto.SerializeToString()
    with pytest.raises(ModelError, match=message):
        write_constants(model, {"b": np.array([7.0, 8, 9]), **values})
    assert model.proto.SerializeToString() == before


def test_what_constants_there_are() -> None:
    assert sorted(constant_tensors(open_model(small()))) == ["b", "other", "w"]
