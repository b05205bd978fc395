"""Conv and ConvTranspose with a constant kernel, in one to three dimensions, in groups."""

from __future__ import annotations

import onnx

from onnxlr.errors import ModelError
from onnxlr.layers.examination import Candidate, Skipped, attribute, refuse_operand
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.operands import Operand

__all__ = ["examine"]

_MOST_AXES = 3

_PER_AXIS = {"strides": 1, "dilations": 1, "output_padding": 1, "pads": 2}
"""Attributes with that many numbers for each spatial axis."""

_PADDINGS = (b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID")
_PADDING_NAMES = ", ".join(name.decode() for name in _PADDINGS)


def examine(candidate: Candidate) -> Site | Skipped:
    """Say whether the kernel of a convolution can be split, or why the node is left alone."""
    operand = candidate.input(1)
    if not isinstance(operand, Operand):
        return Skipped(operand or "its kernel is computed, not constant")
    if len(operand.dims) < 3:
        raise candidate.disagreement(operand, f"{len(operand.dims)} dimensions", "at least 3")
    groups = int(attribute(candidate.node, "group", 1))
    if groups < 1 or operand.dims[0] % groups:
        raise candidate.disagreement(
            operand, f"{operand.dims[0]} channels on its first axis", f"a multiple of {groups}"
        )
    _check_window(candidate, operand)
    if reason := refuse_operand(operand) or _refuse_kernel(operand, groups):
        return Skipped(reason, operand)
    if candidate.node.op_type == "Conv":
        site = candidate.site(operand, Layout.CONVOLUTION, data=0)
        candidate.expect_inputs(site, operand.dims[1] * groups)
    else:
        site = candidate.site(operand, Layout.TRANSPOSED_CONVOLUTION, data=0)
        candidate.expect_inputs(site, operand.dims[0])
    return site


def _check_window(candidate: Candidate, operand: Operand) -> None:
    """Check that data and attributes have as many spatial axes as the kernel.

    Raises
    ------
    ModelError
        If they have not.
    """
    data = candidate.dims(str(candidate.node.input[0]))
    if data is not None and len(data) != len(operand.dims):
        raise candidate.disagreement(
            operand, f"{len(operand.dims)} dimensions", f"{len(data)}, as its data has"
        )
    extent = list(operand.dims[2:])
    where = f"{candidate.model_name}: node '{candidate.label}' ({candidate.node.op_type}): "
    for entry in candidate.node.attribute:
        if entry.name == "auto_pad" and entry.s not in _PADDINGS:
            raise ModelError(f"{where}auto_pad is {entry.s!r}, expected one of {_PADDING_NAMES}")
        found = list(entry.ints)
        if entry.type != onnx.AttributeProto.INTS:
            continue
        if entry.name == "kernel_shape" and found != extent:
            raise candidate.disagreement(operand, f"extent {extent}", f"its kernel_shape {found}")
        wanted = _PER_AXIS.get(entry.name, 0) * len(extent)
        if wanted and len(found) != wanted:
            raise ModelError(f"{where}{entry.name} has {len(found)} numbers, expected {wanted}")
        if entry.name in ("strides", "dilations") and min(found, default=1) < 1:
            raise ModelError(f"{where}{entry.name} are {found}, expected numbers of at least 1")


def _refuse_kernel(operand: Operand, groups: int) -> str | None:
    if len(operand.dims) - 2 > _MOST_AXES:
        return f"a convolution over {len(operand.dims) - 2} axes, at most {_MOST_AXES} are handled"
    if groups > 1 and 1 in (operand.dims[1], operand.dims[0] // groups):
        return "depthwise: no factorization is smaller"
    return None
