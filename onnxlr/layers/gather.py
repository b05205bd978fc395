"""Gather of rows of a constant table: an embedding."""

from __future__ import annotations

from onnxlr.layers.examination import Candidate, Skipped, attribute, refuse_operand
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.operands import Operand
from onnxlr.model.tensors import FLOAT_TYPES

__all__ = ["examine"]


def examine(candidate: Candidate) -> Site | Skipped | None:
    """Say whether a Gather takes rows of a table; None for Gathers that are no layers at all."""
    operand = candidate.input(0)
    if not isinstance(operand, Operand) or operand.elem_type not in FLOAT_TYPES:
        return None
    if len(operand.dims) != 2:
        return None
    if reason := refuse_operand(operand):
        return Skipped(reason, operand)
    axis = int(attribute(candidate.node, "axis", 0))
    if axis not in (0, -2):
        return Skipped(f"it gathers along axis {axis}, not rows of a table", operand)
    site = candidate.site(operand, Layout.ROWS, data=1)
    candidate.expect_ranks(site)
    return site
