"""The window of a convolution, split between the stages that replace it."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from onnxlr.errors import UsageError
from onnxlr.stages import Convolution

__all__ = ["window_attributes"]

_PER_AXIS = {"strides": 1, "dilations": 1, "output_padding": 0}
"""Attributes with one number for each axis, and what they are where no window moves."""


def window_attributes(node: onnx.NodeProto, stage: Convolution) -> dict[str, Any]:
    """Return the attributes of the node that writes a stage of a convolution.

    Along the axes of its window the stage has the original's stride, padding and dilation; along
    the others its kernel is 1, moves by 1 and pads nothing.

    Raises
    ------
    UsageError
        If the node states the shape of its output, and the stage moves along some axes only.
    """
    axes = len(stage.weight.shape) - 2
    mine = [axis in stage.window for axis in range(axes)]
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        name, value = attribute.name, helper.get_attribute_value(attribute)
        if name in _PER_AXIS:
            found[name] = _kept(value, mine, _PER_AXIS[name])
        elif name == "pads":
            found[name] = _kept(value, [*mine, *mine], 0)
        elif name == "kernel_shape":
            found[name] = list(stage.weight.shape[2:])
        elif name == "auto_pad" and any(mine):
            found[name] = value.decode()
        elif name == "output_shape" and any(mine):
            if not all(mine):
                raise UsageError(
                    "the node states its output_shape, which has to be moved along all axes at "
                    "once: only the forms channel and input can"
                )
            found[name] = list(value)
    if not any(mine):
        found = {name: value for name, value in found.items() if name == "kernel_shape"}
    if stage.groups > 1:
        found["group"] = stage.groups
    return found


def _kept(values: list[int], mine: list[bool], default: int) -> list[int]:
    return [value if own else default for value, own in zip(values, mine, strict=True)]
