"""TernaryMatMul in ONNX Runtime, on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.operators.ternary_nodes import Array, close, matmul_node, open_session

SIZES = [(1, 1, 1), (5, 17, 32), (16, 16, 16), (33, 96, 32), (64, 100, 64), (300, 48, 128)]
SHAPES = [(), (1,), (9,), (33,), (2, 3), (2, 1, 3), (0,), (3, 0)]


def data(shape: tuple[int, ...], inputs: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(*shape, inputs)) * rng.uniform(0.1, 10, (*shape, 1))
    return rows.astype(np.float32)


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize(("inputs", "outputs", "group_size"), SIZES)
def test_products(
    isa: str, inputs: int, outputs: int, group_size: int, terms: int, level: int
) -> None:
    node = matmul_node(inputs, outputs, group_size=group_size, terms=terms, level=level)
    session = node.session()
    for shape in SHAPES:
        x = data(shape, inputs)
        close(session.run(None, {"X": x})[0], node.expected(x))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize(
    ("inputs", "outputs", "rows"),
    # many rows; many columns; more rows than one task takes; few panels
    [(96, 200, 400), (512, 1500, 5), (2048, 100, 700), (700, 20, 500)],
)
def test_products_that_are_divided(
    isa: str, inputs: int, outputs: int, rows: int, level: int, threads: int
) -> None:
    if isa == "scalar":
        rows = min(rows, 100)
    node = matmul_node(inputs, outputs, level=level)
    x = data((rows,), inputs)
    close(node.run(x, threads), node.expected(x))


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 200),
    outputs=st.integers(1, 120),
    rows=st.integers(0, 70),
    group_size=st.sampled_from([None, 32, 64, 128]),
    terms=st.integers(1, 8),
    level=st.sampled_from([0, 4]),
    scaled=st.booleans(),
)
def test_any_size(
    inputs: int,
    outputs: int,
    rows: int,
    group_size: int | None,
    terms: int,
    level: int,
    scaled: bool,
) -> None:
    node = matmul_node(
        inputs, outputs, group_size=group_size, terms=terms, level=level, scaled=scaled
    )
    x = data((rows,), inputs)
    close(node.run(x), node.expected(x))


def test_rows_are_rounded_each_by_its_own_range(isa: str) -> None:
    node = matmul_node(64, 32, scaled=False)
    x = data((3,), 64) * np.array([[1e-20], [1], [1e20]], np.float32)
    found, expected = node.run(x), node.expected(x)
    for i in range(3):
        close(found[i], expected[i])


def test_a_row_of_zeros_gives_the_bias(isa: str) -> None:
    node = matmul_node(64, 32)
    found = node.run(np.zeros((2, 64), np.float32))
    np.testing.assert_array_equal(found, np.tile(node.constants["bias"], (2, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(isa: str, bad: float) -> None:
    node = matmul_node(70, 40)
    x = data((5,), 70)
    clean = node.run(x)
    x[2, 69] = bad
    found = node.run(x)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(clean, 2, 0))


def inferred(node_shape: list[object] | None) -> tuple[list[object], bool]:
    """Return the shape ONNX Runtime knows of Y, and whether it runs on two rows."""
    node = matmul_node(32, 20)
    session = open_session(node.model(node_shape))
    ran = session.run(None, {"X": data((2,), 32)})[0].shape == (2, 20)
    return list(session.get_outputs()[0].shape), ran


def test_shapes_are_inferred_with_their_names() -> None:
    assert inferred(["rows", 32]) == (["rows", 20], True)
    assert inferred([2, 32]) == ([2, 20], True)
    shape, ran = inferred([None, 32])
    assert shape[-1] == 20
    assert not isinstance(shape[0], int)
    assert ran


def test_unknown_sizes_are_not_taken_for_equal() -> None:
    """Two nodes after each other whose numbers of rows are unknown share no memory."""
    node = matmul_node(32, 32, level=0, scaled=False)
    proto = onnx.load_from_string(node.model(["n", 32]))
    first, second = proto.graph.node[0], proto.graph.node.add()
    second.CopyFrom(first)
    first.output[0] = "middle"
    pick = helper.make_node("Compress", ["middle", "keep"], ["some"], axis=0)
    second.input[0], second.name = "some", "second"
    proto.graph.node.insert(1, pick)
    proto.graph.input.append(helper.make_tensor_value_info("keep", TensorProto.BOOL, ["n"]))
    x = data((4,), 32)
    keep = np.array([True, False, True, True])
    found = open_session(proto).run(None, {"X": x, "keep": keep})[0]
    close(found, node.expected(node.expected(x)[keep].astype(np.float32)))


def test_weights_of_a_branch() -> None:
    """Initializers of the branch itself are constants in every version of ONNX Runtime."""
    node = matmul_node(32, 20)
    proto = onnx.load_from_string(node.model(["n", 32]))
    constants = list(proto.graph.initializer)

    def branch(name: str) -> onnx.GraphProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(proto.graph.node[0])
        copy.output[0] = copy.name = f"Y_{name}"
        out = helper.make_tensor_value_info(copy.output[0], TensorProto.FLOAT, None)
        own = [
            numpy_helper.from_array(numpy_helper.to_array(c), f"{name}_{c.name}") for c in constants
        ]
        copy.input[1:] = [c.name for c in own]
        return helper.make_graph([copy], name, [], [out], own)

    choose = helper.make_node(
        "If", ["condition"], ["Y"], then_branch=branch("then"), else_branch=branch("else")
    )
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    graph = helper.make_graph(
        [choose], "graph", [*proto.graph.input, condition], list(proto.graph.output)
    )
    model = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=8)
    x = data((3,), 32)
    for value in (True, False):
        found = open_session(model).run(None, {"X": x, "condition": np.array(value)})[0]
        close(found, node.expected(x))
