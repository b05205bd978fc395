"""The original with dense approximations for weights: what a rewritten model must compute."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.layers import Layer, Layout
from onnxlr.lowering import as_constants, released_by
from onnxlr.model import Model, Splice
from onnxlr.model.tensors import make_tensor
from onnxlr.plan import Proposal

__all__ = ["with_dense_weight"]


def with_dense_weight(
    proposal: Proposal, values: npt.NDArray[np.float64], reference: Model
) -> Splice:
    """Return the change that gives a layer's nodes another dense weight, as each takes it.

    Its values are in the reference's data file already, where there is one.
    """
    layer = proposal.layer
    change = Splice(released=released_by(layer))
    tensors: dict[tuple[object, ...], onnx.TensorProto] = {}
    for position, site in enumerate(layer.sites):
        dense = np.ascontiguousarray(site.arranged(values), dtype=layer.dtype)
        key = (site.layout, site.swapped, site.transposed, dense.shape)
        group = []
        if key not in tensors:
            name = reference.names.new(f"{layer.name}.approximation")
            if layer.in_function:
                tensors[key] = make_tensor(dense, name)
                group = as_constants([tensors[key]])
            else:
                tensors[key] = reference.new_tensor(dense, name)
        node = onnx.NodeProto()
        node.CopyFrom(site.node)
        node.input[0 if site.layout in (Layout.SECOND_LAST, Layout.ROWS) else 1] = tensors[key].name
        group.append(node)
        if proposal.adjustments and proposal.adjustments[position].correction is not None:
            correction = proposal.adjustments[position].correction
            along = site.along_features(np.asarray(correction)).astype(layer.dtype)
            group += _corrected(node, along, layer, reference)
        change.nodes[(site.scope, site.index)] = group
    if not layer.in_function:
        change.initializers.extend(tensors.values())
    return change


def _corrected(
    node: onnx.NodeProto, correction: npt.NDArray[np.floating], layer: Layer, reference: Model
) -> list[onnx.NodeProto]:
    """Return nodes that add a correction to a node's output, which they then write."""
    output = node.output[0]
    node.output[0] = reference.names.new(f"{layer.name}.uncorrected")
    name = reference.names.new(f"{layer.name}.correction")
    constant = as_constants([make_tensor(np.ascontiguousarray(correction), name)])
    return [*constant, onnx.helper.make_node("Add", [node.output[0], name], [output])]
