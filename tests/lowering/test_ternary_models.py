"""Ternary nodes in whole models: their functions, IR versions, subgraphs, the model's functions."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.errors import OnnxlrWarning
from onnxlr.layers import find_layers
from onnxlr.lowering import (
    TARGETS,
    Context,
    LoweringRefusedError,
    carry_functions,
    find_target,
    lower_layer,
)
from onnxlr.lowering.place import Place
from onnxlr.model import open_model, splice
from onnxlr.numbers import Encoded
from onnxlr.plan import Choice, Plan, Proposal
from onnxlr.rewriting import Rewriting, emitted_bytes
from onnxlr.stages import Chain, Lookup, Scale
from tests.lowering.ternary import (
    by_functions,
    by_kernels,
    expect_all,
    factors,
    kernel,
    lowered,
    matmul_model,
    matrix,
    normal,
    own_nodes,
)
from tests.lowering.written import operators
from tests.onelayer import distance


@pytest.mark.parametrize("ir_version", [3, 4, 5, 7, 8, 9])
def test_ir_versions(ir_version):
    """Functions need version 8; version 3 has initializers for inputs, where none can be new."""
    stage, dense = matrix(0, 20, 7)
    x = normal(1, 3, 20)
    source = open_model(matmul_model(normal(0, 20, 7), x, 11, ir_version))
    (layer,) = find_layers(source)
    change = lower_layer(
        layer, Chain((stage,)), source, source.names, find_target("onnxlr"), "float"
    )
    splice(source, change)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        carry_functions(source.proto)
    changed = source.proto
    onnx.checker.check_model(changed, full_check=True)
    raised = 4 <= ir_version < 8
    assert [w.category for w in caught] == [OnnxlrWarning] * raised
    assert all(f"IR version {ir_version} and has 8 now" in str(w.message) for w in caught)
    assert changed.ir_version == (8 if raised else ir_version)
    assert len(own_nodes(changed)) == (ir_version > 3)
    expect_all(changed, {"x": x}, x @ dense, 1e-5)


def test_a_model_without_ternary_nodes_stays_as_it_is():
    model = matmul_model(normal(0, 20, 7), normal(1, 3, 20), 11, 5)
    before = model.SerializeToString()
    carry_functions(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("ir_version", [3, 8])
def test_ir_version_3_names_its_reason(ir_version):
    stage, _ = matrix(0, 20, 7)
    source = open_model(matmul_model(normal(0, 20, 7), normal(1, 3, 20), 11, ir_version))
    (layer,) = find_layers(source)
    place = Place(layer.sites[0], stage, True)
    context = Context(11, np.dtype("float32"), "float", ir_version)
    reason = TARGETS["onnxlr"].ternary[0].refuses(context, place)
    assert (reason is None) == (ir_version > 3)
    assert reason is None or "IR version 3 has not (convert the model to IR version 8)" in reason


def test_a_second_rewriting_keeps_what_the_first_wrote():
    """The functions of both are one, and other functions of any domain stay."""
    first, dense = matrix(0, 20, 12)
    second, last = matrix(1, 12, 7, 2, 32)
    x = normal(1, 3, 20)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], name="a"),
        helper.make_node("Twice", ["h"], ["k"], domain="onnxlr"),
        helper.make_node("MatMul", ["k", "w"], ["y"], name="b"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 7])],
        [
            numpy_helper.from_array(normal(0, 20, 12), "v"),
            numpy_helper.from_array(normal(0, 12, 7), "w"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("onnxlr", 1)]
    twice = helper.make_function(
        "onnxlr", "Twice", ["a"], ["r"], [helper.make_node("Add", ["a", "a"], ["r"])], opsets[:1]
    )
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[twice])
    for name, stage, activations in (("a", first, "float"), ("b", second, "dynamic_int8")):
        source = open_model(model)
        layers = {layer.name: layer for layer in find_layers(source)}
        rewritable = {name for name, layer in layers.items() if layer.skip is None}
        assert rewritable <= {"a", "b"}  # nothing of the functions
        change = lower_layer(
            layers[name],
            Chain((stage,)),
            source,
            source.names,
            find_target("onnxlr"),
            activations,
        )
        splice(source, change)
        carry_functions(source.proto)
        onnx.checker.check_model(source.proto, full_check=True)
        model = onnx.load_from_string(source.proto.SerializeToString())
    assert operators(model) == {"TernaryMatMul": 2, "Twice": 1}
    names = sorted(f.name for f in model.functions)
    assert names == ["TernaryMatMul", "Twice"]
    assert [o.domain for o in model.opset_import].count("onnxlr") == 1
    expected = 2 * (x @ dense) @ last
    for found in (by_functions(model, {"x": x}), by_kernels(model, {"x": x})):
        assert distance(found, expected) < 0.05


def _two_layers():
    """Return a convolution and a matrix, as files have them: with a bias, an Add, symbols."""
    nodes = [
        helper.make_node("Conv", ["x", "k", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"], name="fc"),
        helper.make_node("Add", ["m", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [
            numpy_helper.from_array(normal(0, 64, 3, 3, 3), "k"),
            numpy_helper.from_array(normal(1, 64), "b"),
            numpy_helper.from_array(normal(2, 64, 24), "w"),
            numpy_helper.from_array(normal(3, 24), "v"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
def test_a_model_is_rewritten_and_saved(activations, tmp_path):
    """As applying a plan does it: both models changed, the file loaded and run."""
    source, reference = open_model(_two_layers()), open_model(_two_layers())
    stage, dense = kernel(0, (64, 3, 3, 3), 1, 2)
    first, left = matrix(0, 64, 40)
    second, right = matrix(1, 40, 24)
    d = factors(0, 64)
    chains = {"conv": (stage,), "fc": (Scale(d), first, second)}
    plan = Plan({}, None, "onnxlr", 0, "test")
    work = Rewriting(source, reference, "onnxlr")
    for layer in find_layers(source):
        proposal = Proposal(
            layer, Choice("quantize", activations=activations), Chain(chains[layer.name])
        )
        size = emitted_bytes(proposal, source, "onnxlr")
        work.add(proposal)
        assert work.records[-1].bytes_after == size < work.records[-1].bytes_before
    with pytest.warns(OnnxlrWarning, match="IR version 7 and has 8 now"):
        work.finish(plan)
    path = tmp_path / "m.onnx"
    onnx.save(source.proto, path)
    onnx.checker.check_model(path, full_check=True)
    changed = onnx.load(path)
    found = operators(changed)
    assert found["TernaryConv"] == 1
    assert found["TernaryMatMul"] == 2
    x = normal(5, 2, 3, 8, 8)
    view = np.lib.stride_tricks.sliding_window_view(
        np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), axis=(2, 3)
    )
    convolved = np.einsum("nchwab,ocab->nohw", view, dense) + normal(1, 64)[:, None, None]
    pooled = np.maximum(convolved, 0).mean(axis=(2, 3))
    expected = (pooled * d) @ (left @ right) + normal(3, 24)
    assert distance(by_functions(reference.proto, {"x": x}), expected) < 1e-5
    limit = 1e-5 if activations == "float" else 0.05
    function, kernels = by_functions(changed, {"x": x}), by_kernels(changed, {"x": x})
    assert distance(function, expected) < limit
    assert distance(kernels, function.astype(np.float64)) < 1e-5
    session = onnxlr.session(path)
    assert distance(session.run(None, {"x": x})[0], expected) < limit


def test_tables_are_refused():
    node = helper.make_node("Gather", ["w", "x"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8])],
        [numpy_helper.from_array(normal(0, 30, 8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    trits = np.zeros((1, 30, 8), np.int8)
    table = Lookup(Encoded.of_trits(trits, np.ones((30, 1, 1), np.float32), None, True))
    for target in ("onnx", "ort", "onnxlr"):
        with pytest.raises(LoweringRefusedError, match=r"table.*tables can be int8, int4 or int2$"):
            lowered(model, [table], target)
