"""Models with ternary operators run without the op library, by their functions alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxlr.errors import ModelError, UsageError
from onnxlr.operators.functions import add_functions, function_bodies
from onnxlr.operators.matmul import TernaryMatMul
from onnxlr.operators.products import Needs
from onnxlr.operators.schema import make_node
from tests.onelayer import LEVELS, distance, newest_opset, run
from tests.operators.nodes import assert_runs, conv, data, expected, matmul, model_of
from tests.operators.oplibrary import installed_library

OPSETS = sorted({9, 10, 11, 12, 13, 14, 17, 18, 21, newest_opset()})
MATRICES = {
    "one-scale": [matmul(37, 21)],
    "three-terms": [matmul(37, 21, 3)],
    "group-of-32": [matmul(75, 21, 2, 32)],
    "group-of-64": [matmul(130, 16, 1, 64)],
    "group-of-128": [matmul(257, 5, 1, 128)],
    "group-above-inputs": [matmul(32, 5, 1, 32)],
    "level-0": [matmul(37, 21, 1, None, 0)],
    "level-0-grouped": [matmul(75, 21, 3, 32, 0)],
    "one-input": [matmul(1, 1)],
    "several": [matmul(75, 21), matmul(75, 4, 3, 32), matmul(75, 7, 2, 64, 0), matmul(75, 9, 8)],
    "several-of-one-scale": [matmul(75, 21), matmul(75, 4, 3)],
}
KERNELS = {
    "2d": ([conv(6, 4, (3, 3))], (2, 4, 7, 6)),
    "2d-all": (
        [conv(6, 2, (3, 2), 2, 3, strides=(2, 1), pads=(1, 0, 2, 1), dilations=(1, 2))],
        (2, 4, 9, 8),
    ),
    "2d-depthwise": ([conv(10, 1, (3, 3), 5, pads=(1, 1, 1, 1))], (1, 5, 6, 5)),
    "2d-grouped-scales": ([conv(18, 7, (3, 3), 1, 2, 32, pads=(1, 1, 1, 1))], (2, 7, 5, 4)),
    "2d-level-0": ([conv(6, 20, (1, 3), 2, 2, 32, 0, strides=(1, 2))], (2, 40, 3, 7)),
    "1d": ([conv(6, 4, (5,), strides=(2,), pads=(3, 1))], (2, 4, 11)),
    "1d-groups": ([conv(40, 20, (3,), 2, 2, 32, dilations=(2,))], (3, 40, 9)),
    "1d-level-0": ([conv(40, 20, (3,), 2, 1, None, 0)], (3, 40, 9)),
    "several-kernels": (
        [conv(4, 20, (3,), 2, 2, 32, 0), conv(10, 40, (1,)), conv(4, 10, (5,), 4, 2, 32)],
        (2, 40, 9),
    ),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", MATRICES)
def test_matrices(name, opset):
    assert_runs(MATRICES[name], (3, MATRICES[name][0].inputs), opset)


@pytest.mark.parametrize("shape", [(75,), (1, 75), (2, 3, 75), (2, 1, 3, 75), (0, 75), (2, 0, 75)])
@pytest.mark.parametrize("opset", [9, 12, newest_opset()])
@pytest.mark.parametrize("name", ["group-of-32", "several", "several-of-one-scale"])
def test_data_of_any_rank(name, opset, shape):
    assert_runs(MATRICES[name], shape, opset)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name, opset):
    assert_runs(*KERNELS[name], opset)


def test_one_function_serves_images_and_signals():
    """Two inputs, of 1 and of 2 spatial axes."""
    one, two = conv(6, 4, (5,)), conv(6, 2, (2, 3), 2, pads=(1, 0, 1, 0))
    model, other = (
        model_of([one], (2, 4, 9), 17),
        model_of([two], (2, 4, 5, 6), 17, functions=False),
    )
    other = onnx.compose.add_prefix(other, "b_")
    model.graph.node.extend(other.graph.node)
    for field in ("input", "output", "initializer"):
        getattr(model.graph, field).extend(getattr(other.graph, field))
    x, image = data((2, 4, 9)), data((2, 4, 5, 6))
    for level in LEVELS:
        found = run(model, {"x": x, "b_x": image}, level)
        assert distance(found[0], expected(one, x)) < 1e-5
        assert distance(found[1], expected(two, image)) < 1e-5


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([None, 32, 64, 128]),
    st.sampled_from([0, 4]),
    st.sampled_from(OPSETS),
)
def test_any_size(inputs, outputs, terms, group_size, level, opset):
    assert_runs([matmul(inputs, outputs, terms, group_size, level)], (2, inputs), opset)


def test_the_arithmetic_by_hand():
    """Rows are rounded with a range of their own, halves to even; a row of zeros stays zero."""
    weights = TernaryMatMul(
        np.array([[[1, -1], [1, 0], [1, 1]]], np.int8),
        np.array([[[2, 3]]], np.float32),
        np.ones(3, np.float32),
        np.array([10, -10], np.float32),
        3,
        4,
    )
    x = np.array([[127, 2.5, -3.5], [0, 0, 0], [12700, 40, 60]], np.float32)
    # Rounded: 127 2 -4; zeros; 127 0 1 in steps of 100.
    wanted = [[260, -403], [10, -10], [25610, -37810]]
    for opset in (9, 10, 17):
        found = run(model_of([weights], (3, 3), opset), {"x": x})[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("opset", [12, 17, 18])
@pytest.mark.parametrize("name", ["one-scale", "group-of-32", "level-0", "several"])
def test_onnx_itself_runs_matrices(name, opset):
    operators = MATRICES[name]
    x = data((2, 3, operators[0].inputs))
    results = ReferenceEvaluator(model_of(operators, x.shape, opset)).run(None, {"x": x})
    for operator, found in zip(operators, results, strict=True):
        assert distance(found, expected(operator, x)) < 1e-5


@pytest.mark.parametrize("name", KERNELS)
def test_onnx_itself_runs_kernels(name):
    operators, shape = KERNELS[name]
    results = ReferenceEvaluator(model_of(operators, shape, 17)).run(None, {"x": data(shape)})
    for operator, found in zip(operators, results, strict=True):
        assert distance(found, expected(operator, data(shape))) < 1e-5


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", ["one-scale", "three-terms", "level-0", "several"])
def test_shapes_keep_their_symbols(name, opset):
    operators = MATRICES[name]
    model = model_of(operators, ("batch", "tokens", operators[0].inputs), opset)
    for value, operator in zip(_inferred(model), operators, strict=True):
        assert value == ["batch", "tokens", operator.outputs]


@pytest.mark.parametrize("opset", [o for o in OPSETS if o >= 14])
@pytest.mark.parametrize("name", ["2d", "2d-level-0", "several-kernels"])
def test_shapes_of_images_keep_their_symbols(name, opset):
    operators, shape = KERNELS[name]
    inferred = _inferred(model_of(operators, ("batch", *shape[1:]), opset))
    for dims, operator in zip(inferred, operators, strict=True):
        space = expected(operator, data(shape)).shape[2:]
        assert dims == ["batch", operator.outputs, *space]


def _inferred(model: onnx.ModelProto) -> list[list[str | int]]:
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = [value.type.tensor_type.shape for value in inferred.graph.output]
    return [[dim.dim_param or dim.dim_value for dim in shape.dim] for shape in shapes]


@pytest.mark.parametrize("name", ["one-scale", "group-of-32", "level-0", "several"])
def test_weights_are_decoded_at_load(name, tmp_path):
    """What is as large as the weights is an initializer; no node makes it at each run."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    operators = MATRICES[name]
    model = model_of(operators, ("rows", operators[0].inputs), 17)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    dynamic = {"x"}
    for node in optimised.graph.node:
        assert dynamic.intersection(node.input), f"{node.op_type} of constants alone"
        dynamic.update(node.output)


def test_functions_are_written_once_and_anew():
    model = model_of([matmul(37, 5)], (2, 37), 17)
    node, tensors = make_node(matmul(37, 5, 2, 32, 0), "x", "y1", "n1")
    model.graph.node.append(node)
    model.graph.initializer.extend(tensors)
    model.graph.output.append(helper.make_tensor_value_info("y1", onnx.TensorProto.FLOAT, [2, 5]))
    add_functions(model)
    assert [(f.domain, f.name) for f in model.functions] == [("onnxlr", "TernaryMatMul")]
    assert [o.version for o in model.opset_import if o.domain == "onnxlr"] == [1]
    x = data((2, 37))
    assert distance(run(model, {"x": x})[1], expected(matmul(37, 5, 2, 32, 0), x)) < 1e-5


def test_nodes_in_subgraphs_and_functions_count():
    node, tensors = make_node(matmul(5, 3), "x", "inner", "n")
    info = helper.make_tensor_value_info("inner", onnx.TensorProto.FLOAT, None)
    then = helper.make_graph([node], "then", [], [info])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["inner"])], "else", [], [info])
    graph = helper.make_graph(
        [helper.make_node("If", ["condition"], ["y"], then_branch=then, else_branch=other)],
        "g",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 5]),
            helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, None])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    add_functions(model)
    x = data((2, 5))
    found = run(model, {"x": x, "condition": np.array(True)})[0]
    assert distance(found, expected(matmul(5, 3), x)) < 1e-5


def test_models_without_ternary_nodes_stay_as_they_are():
    identity = helper.make_node("Identity", ["x"], ["y"])
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([identity], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3)
    before = model.SerializeToString()
    add_functions(model)
    assert model.SerializeToString() == before


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ModelError, match=r"IR version 4.*need IR version 8"):
        model_of([matmul(5, 3)], (2, 5), 12, ir_version=4)
    with pytest.raises(ModelError, match=r"opset 8.*need opset 9"):
        model_of([matmul(5, 3)], (2, 5), 8)
    with pytest.raises(ModelError, match=r"opset 8.*need opset 9"):
        function_bodies(8, {"TernaryConv": Needs(frozenset({4}), False, 1)})
    model = model_of([matmul(5, 3)], (2, 5), 12, functions=False)
    del model.graph.node[0].input[4]
    with pytest.raises(ModelError, match=r"TernaryMatMul node 'n0'.*5 inputs"):
        add_functions(model)
    model = model_of([matmul(5, 3)], (2, 5), 12, functions=False)
    del model.graph.node[0].attribute[0]
    with pytest.raises(ModelError, match="lacks the attributes"):
        add_functions(model)


@pytest.mark.parametrize("name", [*MATRICES, *KERNELS])
def test_operators_tell_what_they_compute(name):
    operators, shape = KERNELS.get(name) or (MATRICES[name], (5, MATRICES[name][0].inputs))
    for operator in operators:
        found = operator.reference(data(shape))
        assert distance(found, expected(operator, data(shape))) < 1e-12


@pytest.mark.parametrize(
    ("name", "value"), [("group_size", 16), ("terms", 9), ("accuracy_level", 2), ("layout", 2)]
)
def test_nodes_against_the_specification_are_refused(name, value):
    model = model_of([matmul(100, 3)], (2, 100), 17, functions=False)
    for attribute in model.graph.node[0].attribute:
        if attribute.name == name:
            attribute.i = value
    with pytest.raises(ModelError, match=f"'n0' has {name} {value}; expected one of"):
        add_functions(model)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: matmul(40, 3, 1, 16), "group size: found 16; expected 32, 64, 128 or all 40"),
        (lambda: matmul(40, 3, 9), "terms: found 9; expected 1 to 8"),
        (lambda: matmul(40, 3, 1, None, 1), "accuracy level: found 1; expected 0 or 4"),
        (lambda: conv(5, 2, (3,), 2), "group: found 2; expected a divisor of 5"),
        (lambda: conv(4, 2, (3,), strides=(1, 1)), "strides: found .*expected 1 numbers"),
        (lambda: conv(4, 2, (3,), pads=(-1, 0)), "pads: found .*at least 0"),
        (lambda: conv(4, 2, (3, 3, 3)), "weights: found .*one or two kernel axes"),
    ],
)
def test_operators_check_themselves(build, message):
    with pytest.raises(UsageError, match=message):
        build()


@pytest.mark.parametrize("field", ["scales", "input_scale", "bias"])
def test_numbers_are_finite_float32_of_the_right_shape(field):
    good = matmul(40, 3, 2, 32)
    fields = {f.name: getattr(good, f.name) for f in dataclasses.fields(good)}
    values = fields[field]
    infinite = values.copy()
    infinite.ravel()[-1] = np.inf
    for wrong in (values[..., 1:], values.astype(np.float64), infinite):
        with pytest.raises(UsageError, match=f"{field.replace('_', ' ')}: found .*expected"):
            TernaryMatMul(**fields | {field: wrong})


@pytest.mark.parametrize("name", [*MATRICES, *KERNELS])
def test_kernels_of_the_library_agree(name):
    operators, shape = KERNELS.get(name) or (MATRICES[name], (5, MATRICES[name][0].inputs))
    model, x = model_of(operators, shape, 17), data(shape)
    options = ort.SessionOptions()
    options.register_custom_ops_library(installed_library())
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for by_kernel, by_function in zip(
        session.run(None, {"x": x}), run(model, {"x": x}), strict=True
    ):
        assert distance(by_kernel, by_function) < 1e-5
