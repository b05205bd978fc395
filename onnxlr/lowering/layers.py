"""Writes a layer's chain at each of its sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx

from onnxlr.layers import Layer
from onnxlr.lowering.biases import find_bias
from onnxlr.lowering.constants import as_constants, with_own_constants
from onnxlr.lowering.context import Context
from onnxlr.lowering.nodes import Exported, Nodes
from onnxlr.lowering.way import Way
from onnxlr.model import Splice
from onnxlr.stages import Adjustment, Chain

if TYPE_CHECKING:
    from onnxlr.lowering.targets import Target
    from onnxlr.model import Model
    from onnxlr.model.names import Names

__all__ = ["lower_layer", "released_by"]


def lower_layer(
    layer: Layer,
    chain: Chain,
    model: Model,
    names: Names,
    target: Target,
    activations: str,
    adjustments: Sequence[Adjustment] = (),
) -> Splice:
    """Return the change that replaces a layer's sites by its chain.

    Parameters
    ----------
    adjustments
        One for each site, or none.

    Raises
    ------
    LoweringRefusedError
        If no lowering of the target can write one of the stages.
    """
    first = layer.sites[0]
    opset = first.operand.opset
    context = Context(opset, layer.dtype, activations, model.ir_version)
    nodes = Nodes(names, opset, layer.dtype, layer.name)
    released, added = released_by(layer), Splice()
    for site, adjustment in zip(
        layer.sites, adjustments or (Adjustment(),) * len(layer.sites), strict=True
    ):
        nodes.begin_site()
        bias = find_bias(nodes, site, adjustment, model)
        Way(nodes, site, context, target, bias, adjustment).emit(chain)
        released += bias.released
        added.merge(bias.moved)
    exported = nodes.export()
    for site, group in zip(layer.sites, exported.nodes, strict=True):
        _inherit(group[-1], site.node)
    change = _as_splice(layer, exported, released, names)
    change.merge(added)
    return change


def _as_splice(
    layer: Layer, exported: Exported, released: list[tuple[int, str]], names: Names
) -> Splice:
    groups, initializers = with_own_constants(layer.sites, exported, names)
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
    return Splice(replaced, initializers, infos, released, set(exported.domains))


def released_by(layer: Layer) -> list[tuple[int, str]]:
    """Return the tensors that may disappear with a layer's sites, operands first."""
    steps = {
        key: distance
        for site in layer.sites
        for distance, key in enumerate(reversed(site.operand.released))
    }
    return sorted(steps, key=lambda key: -steps[key])


def _inherit(node: onnx.NodeProto, original: onnx.NodeProto) -> None:
    """Give the node that writes the original's output what else the original carried."""
    node.doc_string = original.doc_string
    if hasattr(original, "metadata_props"):
        node.metadata_props.extend(original.metadata_props)
