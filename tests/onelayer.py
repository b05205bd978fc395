"""Models of one layer, rewritten by hand-written plans and run in ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from onnxlr.errors import OnnxlrWarning
from onnxlr.layers import find_layers
from onnxlr.methods import SvdOptions
from onnxlr.model import open_model
from onnxlr.plan import Choice, Plan
from onnxlr.rewriting import Rewriting, follow_plan

Array = np.ndarray[Any, Any]
LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)


def ir_version_of(opset: int) -> int:
    """Return an IR version that ONNX Runtime of that opset's time reads."""
    return 4 if opset < 13 else 8 if opset < 21 else 10


def newest_opset() -> int:
    """Return the newest opset that both the installed onnx and ONNX Runtime know."""
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    for opset in range(onnx.defs.onnx_opset_version(), 17, -1):
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version_of(opset)
        )
        try:
            run(model, {"x": np.zeros(1, np.float32)})
        except Exception as error:
            if "opset" not in str(error).lower():
                raise
        else:
            return opset
    raise RuntimeError("no opset above 17 runs")


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    constants: Mapping[str, Array],
    opset: int = 17,
    ir_version: int | None = None,
) -> onnx.ModelProto:
    """Return a checked model whose inputs have the shapes and types of the given arrays."""
    infos = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in inputs.items()
    ]
    dtype = helper.np_dtype_to_tensor_dtype(next(iter(inputs.values())).dtype)
    graph = helper.make_graph(
        list(nodes),
        "g",
        infos,
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    if ir_version == 3:
        graph.input.extend(
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in constants.items()
        )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version or ir_version_of(opset),
    )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for value, known in zip(graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(known)
    model.graph.CopyFrom(graph)
    onnx.checker.check_model(model)
    return model


def rewritten(model: onnx.ModelProto, choice: Choice) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the model with every layer rewritten as chosen, and its reference."""
    source, reference = open_model(model), open_model(model)
    layers = find_layers(source)
    choices = {layer.name: choice for layer in layers if layer.skip is None}
    plan = Plan(choices, None, "onnx", 0, "test")
    work = Rewriting(source, reference, "onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxlrWarning)  # full ranks are larger, as intended
        for proposal in follow_plan(source, layers, plan):
            work.add(proposal)
    work.finish(plan)
    onnx.checker.check_model(source.proto, full_check=True)
    onnx.checker.check_model(reference.proto, full_check=True)
    return source.proto, reference.proto


def svd(rank: int, format: str | None = None, activations: str = "float") -> Choice:
    """Return the choice of a rank."""
    return Choice("svd", SvdOptions(rank=rank), format=format, activations=activations)


def run(model: onnx.ModelProto, inputs: Mapping[str, Array], level: Any = LEVELS[1]) -> list[Array]:
    """Return the model's outputs in ONNX Runtime."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(None, dict(inputs))]


def truncated(weight: Array, rank: int) -> Array:
    """Return the best approximation of a rank by numpy's own decomposition, in float64."""
    u, s, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    rank = min(rank, s.shape[-1])
    return np.asarray((u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :])


def distance(found: Array, expected: Array) -> float:
    """Return the relative L2 distance."""
    norm = float(np.linalg.norm(expected)) or 1.0
    return float(np.linalg.norm(found.astype(np.float64) - expected)) / norm
