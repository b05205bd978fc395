"""Builders of models that the tests share: small, checked, with more in them than a usual file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

__all__ = ["RELEASED", "everything_model", "runnable_model", "save_external"]

IR_VERSION = 10
OPSET = 17

RELEASED: Mapping[str, str | None] = {
    "fc": "fc.W",
    "constant": "constant.W",
    "gemm": "gemm.W",
    "left": "left.W",
    "tied": None,  # a Gather reads it, too
    "captured": None,  # a subgraph reads it, too
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
            helper.make_node("MatMul", ["s", "captured.W"], ["fc.MatMul.3"], "inner"),
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
    return helper.make_graph([helper.make_node("Identity", ["k"], ["else.y"])], "else", [], [output])


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


def everything_model() -> onnx.ModelProto:
    """Return the runnable model with all that ONNX Runtime would refuse and ONNX allows."""
    model = runnable_model()
    graph = model.graph
    model.opset_import.add(domain="org.example.unknown", version=3)
    training = model.training_info.add()
    training.initialization.CopyFrom(_seed_graph("initial gemm.C", "start"))
    training.initialization_binding.add(key="gemm.C", value="initial gemm.C")
    training.algorithm.CopyFrom(_seed_graph("next gemm.C", "step"))
    training.update_binding.add(key="gemm.C", value="next gemm.C")
    graph.initializer.extend(_exotic_tensors())
    graph.sparse_initializer.append(_sparse("gemm.weight"))
    graph.input.extend(_exotic_inputs())
    graph.node.append(_unknown_node())
    if hasattr(model, "configuration"):
        model.configuration.add(name="two devices", num_devices=2, device=["a", "b"])
        placed = graph.node[0].device_configurations.add(
            configuration_id="two devices", pipeline_stage=1
        )
        spec = placed.sharding_spec.add(tensor_name="x", device=[0, 1])
        spec.index_to_device_group_map.add(key=0, value=[0, 1])
        sharded = spec.sharded_dim.add(axis=0)
        sharded.simple_sharding.add(dim_value=4, num_shards=2)
        sharded.simple_sharding.add(dim_param="batch", num_shards=2)
    onnx.checker.check_model(model)
    return model


def _seed_graph(output: str, name: str) -> onnx.GraphProto:
    values = numpy_helper.from_array(np.zeros(28, np.float32))
    return helper.make_graph(
        [helper.make_node("Constant", [], [output], value=values)],
        name,
        [],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [28])],
    )


def _exotic_tensors() -> list[TensorProto]:
    kind = TensorProto
    return [
        kind(name="bfloat16", data_type=kind.BFLOAT16, dims=[2], raw_data=b"\x80\x3f\x00\x40"),
        kind(name="float8", data_type=kind.FLOAT8E4M3FN, dims=[3], raw_data=b"\x38\x40\x7e"),
        kind(name="float8 typed", data_type=kind.FLOAT8E5M2FNUZ, dims=[2], int32_data=[0x40, 0x80]),
        kind(name="int4", data_type=kind.INT4, dims=[3], raw_data=b"\x8f\x07"),
        kind(name="uint4", data_type=kind.UINT4, dims=[3], int32_data=[0xF1, 0x02]),
        kind(name="float16", data_type=kind.FLOAT16, dims=[2], int32_data=[0x3C00, 0xFE01]),
        kind(name="int64", data_type=kind.INT64, dims=[2], int64_data=[-1, 2**62]),
        kind(name="uint64", data_type=kind.UINT64, dims=[1], uint64_data=[2**64 - 1]),
        kind(name="double", data_type=kind.DOUBLE, dims=[2], double_data=[5e-324, -0.0]),
        kind(name="nan", data_type=kind.FLOAT, dims=[1], raw_data=b"\x01\x00\xa0\x7f"),
        kind(name="complex", data_type=kind.COMPLEX64, dims=[1], float_data=[1.0, -1.0]),
        kind(name="strings", data_type=kind.STRING, dims=[2], string_data=[b"\xff\xfe", b""]),
        kind(name="nothing", data_type=kind.FLOAT, dims=[0]),
    ]


def _sparse(name: str) -> onnx.SparseTensorProto:
    values = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], float_data=[1.0, 2.0])
    indices = TensorProto(data_type=TensorProto.INT64, dims=[2], int64_data=[1, 5])
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[3, 4])


def _exotic_types() -> dict[str, onnx.TypeProto]:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", None, 3])
    opaque = onnx.TypeProto()
    opaque.opaque_type.domain, opaque.opaque_type.name = "org.example", "Thing"
    return {
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "map": helper.make_map_type_proto(TensorProto.INT64, tensor),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3, "n"]),
        "opaque": opaque,
    }


def _exotic_inputs() -> list[onnx.ValueInfoProto]:
    types = _exotic_types()
    return [helper.make_value_info(k, types[k]) for k in ("sequence", "optional", "map")]


def _unknown_node() -> onnx.NodeProto:
    """Return a node of an operator nobody knows, with attributes of every kind."""
    kind = AttributeProto
    tensor, sparse = numpy_helper.from_array(np.arange(3), "values"), _sparse("sparse values")
    graphs = (_other(), _other())
    types = list(_exotic_types().values())
    node = onnx.NodeProto(op_type="Everything", domain="org.example.unknown", name="fc.weight.3")
    node.input.extend(["x", "", "optional", "sequence"])
    node.output.extend(["", "everything"])
    for attribute in (
        kind(name="float", type=kind.FLOAT, f=-0.0),
        kind(name="int", type=kind.INT, i=-(2**63)),
        kind(name="string", type=kind.STRING, s=b"not UTF-8: \xff\xfe\x00"),
        kind(name="tensor", type=kind.TENSOR, t=tensor, doc_string="an attribute's words"),
        kind(name="graph", type=kind.GRAPH, g=graphs[0]),
        kind(name="sparse tensor", type=kind.SPARSE_TENSOR, sparse_tensor=sparse),
        kind(name="floats", type=kind.FLOATS, floats=[1.5, float("inf")]),
        kind(name="ints", type=kind.INTS, ints=[1, -2]),
        kind(name="strings", type=kind.STRINGS, strings=[b"", b"\xc3"]),
        kind(name="tensors", type=kind.TENSORS, tensors=[tensor, tensor]),
        kind(name="graphs", type=kind.GRAPHS, graphs=graphs),
        kind(name="sparse tensors", type=kind.SPARSE_TENSORS, sparse_tensors=[sparse]),
        *(kind(name=f"type {i}", type=kind.TYPE_PROTO, tp=each) for i, each in enumerate(types)),
        kind(name="types", type=kind.TYPE_PROTOS, type_protos=types),
        kind(name="no floats", type=kind.FLOATS),
        kind(name="no ints", type=kind.INTS),
        kind(name="no strings", type=kind.STRINGS),
        kind(name="no tensors", type=kind.TENSORS),
        kind(name="no graphs", type=kind.GRAPHS),
    ):
        node.attribute.append(attribute)
    return node


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
