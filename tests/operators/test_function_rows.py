"""Rows that functions have to get right although they are unusual: none, not finite, very long."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from onnxlr.operators import TernaryMatMul, TernaryOperator
from tests.onelayer import LEVELS, Array, distance, newest_opset, run
from tests.operators.nodes import assert_runs, conv, data, expected, matmul, model_of
from tests.operators.oplibrary import installed_library

OPSETS = sorted({9, 10, 11, 12, 13, 14, 17, 18, 21, newest_opset()})
MATRICES = {
    "one-scale": [matmul(75, 21, 2)],
    "groups": [matmul(75, 21, 2, 32)],
    "level-0": [matmul(75, 21, 1, 32, 0)],
    "all-of-them": [matmul(75, 21), matmul(75, 4, 3, 32), matmul(75, 7, 2, 64, 0)],
}
KERNELS = {
    "one-scale": ([conv(6, 4, (3, 2), 2, pads=(1, 0, 1, 1))], (8, 5, 6)),
    "groups": ([conv(6, 40, (1,), 1, 2, 32)], (40, 7)),
    "level-0": ([conv(6, 4, (3,), 1, 1, None, 0)], (4, 7)),
    "all-of-them": ([conv(4, 20, (3,), 2, 2, 32, 0), conv(10, 40, (1,))], (40, 9)),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", MATRICES)
def test_no_rows(name, opset):
    for shape in ((0, 75), (2, 0, 75), (0, 3, 75)):
        assert_runs(MATRICES[name], shape, opset)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", KERNELS)
def test_no_images(name, opset):
    operators, shape = KERNELS[name]
    assert_runs(operators, (0, *shape), opset)


@pytest.mark.parametrize("name", KERNELS)
def test_a_session_takes_no_images_and_then_some(name):
    operators, shape = KERNELS[name]
    model = model_of(operators, ("batch", *(f"d{i}" for i in range(len(shape)))), 17)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (0, 3, 0, 1):
        x = data((batch, *shape))
        for operator, found in zip(operators, session.run(None, {"x": x}), strict=True):
            wanted = expected(operator, x)
            assert found.shape == wanted.shape
            assert distance(found, wanted) < 1e-5


@pytest.mark.parametrize("name", MATRICES)
def test_onnx_itself_takes_no_rows(name):
    model = model_of(MATRICES[name], ("rows", 75), 17)
    results = ReferenceEvaluator(model).run(None, {"x": np.zeros((0, 75), np.float32)})
    outputs = [operator.outputs for operator in MATRICES[name]]
    assert [found.shape for found in results] == [(0, n) for n in outputs]


# --- rows that are not finite --------------------------------------------------------------------


def _spoilt(x: Array, rows: list[tuple[int, ...]]) -> Array:
    """Return the data with NaN, infinity or both at places."""
    x = x.copy()
    values = (np.nan, np.inf, -np.inf)
    for number, place in enumerate(rows):
        x[place] = values[number % len(values)]
    return x


ROWS = _spoilt(data((6, 75)), [(0, 0), (1, 74), (2, 30), (3, 1), (3, 2), (3, 40)])
LEVEL_4 = {
    "one-scale": matmul(75, 21),
    "terms": matmul(75, 21, 3),
    "groups": matmul(75, 21, 2, 32),
    "one-output": matmul(75, 1),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", LEVEL_4)
def test_rows_that_are_not_finite_are_nan(name, opset):
    model = model_of([LEVEL_4[name]], ROWS.shape, opset)
    for level in LEVELS:
        _check_rows(LEVEL_4[name], run(model, {"x": ROWS}, level)[0])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", LEVEL_4)
def test_onnx_itself_gives_nan(name):
    model = model_of([LEVEL_4[name]], ROWS.shape, 17)
    _check_rows(LEVEL_4[name], ReferenceEvaluator(model).run(None, {"x": ROWS})[0])


def _check_rows(operator: TernaryOperator, found: Array) -> None:
    assert np.isnan(found[:4]).all()
    assert distance(found[4:], expected(operator, ROWS[4:])) < 1e-5


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("group", [1, 2])
def test_patches_that_are_not_finite_are_nan(group, opset):
    """Each patch of each group of channels is a row; whatever has no such entry stays as it is."""
    operator = conv(6, 2, (3, 2), group, 2, pads=(1, 0, 2, 1))
    clean = data((2, 2 * group, 9, 8))
    x = _spoilt(clean, [(0, 1, 4, 3), (1, 0, 0, 0)])
    touched = np.zeros((2, 6, 10, 8), bool)
    touched[0, : 6 // group, 3:6, 2:4] = True
    touched[1, : 6 // group, 0:2, 0:1] = True
    for level in LEVELS:
        found = run(model_of([operator], x.shape, opset), {"x": x}, level)[0]
        np.testing.assert_array_equal(np.isnan(found), touched)
        wanted = expected(operator, clean)
        assert distance(found[~touched], wanted[~touched]) < 1e-5


@pytest.mark.parametrize("name", LEVEL_4)
def test_kernels_of_the_library_give_nan(name):
    options = ort.SessionOptions()
    options.register_custom_ops_library(installed_library())
    model = model_of([LEVEL_4[name]], ROWS.shape, 17).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    _check_rows(LEVEL_4[name], session.run(None, {"x": ROWS})[0])


# --- long rows -----------------------------------------------------------------------------------


def _long(inputs: int, group_size: int, ternary: Array) -> TernaryMatMul:
    rng = np.random.default_rng(inputs)
    return TernaryMatMul(
        ternary,
        rng.uniform(0.1, 2, (1, -(-inputs // group_size), ternary.shape[2])).astype(np.float32),
        np.ones(inputs, np.float32),
        np.zeros(ternary.shape[2], np.float32),
        group_size,
        4,
    )


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("group_size", [32, 128, 16384])
def test_long_rows_of_one_sign(group_size, opset):
    """Integer sums of 2**21, and float32 sums that meet the largest numbers early."""
    operator = _long(16384, group_size, np.ones((1, 16384, 8), np.int8))
    x = np.abs(data((4, 16384)))
    x[0] = 1  # every entry is rounded to 127
    found = run(model_of([operator], x.shape, opset), {"x": x})[0]
    assert distance(found, expected(operator, x)) < 1e-5


@pytest.mark.parametrize("group_size", [32, 128])
def test_long_rows_whose_sums_nearly_cancel(group_size):
    """Errors stay small beside what was summed up, if not beside the result."""
    ternary = np.ones((1, 16384, 8), np.int8)
    ternary[:, 8192:] = -1
    operator = _long(16384, group_size, ternary)
    x = np.abs(data((4, 16384)))
    error = run(model_of([operator], x.shape, 17), {"x": x})[0] - expected(operator, x)
    summed = expected(_long(16384, group_size, np.abs(ternary)), x)
    assert np.abs(error / summed).max() < 1e-5


def test_sums_above_what_float32_counts():
    """2**25 and more in int32: all entries are 127."""
    inputs = 300_001
    operator = _long(inputs, inputs, np.ones((1, inputs, 3), np.int8))
    x = np.ones((1, inputs), np.float32)
    found = run(model_of([operator], x.shape, 17), {"x": x})[0]
    exact = 127 * inputs * operator.scales[0].astype(np.float64) / 127
    np.testing.assert_allclose(found, exact, rtol=3e-7)


def test_weights_take_few_folded_results():
    """Bytes for each weight of all that a runtime computes at load, and may keep until it is done.

    Its bounds: six steps on codes of two bits, then indices, values and their order.
    """
    inputs, outputs = 320, 256
    for operator, most in ((matmul(inputs, outputs), 5), (matmul(inputs, outputs, 1, 32), 16)):
        body = model_of([operator], (1, inputs), 17)
        sizes = _sizes_of_constants(body)
        assert sum(size for size in sizes if size >= inputs * outputs / 8) < most * inputs * outputs


def _sizes_of_constants(model: onnx.ModelProto) -> list[int]:
    """Return the bytes of each result in a function that depends on constants alone."""
    function = model.functions[0]
    constant = set(function.input[1:])
    nodes = []
    for node in function.node:
        if set(node.input) <= constant:
            constant.update(node.output)
            nodes.append(node)
    names = [name for node in nodes for name in node.output]
    graph = onnx.helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names],
        [
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), name)
            for tensor, name in zip(model.graph.initializer, function.input[1:], strict=True)
        ],
    )
    alone = onnx.helper.make_model(graph, opset_imports=function.opset_import)
    return [np.asarray(result).nbytes for result in ReferenceEvaluator(alone).run(names, {})]
