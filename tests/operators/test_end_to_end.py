"""A float model whose products a user makes ternary, saved, and run wherever models run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxlr
from onnxlr.operators import TernaryMatMul, add_functions, make_node
from tests.onelayer import Array, distance
from tests.operators import reference
from tests.operators.oplibrary import installed_library

WIDTHS = (96, 200, 33)
PLAIN = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"x": numpy.load(sys.argv[2])})[0])
assert not any(name.startswith("onnxlr") for name in sys.modules)
"""


def float_model() -> onnx.ModelProto:
    """Return x → MatMul → Add → Relu → MatMul → y."""
    rng = np.random.default_rng(1)
    weights = {
        "w0": rng.standard_normal(WIDTHS[:2]).astype(np.float32),
        "b0": rng.standard_normal(WIDTHS[1]).astype(np.float32),
        "w1": rng.standard_normal(WIDTHS[1:]).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["product"]),
        helper.make_node("Add", ["product", "b0"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w1"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTHS[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTHS[2]])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def made_ternary(weight: Array, level: int) -> TernaryMatMul:
    """Return a weight's signs where it is large, with a scale for each output."""
    large = np.abs(weight) > 0.7 * np.abs(weight).mean()
    scales = np.abs(weight).mean(axis=0, where=large)
    inputs, outputs = weight.shape
    return TernaryMatMul(
        ternary=(np.sign(weight) * large).astype(np.int8)[None],
        scales=scales[None, None],
        input_scale=np.ones(inputs, np.float32),
        bias=np.zeros(outputs, np.float32),
        group_size=inputs,
        accuracy_level=level,
    )


def ternary_model(level: int) -> onnx.ModelProto:
    """Return the float model with each MatMul replaced, as a user of onnxlr.operators would."""
    model = float_model()
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for position, node in enumerate(model.graph.node):
        if node.op_type != "MatMul":
            continue
        new, tensors = make_node(
            made_ternary(weights[node.input[1]], level),
            node.input[0],
            node.output[0],
            f"n{position}",
        )
        model.graph.node[position].CopyFrom(new)
        model.graph.initializer.extend(tensors)
    for tensor in [t for t in model.graph.initializer if t.name in ("w0", "w1")]:
        model.graph.initializer.remove(tensor)
    add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def expected(x: Array, level: int) -> Array:
    weights = {t.name: numpy_helper.to_array(t) for t in float_model().graph.initializer}
    first, second = (made_ternary(weights[name], level) for name in ("w0", "w1"))

    def product(rows: Array, w: TernaryMatMul) -> Array:
        rows = rows.astype(np.float32)
        return reference.matmul(
            rows, w.ternary, w.scales, w.input_scale, w.bias, w.group_size, level
        )

    return product(np.maximum(product(x, first) + weights["b0"], 0), second)


@pytest.fixture(params=[0, 4])
def level(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def file(level: int, tmp_path: Path) -> Path:
    onnx.save(ternary_model(level), tmp_path / "ternary.onnx")
    return tmp_path / "ternary.onnx"


@pytest.fixture
def rows() -> Array:
    return np.random.default_rng(2).standard_normal((7, WIDTHS[0])).astype(np.float32)


def test_onnxruntime_alone(file: Path, level: int, rows: Array) -> None:
    x, y = file.with_name("x.npy"), file.with_name("y.npy")
    np.save(x, rows)
    subprocess.run([sys.executable, "-c", PLAIN, file, x, y], check=True, cwd=file.parent)
    assert distance(np.load(y), expected(rows, level)) < 1e-5


def test_with_the_op_library(file: Path, level: int, rows: Array, tmp_path: Path) -> None:
    installed_library()
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    found = onnxlr.session(file, options=options).run(None, {"x": rows})[0]
    assert distance(found, expected(rows, level)) < 1e-5
    ran = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert ran.count("TernaryMatMul") == 2


def test_onnx_itself(file: Path, level: int, rows: Array) -> None:
    found = ReferenceEvaluator(str(file)).run(None, {"x": rows})[0]
    assert distance(found, expected(rows, level)) < 1e-5


def test_the_ternary_model_is_another_than_the_float_one(level: int, rows: Array) -> None:
    """What agrees above agrees about something."""
    session = ort.InferenceSession(
        float_model().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert 0.1 < distance(session.run(None, {"x": rows})[0], expected(rows, level)) < 1


def test_the_file_is_smaller(file: Path) -> None:
    assert file.stat().st_size < float_model().ByteSize() / 4
