"""Gemm: `alpha · A' @ B' + beta · C` with a constant A or B, either transposed or not."""

from __future__ import annotations

from onnxlr.layers.examination import Candidate, Found, Skipped, attribute, refuse_weight
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.weights import Weight

__all__ = ["examine"]


def examine(candidate: Candidate) -> Found | Skipped:
    """Say which operand of a Gemm is the weight, or why the node is left alone."""
    left, right = candidate.input(0), candidate.input(1)
    if isinstance(left, Weight) and isinstance(right, Weight):
        return Skipped("both its operands are constant: constant folding removes the node", right)
    for operand in (right, left):
        if isinstance(operand, str):
            return Skipped(operand)
    if isinstance(right, Weight):
        return _found(candidate, right, Layout.LAST)
    if isinstance(left, Weight):
        return _found(candidate, left, Layout.SECOND_LAST)
    return Skipped("neither operand is constant: it multiplies two computed tensors")


def _found(candidate: Candidate, weight: Weight, layout: Layout) -> Found | Skipped:
    if len(weight.dims) != 2:
        raise candidate.disagreement(weight, f"{len(weight.dims)} dimensions", "2")
    if reason := refuse_weight(weight):
        return Skipped(reason, weight)
    flags = [bool(attribute(candidate.node, name, 0)) for name in ("transA", "transB")]
    if layout is Layout.LAST:
        transpose_data, swapped = flags
    else:  # A is (outputs, inputs) unless transA
        swapped, transpose_data = not flags[0], flags[1]
    site = Site(
        candidate.index,
        candidate.node,
        layout,
        swapped,
        candidate.node.input[0 if layout is Layout.LAST else 1],
        transpose_data,
        candidate.dims(candidate.node.output[0]),
    )
    candidate.expect_inputs(site, weight, weight.canonical_shape(swapped)[-2])
    return Found(weight, site)
