"""Layers inside subgraphs and functions: rewritten where they are, whatever they capture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxlr
from onnxlr.layers import Layer, find_layers
from onnxlr.model import open_model
from onnxlr.model.scopes import scopes
from tests.fixtures import svd_plan
from tests.onelayer import LEVELS, Array, distance, run, truncated

pytestmark = pytest.mark.filterwarnings("ignore:.*written because the plan says so")

ANY = "cosine>=-1"
RANK = 2
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 16)).astype(np.float32)
YES, NO = np.array(True), np.array(False)


def weight(seed: int, rows: int = 16, columns: int = 16) -> Array:
    """Return a matrix with well separated singular values."""
    u, _, vt = np.linalg.svd(np.random.default_rng(seed).standard_normal((rows, columns)))
    least = min(rows, columns)
    values = 2.0 ** -np.arange(least)
    return np.asarray(u[:, :least] * values @ vt[:least]).astype(np.float32)


A, B = weight(1), weight(2)
A2, B2 = truncated(A, RANK), truncated(B, RANK)


def value(name: str, shape: Sequence[Any] | None = (3, 16), kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), outputs.split(), name, **attributes)


def stored(array: Array, name: str) -> TensorProto:
    return numpy_helper.from_array(array, name)


def constant(array: Array, name: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=stored(array, name))


def graph(
    nodes: list[Any], outputs: list[Any], inputs: Sequence[Any] = (), initializers: Any = ()
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "g", list(inputs), outputs, list(initializers))


def whole(
    nodes: list[Any],
    initializers: Any = (),
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] | None = None,
    functions: Sequence[Any] = (),
) -> onnx.ModelProto:
    main = graph(
        nodes,
        list(outputs or [value("y")]),
        [value("x"), *inputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", 17)]
    opsets += [helper.make_opsetid("own", 1)] * bool(functions)
    model = helper.make_model(main, opset_imports=opsets, ir_version=8, functions=list(functions))
    onnx.checker.check_model(model, full_check=True)
    return model


CONDITION = value("condition", [], TensorProto.BOOL)


def either(then: onnx.GraphProto, other: onnx.GraphProto, result: str = "y") -> onnx.NodeProto:
    return node("If", "condition", result, "either", then_branch=then, else_branch=other)


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    return find_layers(open_model(model))


def change(model: onnx.ModelProto, folder: Path, feeds: Sequence[dict[str, Array]]) -> Any:
    """Rewrite every layer at the rank, prove it, and return the checked result."""
    names = [layer.name for layer in layers_of(model) if layer.skip is None]
    data = list(feeds)
    output = folder / "out.onnx"
    result = onnxlr.rewrite(
        model, output, plan=svd_plan(names, RANK), data=data, isolate=False, tolerance=ANY
    )
    assert result.report is not None
    assert result.report.passed
    emission = [check for check in result.report.checks if check.proof == "emission"]
    assert len(emission) == 2
    assert all(c.relative_l2 <= 1e-5 for check in emission for c in check.comparisons)
    report = onnxlr.verify(model, output, data=data, isolate=False, tolerance=ANY)
    assert report.passed
    assert len(report.checks) == 4  # the plan inside it makes the emission proof again
    # no approximation holds this: the drift is asked for, wherever the layers are
    strict = onnxlr.verify(model, output, data=data, isolate=False, tolerance="relative_l2<=1e-9")
    assert not strict.passed
    sites = [site for layer in layers_of(model) for site in layer.sites]
    assert {drift.layer for drift in strict.drifts} == {s.label for s in sites if s.scope == 0}
    changed = onnx.load(output)
    onnx.checker.check_model(changed, full_check=True)
    _value_infos_are_right(changed)
    return changed


def _value_infos_are_right(model: onnx.ModelProto) -> None:
    """Every value info is of a tensor in its graph, and what shape inference finds itself."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for scope in scopes(bare):
        if isinstance(scope.graph, onnx.GraphProto):
            del scope.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    for said, found in zip(scopes(model), scopes(inferred), strict=True):
        if not isinstance(said.graph, onnx.GraphProto):
            continue
        made = {name for n in said.graph.node for name in n.output}
        known = {v.name: v.type for v in found.graph.value_info}
        assert {v.name for v in said.graph.value_info} <= made
        for info in said.graph.value_info:
            assert info.name not in known or known[info.name] == info.type


def expect(model: onnx.ModelProto, feeds: dict[str, Array], *expected: Array) -> None:
    """Compare the outputs in ONNX Runtime, optimised or not, with other computations."""
    for level in LEVELS:
        for found, wanted in zip(run(model, feeds, level), expected, strict=True):
            assert found.shape == wanted.shape
            assert distance(found, wanted) < 1e-5


def weights_left(model: onnx.ModelProto, *arrays: Array) -> list[bool]:
    """Return whether each array is still stored anywhere in the model."""
    content = model.SerializeToString()
    return [array.tobytes() in content for array in arrays]


# -- If ----------------------------------------------------------------------------------------

BOTH = [{"x": X, "condition": YES}, {"x": X, "condition": NO}]


def _branch(operand: str, *extra: Any, initializers: Any = ()) -> onnx.GraphProto:
    nodes = [*extra, node("MatMul", f"x {operand}", "r", "fc")]
    return graph(nodes, [value("r")], initializers=initializers)


BRANCHES = {
    "initializer": lambda array: _branch("W", initializers=[stored(array, "W")]),
    "Constant": lambda array: _branch("W", constant(array, "W")),
    "behind moves": lambda array: _branch(
        "V", constant(array.T.copy(), "W"), node("Transpose", "W", "V", perm=[1, 0])
    ),
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_both_branches_use_the_same_names_for_different_tensors(kind: str, tmp_path: Path) -> None:
    model = whole([either(BRANCHES[kind](A), BRANCHES[kind](B))], inputs=[CONDITION])
    first, second = layers_of(model)
    assert (first.name, second.name) == ("fc", "fc#2")
    assert first.nodes == ("fc in else_branch of If 'either'",)  # make_node sorts attributes
    assert second.nodes == ("fc in then_branch of If 'either'",)
    changed = change(model, tmp_path, BOTH)
    expect(changed, BOTH[0], X @ A2)
    expect(changed, BOTH[1], X @ B2)
    assert weights_left(model, A if kind != "behind moves" else A.T.copy()) == [True]
    assert weights_left(changed, A, B, A.T.copy(), B.T.copy()) == [False] * 4
    for branch in changed.graph.node[0].attribute:
        assert [n.op_type for n in branch.g.node] == ["MatMul", "MatMul"]
        assert not branch.g.initializer


def test_one_branch_alone_is_rewritten(tmp_path: Path) -> None:
    """The other branch, with the same names in it, stays as it was to the byte."""
    other = BRANCHES["initializer"](B)
    model = whole([either(BRANCHES["initializer"](A), other)], inputs=[CONDITION])
    result = onnxlr.rewrite(
        model,
        tmp_path / "out.onnx",
        plan=svd_plan(["fc#2"], RANK),
        data=BOTH,
        isolate=False,
        tolerance=ANY,
    )
    assert result.report is not None
    assert result.report.passed
    changed = onnx.load(tmp_path / "out.onnx")
    expect(changed, BOTH[0], X @ A2)
    expect(changed, BOTH[1], X @ B)
    (after,) = [a.g for a in changed.graph.node[0].attribute if a.name == "else_branch"]
    assert after == other


def test_one_weight_in_the_main_graph_and_both_branches(tmp_path: Path) -> None:
    """One layer, also where a branch turns the weight round."""
    turned = graph(
        [node("Transpose", "W", "T", perm=[1, 0]), node("Gemm", "x T", "r", "g", transB=1)],
        [value("r")],
    )
    model = whole(
        [node("MatMul", "x W", "z", "top"), either(_branch("W"), turned)],
        [stored(A, "W")],
        [CONDITION],
        [value("z"), value("y")],
    )
    (layer,) = layers_of(model)
    assert len(layer.sites) == 3
    assert not layer.other_uses
    changed = change(model, tmp_path, BOTH)
    expect(changed, BOTH[0], X @ A2, X @ A2)
    expect(changed, BOTH[1], X @ A2, X @ A2)
    assert weights_left(changed, A, A.T.copy()) == [False, False]
    sizes = [numpy_helper.to_array(t).size for t in changed.graph.initializer]
    assert sizes == [16 * RANK] * 2  # written once


def test_a_branch_that_uses_the_weight_otherwise_keeps_it(tmp_path: Path) -> None:
    other = graph([node("ReduceMax", "W", "m"), node("Add", "x m", "r")], [value("r")])
    model = whole([either(_branch("W"), other)], [stored(A, "W")], [CONDITION])
    (layer,) = layers_of(model)
    assert layer.other_uses == ("ReduceMax 'm' in else_branch of If 'either'",)
    changed = change(model, tmp_path, BOTH)
    expect(changed, BOTH[0], X @ A2)
    expect(changed, BOTH[1], X + A.max())
    assert weights_left(changed, A) == [True]


def test_moves_outside_and_inside_of_a_branch(tmp_path: Path) -> None:
    """The way from the weight to its node crosses into the branch; all of it goes."""
    inside = graph(
        [node("Reshape", "T shape", "V"), node("MatMul", "x V", "r", "fc")], [value("r")]
    )
    same = graph([node("Identity", "x", "r")], [value("r")])
    model = whole(
        [node("Transpose", "W", "T", perm=[1, 0]), either(inside, same)],
        [stored(np.ascontiguousarray(A.T), "W"), stored(np.array([16, -1]), "shape")],
        [CONDITION],
    )
    changed = change(model, tmp_path, BOTH)
    expect(changed, BOTH[0], X @ A2)
    expect(changed, BOTH[1], X)
    assert [n.op_type for n in changed.graph.node] == ["If"]
    assert not {"W", "shape"} & {t.name for t in changed.graph.initializer}


def test_three_levels_down(tmp_path: Path) -> None:
    """At every level another weight, and the outermost one at all of them."""

    def level(depth: int) -> onnx.GraphProto:
        local = stored(weight(10 + depth), f"local {depth}".replace(" ", ""))
        nodes = [
            node("MatMul", f"x local{depth}", "a" * (depth + 1), f"own{depth}"),
            node("MatMul", f"{'a' * (depth + 1)} W", "b" * (depth + 1), f"shared{depth}"),
        ]
        last = "b" * (depth + 1)
        if depth < 3:
            inner = level(depth + 1)
            nodes.append(
                helper.make_node(
                    "If",
                    ["condition"],
                    [f"deep{depth}"],
                    f"if{depth}",
                    then_branch=inner,
                    else_branch=graph([node("Identity", last, "i")], [value("i")]),
                )
            )
            nodes.append(node("Add", f"{last} deep{depth}", f"sum{depth}"))
            last = f"sum{depth}"
        return graph(nodes, [value(last)], initializers=[local])

    deep = level(1)
    same = graph([node("Identity", "x", "i")], [value("i")])
    model = whole([either(deep, same)], [stored(A, "W")], [CONDITION])
    found = layers_of(model)
    assert sorted(len(layer.sites) for layer in found) == [1, 1, 1, 3]
    assert max(label.count(" / ") for layer in found for label in layer.nodes) == 2
    changed = change(model, tmp_path, BOTH)
    y = sum(X @ truncated(weight(10 + depth), RANK) @ A2 for depth in (1, 2, 3))
    expect(changed, BOTH[0], np.asarray(y))
    expect(changed, BOTH[1], X)
    assert not any(weights_left(changed, A, *(weight(10 + d) for d in (1, 2, 3))))


# -- Loop and Scan -----------------------------------------------------------------------------


def _loop(inside: bool) -> onnx.ModelProto:
    body = graph(
        [
            node("MatMul", "state W", "next", "step"),
            node("Identity", "next", "next_copy"),
            node("Identity", "go", "going"),
        ],
        [value("going", [], TensorProto.BOOL), value("next"), value("next_copy")],
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state")],
        [stored(A, "W")] if inside else [],
    )
    return whole(
        [helper.make_node("Loop", ["times", "", "x"], ["y", "all"], "again", body=body)],
        [stored(np.array(3), "times"), *([] if inside else [stored(A, "W")])],
        outputs=[value("y"), value("all", [3, 3, 16])],
    )


@pytest.mark.parametrize("inside", [True, False], ids=["stored inside", "captured"])
def test_a_loop(inside: bool, tmp_path: Path) -> None:
    model = _loop(inside)
    changed = change(model, tmp_path, [{"x": X}])
    steps = [X @ A2, X @ A2 @ A2, X @ A2 @ A2 @ A2]
    expect(changed, {"x": X}, steps[-1], np.stack(steps))
    assert weights_left(model, A) == [True]
    assert weights_left(changed, A) == [False]


@pytest.mark.parametrize("inside", [True, False], ids=["stored inside", "captured"])
def test_a_scan(inside: bool, tmp_path: Path) -> None:
    body = graph(
        [
            node("Unsqueeze", "row axes", "flat"),
            node("Gemm", "flat W state", "next", "step", transB=1),
            node("Identity", "next", "copy"),
        ],
        [value("next", [1, 16]), value("copy", [1, 16])],
        [value("state", [1, 16]), value("row", [16])],
        [stored(A, "W")] if inside else [],
    )
    model = whole(
        [node("Scan", "start x", "y all", "over", body=body, num_scan_inputs=1)],
        [
            stored(np.zeros((1, 16), np.float32), "start"),
            stored(np.array([0]), "axes"),
            *([] if inside else [stored(A, "W")]),
        ],
        outputs=[value("y", [1, 16]), value("all", [3, 1, 16])],
    )
    changed = change(model, tmp_path, [{"x": X}])
    sums = np.cumsum(X.astype(np.float64) @ A2.T, axis=0)[:, None]
    expect(changed, {"x": X}, sums[-1], sums)
    assert weights_left(changed, A) == [False]
    (scan,) = changed.graph.node
    (body_after,) = [a.g for a in scan.attribute if a.name == "body"]
    assert [n.op_type for n in body_after.node][-2:] == ["Gemm", "Identity"]
    assert body_after.input == body.input


# -- Functions ---------------------------------------------------------------------------------


def function(nodes: list[Any], opset: int = 17, attributes: Sequence[str] = ()) -> Any:
    return helper.make_function(
        "own", "F", ["a"], ["b"], nodes, [helper.make_opsetid("", opset)], attributes
    )


def call(inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("F", [inputs], [output], domain="own", **attributes)


@pytest.mark.parametrize("opset", [14, 17, 18])
def test_a_function_that_is_called_twice(opset: int, tmp_path: Path) -> None:
    """Its body is rewritten once, by the operators of its own opset.

    The checker wants a function's operators to be the same at the model's opset.
    """
    body = [
        constant(np.ascontiguousarray(A.T), "W"),
        constant(np.array([0]), "axes"),
        node("Transpose", "W", "T", perm=[1, 0]),
        node("Unsqueeze", "T axes", "U"),
        node("Squeeze", "U axes", "V"),
        node("MatMul", "a V", "b", "fc"),
    ]
    model = whole([call("x", "h"), call("h", "y")], functions=[function(body, opset)])
    (layer,) = layers_of(model)
    assert layer.skip is None
    assert layer.nodes == ("fc in function 'own:F'",)
    assert layer.sites[0].operand.opset == opset
    changed = change(model, tmp_path, [{"x": X}])
    expect(changed, {"x": X}, X @ A2 @ A2)
    (found,) = ReferenceEvaluator(changed).run(None, {"x": X})
    assert distance(found, X @ A2 @ A2) < 1e-5
    (after,) = changed.functions
    assert [n.op_type for n in after.node] == ["Constant", "Constant", "MatMul", "MatMul"]
    assert list(changed.graph.node) == list(model.graph.node)
    assert not changed.graph.initializer


def test_attributes_that_are_parameters() -> None:
    gemm = node("Gemm", "a W", "b", "fc")
    gemm.attribute.add(name="alpha", ref_attr_name="factor", type=onnx.AttributeProto.FLOAT)
    model = whole(
        [call("x", "y", factor=2.0)],
        functions=[function([constant(A, "W"), gemm], attributes=["factor"])],
    )
    (layer,) = layers_of(model)
    assert layer.skip == "its attributes are parameters of the function it is in"


def test_moves_whose_attributes_are_parameters() -> None:
    """What the weight is depends on the call: the node is no layer that can be rewritten."""
    turn = node("Transpose", "W", "V")
    turn.attribute.add(name="perm", ref_attr_name="order", type=onnx.AttributeProto.INTS)
    body = [constant(A, "W"), turn, node("MatMul", "a V", "b", "fc")]
    model = whole([call("x", "y", order=[1, 0])], functions=[function(body, attributes=["order"])])
    (layer,) = layers_of(model)
    assert layer.skip == "its weight is moved by parameters of the function it is in"


def test_a_constant_that_is_a_parameter() -> None:
    held = helper.make_node("Constant", [], ["W"])
    held.attribute.add(name="value", ref_attr_name="held", type=onnx.AttributeProto.TENSOR)
    body = [held, node("MatMul", "a W", "b", "fc")]
    model = whole(
        [call("x", "y", held=stored(A, "W"))], functions=[function(body, attributes=["held"])]
    )
    (layer,) = layers_of(model)
    assert layer.skip == "its weight is a Constant node with value, not a dense tensor"


def test_a_subgraph_inside_a_function(tmp_path: Path) -> None:
    """A weight of the function used in it and in a branch: one of them, the weight stays."""
    then = graph([node("MatMul", "a W", "r", "inner")], [value("r")])
    other = graph([constant(B, "V"), node("MatMul", "a V", "r", "local")], [value("r")])
    body = [
        constant(A, "W"),
        node("MatMul", "a W", "h", "outer"),
        node("ReduceMax", "a", "most", keepdims=0),
        node("Greater", "most most", "never"),
        helper.make_node("If", ["never"], ["c"], "if", then_branch=then, else_branch=other),
        node("Add", "h c", "b"),
    ]
    model = whole([call("x", "y")], functions=[function(body)])
    found = {layer.name: layer.skip for layer in layers_of(model)}
    assert found["outer"] is found["local"] is None
    assert "another way" in str(found["inner"])
    changed = change(model, tmp_path, [{"x": X}])
    expect(changed, {"x": X}, X @ A2 + X @ B2)
    assert weights_left(changed, A, B) == [True, False]


# -- Training ----------------------------------------------------------------------------------


def test_training_information_is_untouched(tmp_path: Path) -> None:
    """Its own products are no layers, and a weight that it uses stays."""
    model = whole(
        [node("MatMul", "x W", "h", "one"), node("MatMul", "h V", "y", "two")],
        [stored(A, "W"), stored(B, "V")],
    )
    training = model.training_info.add()
    training.algorithm.CopyFrom(
        graph(
            [
                constant(A, "step"),
                node("MatMul", "W step", "moved", "train"),
                node("LSTM", "seq w r", "o", "recurrent", hidden_size=2),
            ],
            [value("moved", [16, 16]), value("o", None)],
            initializers=[
                stored(np.zeros((1, 1, 3), np.float32), "seq"),
                stored(np.zeros((1, 8, 3), np.float32), "w"),
                stored(np.zeros((1, 8, 2), np.float32), "r"),
            ],
        )
    )
    training.update_binding.add(key="W", value="moved")
    onnx.checker.check_model(model)
    one, two = layers_of(model)
    assert (one.name, two.name) == ("one", "two")
    assert one.other_uses
    assert not two.other_uses
    names = ["one", "two"]
    onnxlr.rewrite(
        model, tmp_path / "out.onnx", plan=svd_plan(names, RANK), isolate=False, tolerance=ANY
    )
    changed = onnx.load(tmp_path / "out.onnx")
    assert changed.training_info == model.training_info
    assert {t.name for t in changed.graph.initializer} >= {"W"}
    assert "V" not in {t.name for t in changed.graph.initializer}
    del changed.training_info[:]  # ONNX Runtime does not read it
    expect(changed, {"x": X}, X @ A2 @ B2)
