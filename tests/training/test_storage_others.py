"""Codes of models that other tools quantised, and constants that are no codes of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

torch = pytest.importorskip("torch", reason="training needs the extra onnxlr[train]")

from onnxlr.model import open_model  # noqa: E402
from onnxlr.training import TrainableModel  # noqa: E402
from onnxlr.training.storage import stored_codes  # noqa: E402
from tests.training.low_bit_models import (  # noqa: E402
    convolutions,
    data_of,
    drawn,
    matrices,
    model_of,
)
from tests.training.test_storage_written import ROUNDED, check  # noqa: E402


class Samples(CalibrationDataReader):
    def __init__(self, model: onnx.ModelProto) -> None:
        self.left = [{"x": data_of(model, seed)} for seed in range(8)]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


def static(
    make: Any, path: Path, weights: QuantType, per_channel: bool, format: QuantFormat
) -> Any:
    source, found = path / "source.onnx", path / "quantised.onnx"
    onnx.save(make(), source)
    quantize_static(
        source,
        found,
        Samples(make()),
        quant_format=format,
        weight_type=weights,
        activation_type=QuantType.QUInt8,
        per_channel=per_channel,
    )
    return open_model(found)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize(
    ("make", "count"), [(matrices, 2), (convolutions, 3)], ids=["matrices", "convolutions"]
)
def test_quantise_and_dequantise(
    make: Any, count: int, weights: QuantType, per_channel: bool, tmp_path: Path
) -> None:
    model = static(make, tmp_path, weights, per_channel, QuantFormat.QDQ)
    names = {name for name in model.initializers if name.endswith("_quantized")}
    codes = {name for name in names if name[0] in "wk"}
    assert len(codes) >= count - 1  # ConvTranspose stays float in some versions
    check(model, ROUNDED, codes)


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8])
def test_products_of_integers(weights: QuantType, tmp_path: Path) -> None:
    source, found = tmp_path / "source.onnx", tmp_path / "quantised.onnx"
    onnx.save(matrices(), source)
    quantize_dynamic(source, found, weight_type=weights)
    model = open_model(found)
    codes = {name for name in model.initializers if name in ("w1_quantized", "w2_quantized")}
    assert codes
    check(model, ROUNDED, codes)


def test_units_are_scales() -> None:
    """By hand: a code's unit is what it is multiplied by, wherever its scale lies."""
    scales = np.array([0.5, 0.25, 2.0], np.float32)
    codes = np.random.default_rng(0).integers(-127, 128, (4, 3)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], axis=1),
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("Gemm", ["x", "turned"], ["y"], transB=1),
    ]
    model = open_model(
        model_of(nodes, {"codes": codes, "scales": scales}, ("n", 4), ("n", 3), opset=13)
    )
    (module,) = stored_codes(model, TrainableModel(model))
    assert module.storage.scales == ("scales",)
    np.testing.assert_allclose(module.values.detach().numpy(), codes * scales)


def test_what_is_no_code_of_a_weight() -> None:
    """Masks, indices, bytes that are data, zero points, and codes that are also an output."""
    flags = np.array([[0, 1, 1, 0]], np.uint8)
    constants = {
        "mask": flags,
        "places": np.array([1, 0, 2], np.uint8),
        "zeros": np.array([3, -4, 5, 6], np.int8),
        "codes": np.random.default_rng(0).integers(-100, 100, (4, 4)).astype(np.int8),
        "scales": np.full(4, 0.01, np.float32),
        "w": drawn(1, 4, 4),
        "shown": np.random.default_rng(1).integers(-100, 100, (4, 4)).astype(np.int8),
    }
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["x", "m"], ["masked"]),
        helper.make_node("Cast", ["places"], ["at"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["masked", "at"], ["taken"], axis=0),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["v"], axis=1),
        helper.make_node("MatMul", ["taken", "v"], ["p"]),
        helper.make_node("MatMul", ["p", "w"], ["q"]),
        helper.make_node("Cast", ["shown"], ["u"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["q", "u"], ["y"]),
    ]
    proto = model_of(nodes, constants, (3, 4), (3, 4), opset=13)
    proto.graph.output.append(helper.make_tensor_value_info("shown", onnx.TensorProto.INT8, [4, 4]))
    onnx.checker.check_model(proto)
    model = open_model(proto)
    assert [m.constant for m in stored_codes(model, TrainableModel(model))] == ["codes"]
