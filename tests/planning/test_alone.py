"""Small models of one layer: what they compute, and the shape of their data."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxlr.calibration import Sources
from onnxlr.layers import find_layers, read_weight
from onnxlr.methods import Setting, Svd, SvdOptions, find_method
from onnxlr.model import Model, open_model
from onnxlr.plan import Choice, Proposal
from onnxlr.planning.alone import (
    Alone,
    Data,
    data_shape,
    sizes_of_symbols,
    write_alone,
    write_original,
)
from onnxlr.stages import Adjustment
from tests.onelayer import distance, model_of
from tests.onelayer import run as run_model

Array = np.ndarray[Any, Any]


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def proposal_of(model: Model, rank: int = 3, format: str | None = None) -> Proposal:
    """Return the model's only layer, factorized."""
    (layer,) = (layer for layer in find_layers(model) if layer.skip is None)
    tensor = layer.weight.tensor
    weight = layer.sites[0].canonical(layer.sites[0].operand.values(model.read(tensor)))
    chain = Svd().factorize(weight, SvdOptions(rank=rank), Setting.for_layer(layer, format))
    return Proposal(layer, Choice("svd", SvdOptions(rank=rank), format=format), chain)


def alone(model: onnx.ModelProto, **options: Any) -> tuple[Alone, Proposal]:
    opened = open_model(model)
    proposal = proposal_of(opened, **options)
    return write_alone(proposal, opened, "onnx", {}), proposal


def matmul(first: str, second: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [first, second], ["y"], "layer")


CASES: dict[str, tuple[onnx.NodeProto, Array, Array, Any]] = {
    "x @ W": (matmul("x", "w"), normal(2, 5, 12), normal(12, 7), lambda x, w: x @ w),
    "W @ x": (matmul("w", "x"), normal(12, 5), normal(7, 12), lambda x, w: w @ x),
    "a vector": (matmul("x", "w"), normal(12), normal(12, 7), lambda x, w: x @ w),
    "stack": (matmul("x", "w"), normal(3, 5, 12), normal(3, 12, 7), lambda x, w: x @ w),
    "Gemm": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], "layer", transB=1),
        normal(5, 12),
        normal(7, 12),
        lambda x, w: x @ w.T,
    ),
    "Gemm, data transposed": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], "layer", transA=1),
        normal(12, 5),
        normal(12, 7),
        lambda x, w: x.T @ w,
    ),
    "Conv": (
        helper.make_node("Conv", ["x", "w", "b"], ["y"], "layer", pads=[1, 1, 1, 1], group=2),
        normal(1, 12, 6, 5),
        normal(8, 6, 3, 3),
        None,
    ),
    "ConvTranspose": (
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], "layer", strides=[2, 2]),
        normal(1, 12, 6, 5),
        normal(12, 8, 3, 3),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_small_model_computes_what_the_layer_does(case: str) -> None:
    """The bias of the original is zero, as that of the small model."""
    node, x, weight, product = CASES[case]
    constants = {"w": weight}
    if "b" in node.input:
        outputs = 8 if node.op_type == "Conv" else 7
        constants["b"] = np.zeros(outputs, np.float32)
    model = model_of([node], {"x": x}, ["y"], constants)
    small, proposal = alone(model)
    assert small.shape == x.shape
    assert small.data == "x"
    (found,) = run_model(small.model.proto, {"x": x})
    approximation = proposal.chain.reconstruct().astype(np.float32)
    stored = proposal.layer.sites[0].arranged(approximation)
    if product is not None:
        expected = product(x, stored)
    else:
        constants["w"] = stored
        (expected,) = run_model(model_of([node], {"x": x}, ["y"], constants), {"x": x})
    assert distance(found, expected) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_original_alone_computes_what_the_model_does(case: str) -> None:
    """The bias of the model is zero, as that of the small model."""
    node, x, weight, _ = CASES[case]
    constants = {"w": weight}
    if "b" in node.input:
        constants["b"] = np.zeros(8 if node.op_type == "Conv" else 7, np.float32)
    model = model_of([node], {"x": x}, ["y"], constants)
    opened = open_model(model)
    small = write_original(find_layers(opened)[0], opened, {})
    assert (small.shape, small.data, small.rows) == (x.shape, "x", None)
    assert [n.op_type for n in small.model.proto.graph.node] == [node.op_type]
    (found,), (expected,) = (run_model(m, {"x": x}) for m in (small.model.proto, model))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_original_whose_weight_is_moved_and_cast_first(dtype: str) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Cast", ["t"], ["c"], to=TensorProto.FLOAT),
        matmul("x", "c"),
    ]
    x, w = normal(5, 12), normal(7, 12, dtype=dtype)
    model = open_model(model_of(nodes, {"x": x}, ["y"], {"w": w}))
    small = write_original(find_layers(model)[0], model, {})
    (found,) = run_model(small.model.proto, {"x": x})
    assert distance(found, x @ w.T.astype(np.float32)) < 1e-6


def test_a_bias_is_left_out_of_the_original() -> None:
    node = helper.make_node("Gemm", ["w", "x", "b"], ["y"], "layer", alpha=0.5)
    x, w = normal(12, 5), normal(7, 12)
    model = open_model(model_of([node], {"x": x}, ["y"], {"w": w, "b": normal(7, 1)}))
    small = write_original(find_layers(model)[0], model, {})
    (found,) = run_model(small.model.proto, {"x": x})
    assert distance(found, 0.5 * w @ x) < 1e-6


@pytest.mark.parametrize(
    ("bias", "first", "is_part"),
    [
        (normal(7), False, True),
        (normal(7), True, True),
        (normal(1, 7), False, True),
        (normal(1), False, False),
        (None, False, False),
    ],
)
def test_the_node_that_adds_a_bias_is_part_of_both(bias: Any, first: bool, is_part: bool) -> None:
    """Its numbers are zeros, so that a bias correction is all that is added."""
    add = helper.make_node("Add", ["b", "p"] if first else ["p", "b"], ["y"])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], "layer"), add]
    x, w, correction = normal(5, 12), normal(12, 7), normal(7, seed=5)
    inputs = {"x": x} if bias is not None else {"x": x, "b": normal(7)}
    constants = {"w": w} if bias is None else {"w": w, "b": bias}
    model = open_model(model_of(nodes, inputs, ["y"], constants))
    plain = proposal_of(model)
    fixed = Proposal(plain.layer, plain.choice, plain.chain, (Adjustment(correction),))
    original = write_original(plain.layer, model, {})
    assert len(original.model.proto.graph.node) == 1 + is_part
    dense = plain.chain.reconstruct().astype(np.float32)
    for small, expected in (
        (original, x @ w),
        (write_alone(plain, model, "onnx", {}), x @ dense),
        (write_alone(fixed, model, "onnx", {}), x @ dense + correction),
    ):
        (found,) = run_model(small.model.proto, {"x": x})
        assert distance(found, expected) < 1e-5
    structures = {write_alone(p, model, "onnx", {}).structure for p in (plain, fixed)}
    assert len(structures) == (1 if is_part else 2)


def test_the_model_of_a_layer_is_left_as_it_was() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "layer"),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    constants = {"w": normal(12, 7), "b": normal(7)}
    model = open_model(model_of(nodes, {"x": normal(5, 12)}, ["y"], constants))
    before = model.proto.SerializeToString()
    proposal = proposal_of(model)
    write_original(proposal.layer, model, {})
    write_alone(proposal, model, "onnx", {})
    assert model.proto.SerializeToString() == before


# --- tables --------------------------------------------------------------------------------------


def table_of(indices: Any, dims: Any = ("n", "m")) -> Model:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(indices))
    x = helper.make_tensor_value_info("x", kind, dims)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (*dims, 64))
    node = helper.make_node("Gather", ["t", "x"], ["y"], "layer")
    weight = onnx.numpy_helper.from_array(normal(40, 64), "t")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    opsets = [helper.make_opsetid("", 17)]
    return open_model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def quantized(model: Model, format: str) -> Proposal:
    (layer,) = find_layers(model)
    method, setting = find_method("quantize"), Setting.for_layer(layer, format)
    chain = method.factorize(read_weight(model, layer), method.options(), setting)
    return Proposal(layer, Choice("quantize", format=format), chain)


@pytest.mark.parametrize("indices", [np.int64, np.int32])
@pytest.mark.parametrize("format", [None, "int8", "int4"])
def test_tables_take_rows_by_random_indices(indices: Any, format: str | None) -> None:
    model = table_of(indices)
    proposal = quantized(model, format or "int8")
    if format is None:
        small = write_original(proposal.layer, model, {"n": 1})
        rows = normal(40, 64)
    else:
        small = write_alone(proposal, model, "onnx", {"n": 1})
        rows = proposal.chain.reconstruct()
    feed = small.feed()["x"]
    assert (small.shape, small.dtype, small.rows) == ((1, 32), np.dtype(indices), 40)
    assert (feed.shape, feed.dtype) == ((1, 32), np.dtype(indices))
    assert 0 <= feed.min() < feed.max() < 40
    assert len(np.unique(feed)) > 10
    (found,) = run_model(small.model.proto, {"x": feed})
    assert distance(found, rows[feed]) < 1e-5


@pytest.mark.parametrize(
    ("dims", "sizes", "expected"),
    [
        ((None, None), {}, (1, 32)),
        (("n", "m"), {"m": 9}, (1, 9)),
        ((None,), {}, (32,)),
        ((3, 5, None), {}, (3, 5, 32)),
        ((), {}, ()),
    ],
)
def test_shapes_of_indices(dims: Any, sizes: Any, expected: Any) -> None:
    (layer,) = find_layers(table_of(np.int64, dims))
    assert data_shape(layer, sizes) == expected


# --- data that was seen --------------------------------------------------------------------------


def test_data_that_was_seen_is_declared_as_the_model_does() -> None:
    """As far as that is true: a size that is another in some run is not declared."""
    model = model_of([matmul("x", "w")], {"x": normal(2, 9, 12)}, ["y"], {"w": normal(12, 7)})
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    opened = open_model(model)
    proposal = proposal_of(opened)
    for seen, declared in (
        (((4, 9, 12),), ["batch", 9, 12]),
        (((4, 9, 12), (3, 5, 12)), ["batch", None, 12]),
        (((3, 5, 12),), ["batch", None, 12]),
    ):
        data = Data(seen, np.dtype(np.float32))
        small = write_alone(proposal, opened, "onnx", {}, data)
        original = write_original(proposal.layer, opened, {}, data)
        assert small.shape == original.shape == seen[0]
        for alone in (small, original):
            dims = alone.model.proto.graph.input[0].type.tensor_type.shape.dim
            assert [d.dim_param or d.dim_value or None for d in dims] == declared
            for shape in seen:
                assert run_model(alone.model.proto, {"x": normal(*shape)})[0].shape[:2] == shape[:2]


def test_data_of_a_rank_that_is_not_the_declared_one() -> None:
    opened = open_model(
        model_of([matmul("x", "w")], {"x": normal(5, 12)}, ["y"], {"w": normal(12, 7)})
    )
    data = Data(((2, 5, 12),), np.dtype(np.float32))
    small = write_original(find_layers(opened)[0], opened, {}, data)
    assert run_model(small.model.proto, small.feed())[0].shape == (2, 5, 7)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types(dtype: str) -> None:
    x = normal(5, 12, dtype=dtype)
    small, _ = alone(
        model_of([matmul("x", "w")], {"x": x}, ["y"], {"w": normal(12, 7, dtype=dtype)})
    )
    assert small.feed()["x"].dtype == dtype
    (found,) = run_model(small.model.proto, small.feed())
    assert (found.dtype, found.shape) == (np.dtype(dtype), (5, 7))


def test_a_bias_that_is_no_constant_becomes_one() -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "layer")
    inputs = {"x": normal(5, 12), "b": normal(7)}
    small, _ = alone(model_of([node], inputs, ["y"], {"w": normal(12, 7)}))
    assert [value.name for value in small.model.proto.graph.input] == ["x"]
    assert run_model(small.model.proto, small.feed())[0].shape == (5, 7)


@pytest.mark.parametrize("opset", [7, 9, 13])
def test_opsets_and_old_ir_versions(opset: int) -> None:
    x = normal(5, 12)
    node = matmul("x", "w")
    model = model_of([node], {"x": x}, ["y"], {"w": normal(12, 7)}, opset, 3 if opset < 9 else None)
    small, _ = alone(model)
    assert run_model(small.model.proto, small.feed())[0].shape == (5, 7)
    assert small.model.opset == opset


def test_a_ternary_layer_runs_by_its_functions() -> None:
    model = open_model(
        model_of([matmul("x", "w")], {"x": normal(5, 12)}, ["y"], {"w": normal(12, 7)})
    )
    proposal = proposal_of(model)
    method = find_method("ternary")
    weight = normal(12, 7)
    setting = Setting.for_layer(proposal.layer, "ternary")
    chain = method.factorize(weight, method.options(), setting)
    ternary = Proposal(proposal.layer, Choice("ternary", activations="dynamic_int8"), chain)
    small = write_alone(ternary, model, "onnxlr", {})
    assert small.model.proto.functions
    assert run_model(small.model.proto, small.feed())[0].shape == (5, 7)


def test_in_a_branch_the_shape_is_not_known() -> None:
    branch = [
        helper.make_node("MatMul", ["x", "w"], ["then"], "layer"),
    ]
    then = helper.make_graph(branch, "t", [], [helper.make_tensor_value_info("then", 1, None)])
    other = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["else"])],
        "e",
        [],
        [helper.make_tensor_value_info("else", 1, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other)
    inputs = {"x": normal(5, 12), "z": normal(5, 7), "c": np.array(True)}
    small, _ = alone(model_of([node], inputs, ["y"], {"w": normal(12, 7)}))
    assert small.shape[-1] == 12
    assert run_model(small.model.proto, small.feed())[0].shape == (*small.shape[:-1], 7)


# --- shapes --------------------------------------------------------------------------------------


def shape_of(dims: Any, node: onnx.NodeProto, weight: Array, sizes: dict[str, int]) -> Any:
    """Return the shape for data that is declared with these dimensions."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    opsets = [helper.make_opsetid("", 17)]
    model = open_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), check=False)
    (layer,) = find_layers(model)
    return data_shape(layer, sizes)


CONV = helper.make_node("Conv", ["x", "w"], ["y"], "layer", group=2)
FAR = helper.make_node("Conv", ["x", "w"], ["y"], "layer", dilations=[20])
SCATTER = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "layer", group=2)


@pytest.mark.parametrize(
    ("dims", "node", "weight", "sizes", "expected"),
    [
        ([3, 9, 12], matmul("x", "w"), (12, 7), {}, (3, 9, 12)),
        (["batch", "seq", 12], matmul("x", "w"), (12, 7), {}, (1, 32, 12)),
        (["batch", "seq", 12], matmul("x", "w"), (12, 7), {"batch": 1, "seq": 77}, (1, 77, 12)),
        ([None, None, None], matmul("x", "w"), (12, 7), {}, (1, 32, 12)),
        ([None, 12], matmul("x", "w"), (12, 7), {}, (32, 12)),
        (["n", 12], matmul("x", "w"), (12, 7), {"n": 1}, (1, 12)),
        (None, matmul("x", "w"), (12, 7), {}, (32, 12)),
        (None, matmul("w", "x"), (7, 12), {}, (12, 32)),
        ([None, 12, None], matmul("w", "x"), (7, 12), {}, (1, 12, 32)),
        ([12], matmul("w", "x"), (7, 12), {}, (12,)),
        (["n", 12, "h", 40], CONV, (8, 6, 3, 3), {"h": 20}, (1, 12, 20, 40)),
        (None, CONV, (8, 6, 3, 3), {}, (1, 12, 32, 32)),
        ([None, None, None], FAR, (8, 6, 5), {}, (1, 6, 81)),
        (["n", 12, None, None], SCATTER, (12, 4, 3, 3), {}, (1, 12, 32, 32)),
        ([0, 12], matmul("x", "w"), (12, 7), {}, (1, 12)),
    ],
)
def test_shapes_of_data(
    dims: Any, node: Any, weight: tuple[int, ...], sizes: dict[str, int], expected: Any
) -> None:
    assert shape_of(dims, node, normal(*weight), sizes) == expected


def test_symbols_are_as_large_as_in_the_first_run_and_batches_one() -> None:
    x = normal(4, 9, 12)
    model = model_of([matmul("x", "w")], {"x": x}, ["y"], {"w": normal(12, 7)})
    for axis, name in enumerate(("batch", "seq")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = name
    opened = open_model(model)
    assert sizes_of_symbols(opened, Sources()) == {"batch": 1}
    runs = [{"x": x}, {"x": normal(4, 5, 12)}]
    assert sizes_of_symbols(opened, Sources(runs)) == {"batch": 1, "seq": 9}


# --- structures ----------------------------------------------------------------------------------


def structure(size: int, rank: int, seed: int, name: str = "layer", rows: int = 5) -> str:
    node = helper.make_node("MatMul", [f"{name}.x", f"{name}.w"], ["y"], name)
    inputs = {f"{name}.x": normal(rows, size)}
    model = model_of([node], inputs, ["y"], {f"{name}.w": normal(size, 7, seed=seed)})
    return alone(model, rank=rank)[0].structure


def test_a_structure_knows_no_names_and_no_weights() -> None:
    first = structure(12, 3, seed=0)
    assert structure(12, 3, seed=1, name="other") == first
    others = [structure(12, 2, 0), structure(13, 3, 0), structure(12, 3, 0, rows=6)]
    assert len({first, *others}) == 4


def test_feeds_are_the_same_each_time() -> None:
    small, _ = alone(
        model_of([matmul("x", "w")], {"x": normal(5, 12)}, ["y"], {"w": normal(12, 7)})
    )
    np.testing.assert_array_equal(small.feed()["x"], small.feed()["x"])


def test_structures_know_what_is_declared() -> None:
    """What a runtime makes of a node can depend on it."""
    model = model_of([matmul("x", "w")], {"x": normal(4, 12)}, ["y"], {"w": normal(12, 7)})
    found = set()
    for symbol in ("n", "m", ""):
        for value in (model.graph.input[0], model.graph.output[0]):
            dim = value.type.tensor_type.shape.dim[0]
            dim.dim_value = 4
            if symbol:
                dim.dim_param = symbol
        opened = open_model(model)
        data = Data(((4, 12),), np.dtype(np.float32))
        found.add(write_original(find_layers(opened)[0], opened, {}, data).structure)
    assert len(found) == 2


def test_contents_know_weights_and_no_names() -> None:
    def content(seed: int, name: str) -> str:
        node = helper.make_node("MatMul", [f"{name}.x", f"{name}.w"], ["y"], name)
        constants = {f"{name}.w": normal(12, 7, seed=seed)}
        model = open_model(model_of([node], {f"{name}.x": normal(5, 12)}, ["y"], constants))
        return write_original(find_layers(model)[0], model, {}).content

    assert content(0, "one") == content(0, "other")
    assert content(0, "one") != content(1, "one")
