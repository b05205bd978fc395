"""The tensors a rewrite adds: their stated types, and where IR version 3 wants them listed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

import onnxlr
from tests.fixtures import RELEASED, runnable_model, svd_plan

Shape = tuple[int | str, ...]


def one_node(
    operator: str,
    weight: tuple[int, ...],
    data: Shape,
    result: Shape,
    *,
    left: bool = False,
    ir_version: int = 8,
    opset: int = 13,
    constant: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model `y = operator(x, W)`, or `operator(W, x)`."""
    values = np.random.default_rng(1).standard_normal(weight).astype(np.float32)
    tensor = numpy_helper.from_array(values, "W")
    inputs = ["W", "x"] if left else ["x", "W"]
    node = helper.make_node(operator, inputs, ["y"], "layer", **attributes)
    first = [helper.make_node("Constant", [], ["W"], value=tensor)] if constant else []
    graph = helper.make_graph(
        [*first, node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, data)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        [] if constant else [tensor],
    )
    if ir_version == 3 and not constant:
        graph.input.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, weight))
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    onnx.checker.check_model(model, full_check=True)
    return model


CASES = {
    "matmul": one_node("MatMul", (16, 12), ("n", 16), ("n", 12)),
    "matmul on rank 4": one_node("MatMul", (16, 12), (2, "n", 3, 16), (2, "n", 3, 12)),
    "matmul on a vector": one_node("MatMul", (16, 12), (16,), (12,)),
    "stack of matrices": one_node("MatMul", (5, 16, 12), (5, "n", 16), (5, "n", 12)),
    "stack on one matrix": one_node("MatMul", (5, 16, 12), ("n", 16), (5, "n", 12)),
    "stack of stacks": one_node("MatMul", (2, 1, 16, 12), (3, "n", 16), (2, 3, "n", 12)),
    "constant left": one_node("MatMul", (12, 16), (2, 16, "n"), (2, 12, "n"), left=True),
    "constant left of a vector": one_node("MatMul", (12, 16), (16,), (12,), left=True),
    "stack left": one_node("MatMul", (5, 12, 16), (16, "n"), (5, 12, "n"), left=True),
    "gemm": one_node("Gemm", (16, 12), ("n", 16), ("n", 12)),
    "gemm, B transposed": one_node("Gemm", (12, 16), ("n", 16), ("n", 12), transB=1),
    "gemm, A transposed": one_node("Gemm", (16, 12), (16, "n"), ("n", 12), transA=1),
    "gemm, constant A": one_node("Gemm", (12, 16), (16, "n"), (12, "n"), left=True),
    "gemm, constant A transposed, B transposed": one_node(
        "Gemm", (16, 12), ("n", 16), (12, "n"), left=True, transA=1, transB=1
    ),
    "conv": one_node("Conv", (12, 16, 1, 1), ("n", 16, 7, "w"), ("n", 12, 7, "w")),
    "conv with strides and pads": one_node(
        "Conv", (12, 16, 1), ("n", 16, 7), ("n", 12, 5), strides=[2], pads=[1, 1]
    ),
}


def rewrite(model: onnx.ModelProto, folder: Path, *, rank: int = 2, **choice: Any) -> Path:
    """Rewrite every layer at one rank, prove the emission, and return the file."""
    layers = [layer.name for layer in onnxlr.inspect(model).layers if layer.skip is None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnxlr.OnnxlrWarning)  # some grow, it does not matter here
        onnxlr.rewrite(
            model,
            folder / "out.onnx",
            plan=svd_plan(layers, rank, **choice),
            tolerance="cosine>=-1",
            isolate=False,
        )
    return folder / "out.onnx"


def new_results(source: onnx.ModelProto, model: onnx.ModelProto) -> list[str]:
    old = {output for node in source.graph.node for output in node.output}
    return [o for node in model.graph.node for o in node.output if o not in old]


def stated(model: onnx.ModelProto, name: str) -> tuple[int, list[int | str]]:
    (value,) = [v for v in (*model.graph.value_info, *model.graph.output) if v.name == name]
    tensor = value.type.tensor_type
    return tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


def expect_types_as_inferred(source: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Compare the new value infos with those that strict shape inference finds without them."""
    names = new_results(source, model)
    assert names
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.graph.ClearField("value_info")
    inferred = shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    for name in names:
        elem_type, dims = stated(inferred, name)
        found_type, found = stated(model, name)
        assert found_type == elem_type
        assert len(found) == len(dims)
        for ours, theirs in zip(found, dims, strict=True):
            # inference calls what it does not know unk__0, or 0 where there is no name at all
            assert ours == theirs or not theirs or str(theirs).startswith("unk__")


def expect_types_as_run(
    source: onnx.ModelProto, model: onnx.ModelProto, feeds: dict[str, Any], sizes: dict[str, int]
) -> None:
    """Compare the new value infos with the shapes and types that ONNX Runtime computes."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    names = new_results(source, model)
    tapped.graph.output.extend(v for v in model.graph.value_info if v.name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        tapped.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for name, array in zip(names, session.run(names, feeds), strict=True):
        elem_type, dims = stated(model, name)
        assert helper.np_dtype_to_tensor_dtype(array.dtype) == elem_type
        assert [sizes.get(d, d) for d in dims] == list(array.shape)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("format", [None, "int8"])
def test_types_of_new_tensors(case: str, format: str | None, tmp_path: Path) -> None:
    source = CASES[case]
    model = onnx.load(rewrite(source, tmp_path, format=format))
    onnx.checker.check_model(model, full_check=True)
    expect_types_as_inferred(source, model)
    sizes = {"n": 3, "w": 6}
    dims = source.graph.input[0].type.tensor_type.shape.dim
    shape = [sizes.get(d.dim_param, d.dim_value) for d in dims]
    feeds = {"x": np.random.default_rng(2).standard_normal(shape).astype(np.float32)}
    expect_types_as_run(source, model, feeds, sizes)


def test_types_of_new_tensors_in_a_larger_model(tmp_path: Path) -> None:
    source = runnable_model()
    model = onnx.load(rewrite(source, tmp_path))
    assert len(new_results(source, model)) == len(RELEASED)
    expect_types_as_inferred(source, model)
    random = np.random.default_rng(3)
    feeds = {
        "x": random.standard_normal((3, 32)).astype(np.float32),
        "condition": np.array(True),
        "ids": np.array([0, 5, 23]),
    }
    expect_types_as_run(source, model, feeds, {"batch": 3})


@pytest.mark.parametrize("format", [None, "int8"])
@pytest.mark.parametrize("case", ["MatMul", "Gemm", "Conv"])
def test_ir_3_lists_initializers_as_inputs(case: str, format: str | None, tmp_path: Path) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "MatMul": ((16, 12), ("n", 16), ("n", 12)),
        "Gemm": ((16, 12), ("n", 16), ("n", 12)),
        "Conv": ((12, 16, 1, 1), ("n", 16, 2, 2), ("n", 12, 2, 2)),
    }
    source = one_node(case, *arguments[case], ir_version=3, opset=11)
    path = rewrite(source, tmp_path, format=format)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 3
    assert [v.name for v in model.graph.input][:1] == ["x"]
    listed = {v.name: v.type.tensor_type for v in model.graph.input[1:]}
    tensors = {t.name: t for t in model.graph.initializer}
    assert listed.keys() == tensors.keys()
    assert "W" not in tensors
    for name, tensor in tensors.items():
        assert listed[name].elem_type == tensor.data_type
        assert [d.dim_value for d in listed[name].shape.dim] == list(tensor.dims)
    before, after = (
        [(i.name, i.shape, i.type) for i in ort.InferenceSession(m).get_inputs()]
        for m in (source.SerializeToString(), path)
    )
    assert before == after == [("x", list(before[0][1]), "tensor(float)")]


def test_ir_3_keeps_inputs_of_weights_that_stay(tmp_path: Path) -> None:
    source = one_node("MatMul", (16, 12), ("n", 16), ("n", 12), ir_version=3, opset=9)
    source.graph.output.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [16, 12]))
    model = onnx.load(rewrite(source, tmp_path))
    names = [t.name for t in model.graph.initializer]
    assert names[0] == "W"
    assert [v.name for v in model.graph.input] == ["x", *names]


def test_newer_ir_does_not_list_initializers(tmp_path: Path) -> None:
    model = onnx.load(rewrite(CASES["matmul"], tmp_path))
    assert [v.name for v in model.graph.input] == ["x"]


@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_constant_node_goes_with_its_weight(ir_version: int, tmp_path: Path) -> None:
    dims = ((16, 12), ("n", 16), ("n", 12))
    source = one_node("MatMul", *dims, constant=True, ir_version=ir_version, opset=9)
    model = onnx.load(rewrite(source, tmp_path))
    assert [node.op_type for node in model.graph.node] == ["MatMul", "MatMul"]
    assert len(model.graph.initializer) == 2
    onnx.checker.check_model(model, full_check=True)


def test_a_constant_node_stays_where_it_is_needed(tmp_path: Path) -> None:
    source = one_node("MatMul", (16, 12), ("n", 16), ("n", 12), constant=True)
    source.graph.node.add(op_type="ReduceMax", input=["W"], output=["largest"], name="reader")
    source.graph.output.append(helper.make_tensor_value_info("largest", TensorProto.FLOAT, [1, 1]))
    model = onnx.load(rewrite(source, tmp_path))
    kept = ["Constant", "MatMul", "MatMul", "ReduceMax"]
    assert [node.op_type for node in model.graph.node] == kept
    assert model.graph.node[0] == source.graph.node[0]


def test_a_constant_that_calls_its_tensor_like_a_new_one_keeps_its_values(tmp_path: Path) -> None:
    """New values are told by their names while they wait in a file beside the model."""
    random = np.random.default_rng(2)
    weight, added = (random.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(added, inner))
        for name, inner in (("a", "layer.weight"), ("b", "layer.weight.2"), ("c", ""))
    ]
    nodes = [
        *constants,
        helper.make_node("MatMul", ["x", "W"], ["y0"], "layer"),
        *(helper.make_node("Add", [f"y{i}", n], [f"y{i + 1}"]) for i, n in enumerate("abc")),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 64])],
        [helper.make_tensor_value_info("y3", TensorProto.FLOAT, [64, 64])],
        [numpy_helper.from_array(weight, "W")],
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    plan = svd_plan(["layer"], 20)
    output = tmp_path / "o.onnx"
    onnxlr.rewrite(tmp_path / "m.onnx", output, plan=plan, tolerance="cosine>=-1", isolate=False)
    written = onnx.load(output).graph.node
    for node in written:
        if node.op_type == "Constant":
            np.testing.assert_array_equal(numpy_helper.to_array(node.attribute[0].t), added)
