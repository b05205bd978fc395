"""Writes a layer's chain at each of its sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from onnxlr.layers import Layer, Layout, Site
from onnxlr.lowering.biases import Bias, find_bias
from onnxlr.lowering.context import Context
from onnxlr.lowering.nodes import Exported, Nodes
from onnxlr.lowering.place import Place
from onnxlr.model import Splice
from onnxlr.stages import Adjustment, Chain, Convolution, Range, Stage, Stored, Sum

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.targets import Target
    from onnxlr.model import Model
    from onnxlr.model.names import Names

__all__ = ["as_constants", "lower_layer", "released_by"]

_OPTIONAL_BIAS = 11
"""The opset from which on a Gemm may have no bias."""


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
    context = Context(opset, layer.dtype, activations)
    nodes = Nodes(names, opset, layer.dtype, layer.name)
    released, added = released_by(layer), Splice()
    for site, adjustment in zip(
        layer.sites, adjustments or (Adjustment(),) * len(layer.sites), strict=True
    ):
        nodes.begin_site()
        bias = find_bias(nodes, site, adjustment, model)
        _Way(nodes, site, context, target, bias, adjustment).emit(chain)
        released += bias.released
        added.merge(bias.moved)
    exported = nodes.export()
    for site, group in zip(layer.sites, exported.nodes, strict=True):
        _inherit(group[-1], site.node)
    change = _as_splice(layer, exported, released)
    change.merge(added)
    return change


def _as_splice(layer: Layer, exported: Exported, released: list[tuple[int, str]]) -> Splice:
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
    return Splice(replaced, initializers, infos, released, set(exported.domains))


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


@dataclass(frozen=True)
class _Way:
    """From a site's data to its output."""

    nodes: Nodes
    site: Site
    context: Context
    target: Target
    bias: Bias
    adjustment: Adjustment

    def emit(self, chain: Chain) -> None:
        """Write the chain, and what of a bias correction does not fit into its last product."""
        stages = self._ordered(chain)
        inputs = stages[0].shape[-1 if self.site.transposed else -2]
        x = _data(self.nodes, self.site, inputs)
        output = self.site.output if self.bias.behind is None else None
        ranges = self.adjustment.ranges
        result = self._follow(stages, x, output, self.bias.within, ranges=ranges)
        if self.bias.behind is not None:
            dims = self.site.output_dims
            self.nodes.add(
                "Add", [result, self.bias.behind], "Correction", dims, None, self.site.output
            )

    def _ordered(self, chain: Chain) -> Sequence[Stage]:
        return chain.stages[::-1] if self.site.transposed else chain.stages

    def _follow(
        self,
        stages: Sequence[Stage],
        x: gs.Tensor,
        output: str | None,
        bias: gs.Tensor | None,
        ends: bool = True,
        slid: frozenset[int] = frozenset(),
        ranges: Sequence[Range] | None = None,
    ) -> gs.Tensor:
        for position, stage in enumerate(stages):
            last = position == len(stages) - 1
            name, added = (output, bias) if last else (None, None)
            if isinstance(stage, Sum):
                x = self._branch(stage, x, name, added, ends and last, slid)
                slid |= _slid_by(stage)
                continue
            if not isinstance(stage, Stored):
                raise TypeError(f"{type(stage).__name__} is no stage that can be written")
            if isinstance(stage, Convolution):
                slid |= frozenset(stage.window)
            known = None if ranges is None else (ranges[position], ranges[position + 1])
            place = Place(self.site, stage, ends and last, added, name, slid, known)
            x = self.target.choose(self.context, place).emit(self.nodes, x, place)
        return x

    def _branch(
        self,
        stage: Sum,
        x: gs.Tensor,
        output: str | None,
        bias: gs.Tensor | None,
        ends: bool,
        slid: frozenset[int],
    ) -> gs.Tensor:
        """Write the branches, the bias in the first of them, and add their results."""
        first, *others = stage.branches
        total = self._follow(self._ordered(first), x, None, bias, ends, slid)
        nothing = None
        if ends and self.site.node.op_type == "Gemm" and self.nodes.opset < _OPTIONAL_BIAS:
            nothing = self.nodes.new_constant(np.zeros(1, self.nodes.dtype), "nothing")
        for number, other in enumerate(others):
            term = self._follow(self._ordered(other), x, None, nothing, ends, slid)
            name = output if number == len(others) - 1 else None
            dims = self.site.output_dims if ends else None
            total = self.nodes.add("Add", [total, term], "Sum", dims, None, name)
        return total


def _slid_by(stage: Sum) -> frozenset[int]:
    """Return the spatial axes along which a sum's branches move the window."""
    steps = [step for branch in stage.branches for step in branch.stages]
    return frozenset(a for step in steps if isinstance(step, Convolution) for a in step.window)


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
