"""Corrections as inputs, against models with the same Add written by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxlr.layers import find_layers, read_weight
from onnxlr.model import open_model
from onnxlr.planning.opened import open_weights
from onnxlr.stages import Adjustment
from tests.onelayer import Array, model_of, run
from tests.planning.test_sensitivity import CASES, normal

SHAPES: dict[str, tuple[int, ...]] = {
    "matmul": (6,),
    "left": (6, 1),
    "gemm": (6,),
    "convolution": (6, 1, 1),
    "spreading": (6, 1, 1),
    "two_sites": (6,),
    "in_branch": (6,),
    "constant_node": (6,),
    "old": (6,),
    "half": (6,),
}
"""What can be added to the output of each case's node `layer`, of six features."""


def with_addition(model: onnx.ModelProto, value: Array) -> onnx.ModelProto:
    """Return the model with an array added to what the node `layer` makes, wherever it stands."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    done = 0

    def visit(graph: onnx.GraphProto) -> None:
        nonlocal done
        for position, node in reversed(list(enumerate(graph.node))):
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)
            if node.name == "layer":
                made, node.output[0] = node.output[0], "made by the layer"
                addition = [
                    helper.make_node(
                        "Constant", [], ["added"], value=numpy_helper.from_array(value)
                    ),
                    helper.make_node("Add", ["made by the layer", "added"], [made]),
                ]
                rest = list(graph.node)[position + 1 :]
                del graph.node[position + 1 :]
                graph.node.extend([*addition, *rest])
                done += 1

    visit(copy.graph)
    assert done == 1
    return copy


@pytest.mark.parametrize("case", SHAPES)
def test_a_correction_is_added_to_the_output_of_its_site(case: str) -> None:
    model, feeds = CASES[case]()
    source = open_model(model)
    (layer,) = (layer for layer in find_layers(source) if layer.skip is None)
    opened, inputs = open_weights(open_model(model), [layer], {layer.name})
    onnx.checker.check_model(opened.proto, full_check=True)
    own = inputs[layer.name]
    weights = own.arranged(read_weight(source, layer))
    correction = normal(6, seed=5)
    adjustments = [Adjustment(correction.astype(np.float64))] * len(layer.sites)
    corrections = own.corrected(adjustments)
    assert {name: array.shape for name, array in (weights | corrections).items()} == own.shapes()
    other = with_addition(model, correction.reshape(SHAPES[case]))
    for feed in feeds:
        plain = run(opened.proto, weights | own.corrected() | feed)
        for found, expected in zip(plain, run(model, feed), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        changed = run(opened.proto, weights | corrections | feed)
        for found, expected in zip(changed, run(other, feed), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_each_site_has_its_own() -> None:
    """Two nodes share a weight, and each sees other inputs."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"], name="one"),
        helper.make_node("MatMul", ["z", "W"], ["v"], name="two"),
    ]
    weight = normal(8, 6, seed=1)
    feed = {"x": normal(4, 8), "z": normal(3, 8, seed=2)}
    model = model_of(nodes, feed, ["y", "v"], {"W": weight})
    source = open_model(model)
    (layer,) = find_layers(source)
    opened, inputs = open_weights(open_model(model), [layer], {layer.name})
    one, two = normal(6, seed=3), normal(6, seed=4)
    own = inputs[layer.name]
    for first, second in ((one, two), (one, None), (None, two)):
        arrays = own.corrected([Adjustment(first), Adjustment(second)])
        y, v = run(opened.proto, own.arranged(weight) | arrays | feed)
        for found, x, added in ((y, feed["x"], first), (v, feed["z"], second)):
            expected = x @ weight + (0 if added is None else added)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["stack", "matmul"])
def test_nothing_is_added_that_has_no_correction(case: str) -> None:
    """A stack has more than one output a row; of the matrix, no corrections were asked for."""
    model, _ = CASES[case]()
    (layer,) = find_layers(open_model(model))
    corrected = {layer.name} if case == "stack" else set[str]()
    opened, inputs = open_weights(open_model(model), [layer], corrected)
    assert not inputs[layer.name].corrected()
    assert len(opened.proto.graph.node) == len(model.graph.node)
