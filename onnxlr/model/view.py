"""A graphsurgeon view of a graph, for searching only.

The view is built from a skeleton that holds names and connections and nothing else. graphsurgeon
therefore meets none of the attributes, types and strings on which it fails, and cannot lose what it
never saw; node `i` of the view is node `i` of the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["search_view"]


def search_view(graph: onnx.GraphProto | onnx.FunctionProto) -> gs.Graph:
    """Return a graph of gs nodes and tensors with the connections of `graph`, without values."""
    skeleton = onnx.GraphProto(name=graph.name or "graph")
    for node in graph.node:
        bare = skeleton.node.add(op_type=node.op_type, domain=node.domain, name=node.name)
        bare.input.extend(node.input)
        bare.output.extend(node.output)
    if isinstance(graph, onnx.GraphProto):
        skeleton.initializer.extend(
            TensorProto(name=tensor.name, dims=[0], data_type=TensorProto.FLOAT)
            for tensor in graph.initializer
        )
        skeleton.input.extend(_untyped(value.name for value in graph.input))
        skeleton.output.extend(_untyped(value.name for value in graph.output))
    else:
        skeleton.input.extend(_untyped(graph.input))
        skeleton.output.extend(_untyped(graph.output))
    return gs.import_onnx(helper.make_model(skeleton))


def _untyped(names: Iterable[str]) -> Iterable[onnx.ValueInfoProto]:
    return (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
