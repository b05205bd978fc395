"""A ternary kernel as a TernaryConv node, which the op library has kernels for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from onnxlr.lowering.ternary_operator import (
    TernaryOperatorLowering,
    constants_of,
    floats,
    input_factors,
    inputs_of,
    with_own_bias,
)
from onnxlr.lowering.window import window_attributes
from onnxlr.operators import TernaryConv
from onnxlr.operators.schema import DOMAIN
from onnxlr.stages import Convolution

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place

__all__ = ["TernaryConvLowering"]

_MOST_AXES = 2
_LARGEST = 2**20
"""Of kernel sizes, strides, dilations and pads."""


class TernaryConvLowering(TernaryOperatorLowering):
    """TernaryConv: additions of floats, or of int8 numbers to which each patch is rounded."""

    operator = TernaryConv.operator

    def _refuses_stage(self, place: Place) -> str | None:
        stage = place.stage
        if not isinstance(stage, Convolution):
            return "it is not a convolution"
        if place.spreads:
            return "the operator is no transposed convolution"
        axes = len(stage.weight.shape) - 2
        if not 1 <= axes <= _MOST_AXES:
            return f"the operator has one or two spatial axes, the kernel {axes}"
        if not _groups_agree(place):
            return (
                f"groups of {stage.weight.format.group} inputs run along the kernel here, the "
                "operator's along the channels (use one scale for all inputs)"
            )
        window = _Window.of(place)
        if window is None:
            return "it pads as much as the size of its data asks for, which is not known"
        return window.refuses()

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the node, and a bias that is not constant."""
        place, bias = with_own_bias(place)
        weights = _weights(place, bias, self.level)
        product = nodes.add(
            self.operator,
            [x, *constants_of(nodes, place, weights)],
            self.operator,
            place.result_dims,
            weights.attributes,
            place.product_output,
            domain=DOMAIN,
        )
        return place.finish(nodes, product)


@dataclass(frozen=True)
class _Window:
    """How the kernel moves, one number for each axis; pads are begins, then ends."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, place: Place) -> _Window | None:
        """Return a stage's window; None if its pads depend on what is not known."""
        if not isinstance(place.stage, Convolution):
            raise TypeError("only kernels move")
        found = window_attributes(place.site.node, place.stage)
        extent = place.stage.weight.shape[2:]
        ones = (1,) * len(extent)
        strides = tuple(found.get("strides", ones))
        dilations = tuple(found.get("dilations", ones))
        automatic = found.get("auto_pad", "NOTSET")
        if not automatic.startswith("SAME"):
            given = () if automatic == "VALID" else found.get("pads", ())
            return cls(strides, dilations, tuple(given) or (0,) * (2 * len(extent)))
        sizes = (place.site.data_dims or (None,) * (2 + len(extent)))[2:]
        begins, ends = [], []
        for size, kernel, stride, dilation in zip(sizes, extent, strides, dilations, strict=True):
            span = dilation * (kernel - 1) + 1
            if stride == 1:
                total = span - 1
            elif isinstance(size, int):
                total = max((-(-size // stride) - 1) * stride + span - size, 0)
            elif kernel == 1:
                total = 0
            else:
                return None
            smaller = total // 2
            begins.append(smaller if automatic == "SAME_UPPER" else total - smaller)
            ends.append(total - begins[-1])
        return cls(strides, dilations, (*begins, *ends))

    def refuses(self) -> str | None:
        """Return why the operator has no such window."""
        if min(self.pads) < 0:
            return "it crops its data by negative pads"
        if max(*self.strides, *self.dilations, *self.pads) > _LARGEST:
            return f"strides, dilations and pads of the operator are at most {_LARGEST}"
        return None


def _groups_agree(place: Place) -> bool:
    """Whether groups of inputs are the operator's, which order position first and channel last."""
    weight = place.stage.weight
    group, channels, positions = weight.format.group, weight.shape[1], prod(weight.shape[2:])
    return group is None or group >= channels * positions or 1 in (channels, positions)


def _weights(place: Place, bias: npt.NDArray[np.float32], level: int) -> TernaryConv:
    weight, window, inputs = place.stage.weight, _Window.of(place), inputs_of(place)
    if weight.scales is None or window is None:
        raise ValueError("ternary codes without scales, or unknown pads")
    channels = place.stage.shape[0]
    return TernaryConv(
        weight.trits,
        floats(weight.scales.transpose(2, 1, 0)),
        input_factors(place, channels),
        bias,
        min(weight.format.group or inputs, inputs),
        level,
        window.strides,
        window.pads,
        window.dilations,
        place.groups,
    )
