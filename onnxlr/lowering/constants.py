"""Where constants lie: in the main graph, or in the graph of the nodes that use them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from onnxlr.layers import Site
from onnxlr.lowering.nodes import Exported
from onnxlr.model.names import Names
from onnxlr.operators.schema import DOMAIN

__all__ = ["as_constants", "with_own_constants"]


def as_constants(tensors: Sequence[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Return Constant nodes in place of initializers."""
    return [
        helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
        for tensor in tensors
    ]


def with_own_constants(
    sites: Sequence[Site], exported: Exported, names: Names
) -> tuple[list[list[onnx.NodeProto]], list[onnx.TensorProto]]:
    """Give ternary nodes outside the main graph Constant nodes of their own graph.

    ONNX Runtime before 1.29 does not show kernels the constants of the graphs around theirs.

    Returns
    -------
    list of list of NodeProto
        The nodes for each site; a graph's constants come before the first node that uses them.
    list of TensorProto
        The initializers that are still used.
    """
    tensors = {tensor.name: tensor for tensor in exported.initializers}
    own: dict[tuple[int, str], str] = {}
    groups = []
    for site, nodes in zip(sites, exported.nodes, strict=True):
        group = list[onnx.NodeProto]()
        for node in nodes:
            wanted = list(node.input[1:]) if site.scope and node.domain == DOMAIN else []
            for position, name in enumerate(wanted, 1):
                key = (site.scope, name)
                if name in tensors and key not in own:
                    tensor = onnx.TensorProto()
                    tensor.CopyFrom(tensors[name])
                    own[key] = tensor.name = names.new(name)
                    group += as_constants([tensor])
                node.input[position] = own.get(key, name)
            group.append(node)
        groups.append(group)
    if not own:
        return groups, exported.initializers
    used = {name for group in groups for node in group for name in node.input}
    return groups, [tensor for tensor in exported.initializers if tensor.name in used]
