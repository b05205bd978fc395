"""MatMul: a constant on the right (`x @ W`) or on the left (`W @ x`), also stacks of matrices."""

from __future__ import annotations

from onnxlr.layers.examination import Candidate, Skipped, refuse_operand
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.operands import Operand

__all__ = ["constant_side", "examine"]


def constant_side(candidate: Candidate) -> tuple[Operand, Layout] | Skipped:
    """Return which of the first two operands of a product is constant, the right one first."""
    left, right = candidate.input(0), candidate.input(1)
    if isinstance(left, Operand) and isinstance(right, Operand):
        return Skipped("both its operands are constant: constant folding removes the node", right)
    for operand in (right, left):
        if isinstance(operand, str):
            return Skipped(operand)
    if isinstance(right, Operand):
        return right, Layout.LAST
    if isinstance(left, Operand):
        return left, Layout.SECOND_LAST
    return Skipped("neither operand is constant: it multiplies two computed tensors")


def examine(candidate: Candidate) -> Site | Skipped:
    """Say which operand of a MatMul is the weight, or why the node is left alone."""
    found = constant_side(candidate)
    if isinstance(found, Skipped):
        return found
    operand, layout = found
    if reason := refuse_operand(operand):
        return Skipped(reason, operand)
    swapped = layout is Layout.SECOND_LAST
    site = candidate.site(operand, layout, data=1 if swapped else 0, swapped=swapped)
    dims = site.data_dims
    if len(operand.dims) > 2 and (dims is None or len(dims) < 2):
        # (m) @ (b, m, r) gives (b, r), which the next factor would take for a matrix.
        rank = "unknown rank" if dims is None else "rank 1"
        return Skipped(f"a stack of matrices applied to data of {rank}", operand)
    candidate.expect_inputs(site, operand.dims[-1 if swapped else -2])
    return site
