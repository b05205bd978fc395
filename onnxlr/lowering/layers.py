"""Writes a layer's chain at each of its sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper

from onnxlr.layers import Layer, Layout, Site
from onnxlr.lowering.context import Context
from onnxlr.lowering.nodes import Exported, Nodes
from onnxlr.lowering.place import Place
from onnxlr.model import Splice
from onnxlr.stages import Convolution

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.targets import Target
    from onnxlr.model import Model
    from onnxlr.model.names import Names
    from onnxlr.stages import Chain

__all__ = ["as_constants", "lower_layer", "released_by"]


def lower_layer(
    layer: Layer, chain: Chain, model: Model, names: Names, target: Target, activations: str
) -> Splice:
    """Return the change that replaces a layer's sites by its chain.

    Raises
    ------
    LoweringRefusedError
        If no lowering of the target can write one of the stages.
    """
    first = layer.sites[0]
    opset = first.operand.opset
    context = Context(opset, model.ir_version, layer.dtype, activations)
    nodes = Nodes(names, opset, layer.dtype, layer.name)
    for site in layer.sites:
        nodes.begin_site()
        _emit_site(nodes, site, chain, context, target)
    exported = nodes.export()
    for site, group in zip(layer.sites, exported.nodes, strict=True):
        _inherit(group[-1], site.node)
    return _as_splice(layer, exported)


def _as_splice(layer: Layer, exported: Exported) -> Splice:
    groups, initializers = exported.nodes, exported.initializers
    if layer.in_function:  # a function has no initializers
        groups = [[*as_constants(initializers), *groups[0]], *groups[1:]]
        initializers = []
    pairs = list(zip(layer.sites, groups, strict=True))
    infos = [
        (site.scope, info)
        for site, values in zip(layer.sites, exported.value_infos, strict=True)
        for info in values
        if not layer.in_function
    ]
    replaced = {(site.scope, site.index): group for site, group in pairs}
    return Splice(replaced, initializers, infos, released_by(layer))


def released_by(layer: Layer) -> list[tuple[int, str]]:
    """Return the tensors that may disappear with a layer's sites, operands first."""
    steps = {
        key: distance
        for site in layer.sites
        for distance, key in enumerate(reversed(site.operand.released))
    }
    return sorted(steps, key=lambda key: -steps[key])


def as_constants(tensors: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Return Constant nodes in place of initializers."""
    return [
        helper.make_node("Constant", [], [tensor.name], name=tensor.name, value=tensor)
        for tensor in tensors
    ]


def _emit_site(nodes: Nodes, site: Site, chain: Chain, context: Context, target: Target) -> None:
    stages = chain.stages[::-1] if site.transposed else chain.stages
    x = _data(nodes, site, stages[0].shape[-1 if site.transposed else -2])
    slid: frozenset[int] = frozenset()
    for position, stage in enumerate(stages):
        if isinstance(stage, Convolution):
            slid |= frozenset(stage.window)
        place = Place(site, stage, position == len(stages) - 1, slid)
        x = target.choose(context, place).emit(nodes, x, place)


def _data(nodes: Nodes, site: Site, inputs: int) -> gs.Tensor:
    """Return the site's data, transposed first where a Gemm says so."""
    data = nodes.existing(site.data)
    if not site.transpose_data:
        return data
    dims = None
    if site.output_dims is not None:
        rows, columns = site.output_dims
        dims = (rows, inputs) if site.layout is Layout.LAST else (inputs, columns)
    return nodes.add("Transpose", [data], "TransposeData", dims, {"perm": [1, 0]})


def _inherit(node: onnx.NodeProto, original: onnx.NodeProto) -> None:
    """Give the node that writes the original's output what else the original carried."""
    node.doc_string = original.doc_string
    if hasattr(original, "metadata_props"):
        node.metadata_props.extend(original.metadata_props)
