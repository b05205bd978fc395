"""Small models, rewritten in the ways that low-bit weights are stored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnxlr.errors import OnnxlrWarning
from onnxlr.evidence import UNKNOWN, Knowledge
from onnxlr.layers import find_layers
from onnxlr.methods import find_method
from onnxlr.model import Model, open_model
from onnxlr.plan import Choice, Plan
from onnxlr.rewriting import Rewriting, follow_plan

Array = np.ndarray[Any, Any]


def drawn(seed: int, *shape: int) -> Array:
    """Return numbers of a size that products keep."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, Array],
    x: tuple[Any, ...],
    y: tuple[Any, ...],
    opset: int = 17,
    kind: int = onnx.TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Return a model of an input `x` and an output `y`, both of a type if `x` is float."""
    floats = onnx.TensorProto.FLOAT if kind == onnx.TensorProto.INT64 else kind
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", floats, y)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset > 20 else 8
    )


def matrices(opset: int = 17, dtype: str = "float32") -> onnx.ModelProto:
    """Return two products with biases: 40 inputs, 35 hidden (no multiple of 4), 24 outputs."""
    constants = {
        "w1": drawn(1, 40, 35).astype(dtype),
        "b1": drawn(2, 35).astype(dtype),
        "w2": drawn(3, 35, 24).astype(dtype),
        "b2": drawn(4, 24).astype(dtype),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p"], name="first"),
        helper.make_node("Add", ["p", "b1"], ["s"], name="added"),
        helper.make_node("Tanh", ["s"], ["h"], name="bent"),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"], name="second"),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model_of(nodes, constants, ("n", 40), ("n", 24), opset, kind)


def convolutions(opset: int = 17) -> onnx.ModelProto:
    """Return a convolution in two groups, one of a step, and a transposed one."""
    constants = {
        "k1": drawn(5, 12, 3, 3, 3),
        "c1": drawn(6, 12),
        "k2": drawn(7, 10, 12, 3, 2),
        "k3": drawn(8, 10, 4, 2, 2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k1", "c1"], ["p"], name="first", group=2, pads=[1] * 4),
        helper.make_node("Relu", ["p"], ["h"], name="bent"),
        helper.make_node("Conv", ["h", "k2"], ["q"], name="second", strides=[2, 1]),
        helper.make_node("Tanh", ["q"], ["g"], name="bent2"),
        helper.make_node("ConvTranspose", ["g", "k3"], ["y"], name="third"),
    ]
    return model_of(nodes, constants, ("n", 6, 9, 8), ("n", 4, 5, 8), opset)


def table(opset: int = 17) -> onnx.ModelProto:
    """Return a table of 50 rows that is also the matrix of a product, the other way round."""
    constants = {"t": drawn(9, 50, 36), "w": drawn(10, 36, 36)}
    nodes = [
        helper.make_node("Gather", ["t", "x"], ["e"], name="rows"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="first"),
    ]
    return model_of(nodes, constants, ("n", 5), ("n", 5, 36), opset, onnx.TensorProto.INT64)


def data_of(model: onnx.ModelProto, seed: int = 0) -> Array:
    """Return an input of three samples."""
    value = model.graph.input[0].type.tensor_type
    dims = [dim.dim_value or 3 for dim in value.shape.dim]
    generator = np.random.default_rng(seed)
    if value.elem_type == onnx.TensorProto.INT64:
        return generator.integers(0, 50, dims)
    dtype = helper.tensor_dtype_to_np_dtype(value.elem_type)
    return generator.standard_normal(dims).astype(dtype)


def rewritten(
    model: onnx.ModelProto,
    target: str,
    method: str,
    options: Mapping[str, Any] | None = None,
    knowledge: Knowledge = UNKNOWN,
    **choice: Any,
) -> Model:
    """Return the model with each layer rewritten that can be; raises what the target refuses."""
    source = open_model(model)
    layers = find_layers(source)
    made = Choice(method, find_method(method).options(**(options or {})), **choice)
    open_to = [layer for layer in layers if layer.skip is None]
    tables = {one.name for one in open_to if one.sites[0].node.op_type == "Gather"}
    taken = [one.name for one in open_to if method == "quantize" or one.name not in tables]
    plan = Plan(dict.fromkeys(taken, made), None, target, 0, "-")
    work = Rewriting(source, open_model(model), target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxlrWarning)  # so small that some layers grow
        for proposal in follow_plan(source, layers, plan, knowledge=knowledge):
            work.add(proposal)
        work.finish(plan)
    onnx.checker.check_model(source.proto)
    return source


def run(model: Model, x: Array) -> Array:
    """Return the output of ONNX Runtime, of each node as it stands in the file."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def distance(found: Array, expected: Array) -> float:
    """Return the relative L2 distance."""
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
