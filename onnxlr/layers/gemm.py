"""Gemm: `alpha · A' @ B' + beta · C` with a constant A or B, either transposed or not."""

from __future__ import annotations

from onnxlr.layers.examination import Candidate, Skipped, attribute, refuse_operand
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.matmul import constant_side

__all__ = ["examine"]


def examine(candidate: Candidate) -> Site | Skipped:
    """Say which operand of a Gemm is the weight, or why the node is left alone."""
    found = constant_side(candidate)
    if isinstance(found, Skipped):
        return found
    operand, layout = found
    if len(operand.dims) != 2:
        raise candidate.disagreement(operand, f"{len(operand.dims)} dimensions", "2")
    if reason := refuse_operand(operand):
        return Skipped(reason, operand)
    trans_a, trans_b = (bool(attribute(candidate.node, name, 0)) for name in ("transA", "transB"))
    if layout is Layout.LAST:
        site = candidate.site(operand, layout, 0, swapped=trans_b, transpose_data=trans_a)
    else:  # A is (outputs, inputs) unless transA
        site = candidate.site(operand, layout, 1, swapped=not trans_a, transpose_data=trans_b)
    candidate.expect_inputs(site, operand.dims[1 if site.swapped else 0])
    return site
