"""The model that has one of everything: all that ONNX allows, also where no runtime runs it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.fixtures import runnable_model

__all__ = ["everything_model"]


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
    graphs = (_seed_graph("a", "one"), _seed_graph("b", "two"))
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
