"""What is added to a layer's product: the bias its node has, and the correction of its mean."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.layers.examination import attribute
from onnxlr.model import Splice
from onnxlr.model.tensors import make_tensor

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.layers import Site
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.model import Model
    from onnxlr.stages import Adjustment

__all__ = ["Bias", "find_bias"]


@dataclass(frozen=True)
class Bias:
    """What is added at one site.

    Attributes
    ----------
    within
        The bias of the last product.
    behind
        A correction that has to be added to the result, as the bias is not constant.
    released
        The bias that the node had, if it is constant: another may take its place.
    moved
        A change of the node behind, which adds a constant anyway.
    numbers
        Those of `within`, if they are constant.
    """

    within: gs.Tensor | None = None
    behind: gs.Tensor | None = None
    released: list[tuple[int, str]] = field(default_factory=list)
    moved: Splice = field(default_factory=Splice)
    numbers: npt.NDArray[Any] | None = None


def find_bias(nodes: Nodes, site: Site, adjustment: Adjustment, model: Model) -> Bias:
    """Return a site's bias with its correction in it, at no cost wherever that can be."""
    is_gemm = site.node.op_type == "Gemm"
    name = str(site.node.input[2]) if _takes_bias(site) and len(site.node.input) > 2 else ""
    if adjustment.correction is None:
        return _own(nodes, site, name, model)
    along = site.along_features(np.asarray(adjustment.correction, np.float64))
    behind = along.astype(nodes.dtype)
    beta = float(attribute(site.node, "beta", 1.0)) if is_gemm else 1.0
    if beta == 0:  # the node keeps its beta, which would silence the correction
        own = _own(nodes, site, name, model)
        return replace(own, behind=nodes.new_constant(behind, "correction"))
    correction = along.reshape(-1) if site.is_convolution else along
    if not _takes_bias(site):
        moved = _into_next(nodes, site, along, model)
        if moved is not None:
            return Bias(moved=moved)
    if not name:
        numbers = (correction / beta).astype(nodes.dtype)
        return Bias(nodes.new_constant(numbers, "correction"), numbers=numbers)
    tensor = _constant(model, site, name)
    if tensor is None:
        return Bias(nodes.existing(name), nodes.new_constant(behind, "correction"))
    whole = (model.read(tensor).astype(np.float64) + correction / beta).astype(nodes.dtype)
    return Bias(nodes.new_constant(whole, "bias"), None, [(0, name)], numbers=whole)


def _own(nodes: Nodes, site: Site, name: str, model: Model) -> Bias:
    """Return the bias of that name that a node has, or none."""
    if not name:
        return Bias()
    tensor = _constant(model, site, name)
    if tensor is None:
        return Bias(nodes.existing(name))
    return Bias(nodes.existing(name), released=[(0, name)], numbers=model.read(tensor))


def _into_next(
    nodes: Nodes, site: Site, correction: npt.NDArray[np.float64], model: Model
) -> Splice | None:
    """Return the change that adds a correction to the constant that the next node adds.

    None if the next node is no such one.
    """
    user = model.uses.only_user((0, site.output)) if site.scope == 0 else None
    if user is None or user[0] != 0:
        return None
    node = model.proto.graph.node[user[1]]
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    position = 1 if node.input[0] == site.output else 0
    tensor = _constant(model, site, str(node.input[position]))
    if tensor is None:
        return None
    before = model.read(tensor)
    whole = before.astype(np.float64) + correction
    if whole.shape != before.shape:  # a scalar, say, which is broadcast
        return None
    name = nodes.new_name("bias")
    change = Splice(released=[(0, str(node.input[position]))])
    change.initializers.append(make_tensor(whole.astype(before.dtype), name))
    other = onnx.NodeProto()
    other.CopyFrom(node)
    other.input[position] = name
    change.nodes[user] = [other]
    return change


def _takes_bias(site: Site) -> bool:
    return site.is_convolution or site.node.op_type == "Gemm"


def _constant(model: Model, site: Site, name: str) -> onnx.TensorProto | None:
    """Return a bias of the main graph that always has the same values."""
    graph = model.proto.graph
    if site.scope != 0 or any(value.name == name for value in graph.input):
        return None
    for node in graph.node:
        if node.op_type == "Constant" and name in node.output:
            return next((a.t for a in node.attribute if a.name == "value"), None)
    return model.initializers.get(name)
