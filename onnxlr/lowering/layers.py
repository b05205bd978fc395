"""Writes a layer's chain at each of its sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxlr.layers import Layer, Layout, Site
from onnxlr.lowering.context import Context
from onnxlr.lowering.nodes import Nodes
from onnxlr.lowering.place import Place
from onnxlr.model import Splice
from onnxlr.stages import Linear

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.targets import Target
    from onnxlr.model import Model
    from onnxlr.model.names import Names
    from onnxlr.stages import Chain

__all__ = ["lower_layer"]


def lower_layer(
    layer: Layer, chain: Chain, model: Model, names: Names, target: Target, activations: str
) -> Splice:
    """Return the change that replaces a layer's sites by its chain.

    Raises
    ------
    LoweringRefusedError
        If no lowering of the target can write one of the stages.
    """
    if layer.weight is None:
        raise ValueError(f"layer '{layer.name}' has no weight")
    context = Context(model.opset, model.ir_version, layer.weight.dtype, activations)
    nodes = Nodes(names, model.opset, layer.weight.dtype, layer.name)
    for site in layer.sites:
        nodes.begin_site()
        _emit_site(nodes, site, chain, context, target, site.swapped != layer.swapped)
    groups, initializers, infos = nodes.export()
    for site, group in zip(layer.sites, groups, strict=True):
        _inherit(group[-1], site.node)
    replaced = {site.index: group for site, group in zip(layer.sites, groups, strict=True)}
    return Splice(replaced, initializers, infos, [layer.weight.name])


def _emit_site(
    nodes: Nodes, site: Site, chain: Chain, context: Context, target: Target, transposed: bool
) -> None:
    stages = chain.stages[::-1] if transposed else chain.stages
    inputs = stages[0].shape[-1 if transposed else -2]
    x = _data(nodes, site, inputs)
    for position, stage in enumerate(stages):
        if not isinstance(stage, Linear):
            raise TypeError(f"no lowering writes a {type(stage).__name__}")
        place = Place(site, transposed, position == 0, position == len(stages) - 1)
        x = target.choose(stage, context, place).emit(stage, nodes, x, place)


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
