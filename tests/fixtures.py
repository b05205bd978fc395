"""Builders of models that the tests share: small, checked, with more in them than a usual file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxlr.plan import SCHEMA, Plan

__all__ = ["RELEASED", "runnable_model", "save_external", "svd_plan"]

IR_VERSION = 10
OPSET = 17

RELEASED: Mapping[str, str | None] = {
    "fc": "fc.W",
    "constant": "constant.W",
    "gemm": "gemm.W",
    "left": "left.W",
    "tied": None,  # a Gather reads it, too
    "captured": None,  # a subgraph needs it as it is
    "handed out": None,  # it is an output of the graph, too
}
"""Every layer of the runnable model, and the weight that goes when the layer is replaced."""


def runnable_model() -> onnx.ModelProto:
    """Return a model that ONNX Runtime runs, with all that a file can carry beside its layers.

    Inputs: `x` float (batch, 32), `condition` bool (), `ids` int64 (batch). Layers: `RELEASED`.
    """
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    graph = onnx.GraphProto(name="main graph", doc_string="the graph's own words")
    graph.initializer.extend(
        (
            weight("fc.W", 32, 24),
            weight("gemm.W", 28, 24),
            weight("gemm.C", 28),
            weight("left.W", 20, 24),
            weight("tied.W", 24, 28),
            weight("captured.W", 24, 28),
            weight("handed out.W", 24, 28),
            weight("unused", 3, 5),
            # what new tensors would like to be called
            *(weight(name, 1) for name in ("fc.weight", "fc.weight.2", "fc.MatMul")),
            TensorProto(name="h.scale", data_type=TensorProto.FLOAT, dims=[], float_data=[0.5]),
        )
    )
    graph.initializer[0].doc_string = "trained by hand"
    _entry(graph.initializer[1], "tensor key", "tensor value")
    for value in (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32], "an image, flat"),
        helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]),
    ):
        graph.input.append(value)
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    for name, columns in (("y", 28), ("g", 28), ("c", 28), ("t", 28), ("o", 28)):
        graph.output.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])
        )
    graph.output.append(helper.make_tensor_value_info("l", TensorProto.FLOAT, [20, "batch"]))
    graph.output.append(helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", 28]))
    graph.output.append(helper.make_tensor_value_info("handed out.W", TensorProto.FLOAT, [24, 28]))
    graph.node.extend(_nodes(weight("constant.W", 24, 28)))
    known = helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch", 24], "scaled")
    known.type.denotation = "FEATURES"
    _entry(known, "value key", "value value")
    graph.value_info.append(known)
    graph.value_info.append(
        helper.make_tensor_value_info("constant.W", TensorProto.FLOAT, [24, 28])
    )
    _entry(graph, "graph key", "graph value")
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="h.scale")
    graph.quantization_annotation.add(tensor_name="fc.W").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="h.scale"
    )

    model = onnx.ModelProto(
        ir_version=IR_VERSION,
        producer_name="a producer",
        producer_version="1.2.3-β",
        domain="org.example",
        model_version=42,
        doc_string="the model's own words",
        graph=graph,
    )
    model.opset_import.add(domain="", version=OPSET)
    model.opset_import.add(domain="org.example.local", version=1)
    model.opset_import.add(domain="org.example.unused", version=7)
    for key, value in (("alphabet", "a\nb\nç"), ("empty", ""), ("alphabet.2", "{}")):
        _entry(model, key, value)
    model.functions.append(_scale_function())
    onnx.checker.check_model(model)
    return model


def _nodes(constant: TensorProto) -> list[onnx.NodeProto]:
    fc = helper.make_node("MatMul", ["x", "fc.W"], ["h"], "fc", doc_string="first of all")
    _entry(fc, "node key", "node value")
    scale = helper.make_node(
        "Scale", ["h"], ["s"], "fc.MatMul.2", domain="org.example.local", factor=1.5
    )
    scale.overload = ""
    return [
        fc,
        scale,
        helper.make_node("Constant", [], ["constant.W"], value=constant),
        helper.make_node("MatMul", ["s", "constant.W"], ["k"], "constant"),
        helper.make_node(
            "If", ["condition"], ["y"], "either", then_branch=_branch(), else_branch=_other()
        ),
        helper.make_node(
            "Gemm", ["s", "gemm.W", "gemm.C"], ["g"], "gemm", transB=1, alpha=0.5, beta=2.0
        ),
        helper.make_node("Transpose", ["s"], ["sT"], perm=[1, 0]),
        helper.make_node("MatMul", ["left.W", "sT"], ["l"], "left"),
        helper.make_node("MatMul", ["s", "tied.W"], ["t"], "tied"),
        helper.make_node("Gather", ["tied.W", "ids"], ["row"], "table"),
        helper.make_node("MatMul", ["s", "captured.W"], ["c"], "captured"),
        helper.make_node("MatMul", ["s", "handed out.W"], ["o"], "handed out"),
    ]


def _branch() -> onnx.GraphProto:
    """Return a subgraph that captures `k`, `s` and a weight, and has a tensor called like ours."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["captured.W"], ["fc.MatMul.3"], "inner"),
            helper.make_node("Add", ["fc.MatMul.3", "k"], ["fc.MatMul.3.output"]),
            helper.make_node("Add", ["fc.MatMul.3.output", "inner.C"], ["then.y"]),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("then.y", TensorProto.FLOAT, ["batch", 28])],
        [numpy_helper.from_array(np.ones(28, np.float32), "inner.C")],
        doc_string="if so",
        value_info=[helper.make_tensor_value_info("fc.MatMul.3", TensorProto.FLOAT, None)],
    )
    _entry(graph, "subgraph key", "subgraph value")
    return graph


def _other() -> onnx.GraphProto:
    output = helper.make_tensor_value_info("else.y", TensorProto.FLOAT, ["batch", 28])
    return helper.make_graph(
        [helper.make_node("Identity", ["k"], ["else.y"])], "else", [], [output]
    )


def _scale_function() -> onnx.FunctionProto:
    """Return `Scale(x) = factor · x`, with one attribute of each kind that a function can have."""
    factor = helper.make_node("Constant", [], ["gemm.Gemm"], "gemm.MatMul")
    factor.attribute.add(name="value_float", ref_attr_name="factor", type=AttributeProto.FLOAT)
    function = helper.make_function(
        "org.example.local",
        "Scale",
        ["in"],
        ["out"],
        [factor, helper.make_node("Mul", ["in", "gemm.Gemm"], ["out"])],
        [helper.make_opsetid("", OPSET)],
        attributes=["factor"],
        attribute_protos=[helper.make_attribute("unused", 3)],
    )
    function.doc_string = "multiplies"
    function.overload = ""
    _entry(function, "function key", "function value")
    function.value_info.append(helper.make_tensor_value_info("gemm.Gemm", TensorProto.FLOAT, []))
    return function


def _entry(
    message: onnx.ModelProto
    | onnx.GraphProto
    | onnx.NodeProto
    | onnx.FunctionProto
    | onnx.ValueInfoProto
    | TensorProto,
    key: str,
    value: str,
) -> None:
    message.metadata_props.add(key=key, value=value)


def save_external(model: onnx.ModelProto, path: Path, location: str = "weights.bin") -> None:
    """Save a model with every initializer's values in a file beside it; `model` stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:  # only raw data moves out
        if not tensor.HasField("raw_data"):
            restored = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
            tensor.CopyFrom(restored)
    onnx.save_model(
        copy,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=location,
        size_threshold=0,
    )


def svd_plan(layers: Iterable[str], rank: int | Mapping[str, int], **entry: str | None) -> Plan:
    """Return a plan as a person writes it: SVD of the named layers at one rank, or each its own.

    `entry` has what else an entry of a plan may say: `format`, `activations`, `reason`.
    """
    given = {key: value for key, value in entry.items() if value is not None}
    ranks = {name: rank if isinstance(rank, int) else rank[name] for name in layers}
    entries = {name: {"method": "svd", "options": {"rank": r}} | given for name, r in ranks.items()}
    return Plan.loads(json.dumps({"schema": SCHEMA, "layers": entries}))
