"""MatMul: a constant on the right (`x @ W`) or on the left (`W @ x`), also stacks of matrices."""

from __future__ import annotations

from onnxlr.layers.examination import Candidate, Found, Skipped, refuse_weight
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.weights import Weight

__all__ = ["examine"]


def examine(candidate: Candidate) -> Found | Skipped:
    """Say which operand of a MatMul is the weight, or why the node is left alone."""
    left, right = candidate.input(0), candidate.input(1)
    if isinstance(left, Weight) and isinstance(right, Weight):
        return Skipped("both its operands are constant: constant folding removes the node", right)
    for operand in (right, left):
        if isinstance(operand, str):
            return Skipped(operand)
    if isinstance(right, Weight):
        return _found(candidate, right, candidate.node.input[0], Layout.LAST)
    if isinstance(left, Weight):
        return _found(candidate, left, candidate.node.input[1], Layout.SECOND_LAST)
    return Skipped("neither operand is constant: it multiplies two computed tensors")


def _found(candidate: Candidate, weight: Weight, data: str, layout: Layout) -> Found | Skipped:
    if reason := refuse_weight(weight):
        return Skipped(reason, weight)
    dims = candidate.dims(data)
    if len(weight.dims) > 2 and (dims is None or len(dims) < 2):
        # (m) @ (b, m, r) gives (b, r), which the next factor would take for a matrix.
        rank = "unknown rank" if dims is None else "rank 1"
        return Skipped(f"a stack of matrices applied to data of {rank}", weight)
    swapped = layout is Layout.SECOND_LAST
    output_dims = candidate.dims(candidate.node.output[0])
    site = Site(candidate.index, candidate.node, layout, swapped, data, output_dims=output_dims)
    candidate.expect_inputs(site, weight, weight.canonical_shape(swapped)[-2])
    return Found(weight, site)
