"""Where a stage stands at a site, and how its numbers are multiplied there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxlr.layers import Layout, exchange_channels
from onnxlr.lowering.position import Position
from onnxlr.lowering.window import window_attributes
from onnxlr.stages import Convolution, Linear, Range, Stored

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes

__all__ = ["Place"]


@dataclass(frozen=True)
class Place(Position):
    """One stage of numbers at one site.

    Attributes
    ----------
    ranges
        Ranges of the stage's data and of its result, where they are known.
    input_scale
        What each input or channel of its data is multiplied by first; None for nothing. Only
        operators that do that themselves are given one.
    bias_numbers
        The numbers of the bias, if they are constant.
    """

    stage: Stored
    ranges: tuple[Range, Range] | None = None
    input_scale: npt.NDArray[Any] | None = None
    bias_numbers: npt.NDArray[Any] | None = None

    @property
    def flip(self) -> bool:
        """Whether the operand is a linear stage's matrix transposed."""
        if not isinstance(self.stage, Linear):
            return False
        return (self.site.layout is not Layout.LAST) != self.site.transposed

    @property
    def spreads(self) -> bool:
        """Whether the stage is written as a transposed convolution."""
        transposed = self.site.layout is Layout.TRANSPOSED_CONVOLUTION
        return transposed and isinstance(self.stage, Convolution) and bool(self.stage.window)

    def arrange(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a stage's codes as the operator takes them."""
        if self.spreads:
            return exchange_channels(numbers, self.groups)
        return np.swapaxes(numbers, -1, -2) if self.flip else numbers

    def arrange_scales(self, scales: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a kernel's scales, one an output, so that they broadcast to the arranged codes.

        Not of a transposed convolution in groups, where they lie across both channel axes.
        """
        return self.arrange(scales.reshape(-1, *[1] * (self.stage.weight.codes.ndim - 1)))

    def multiply(self, nodes: Nodes, x: gs.Tensor, operand: gs.Tensor) -> gs.Variable:
        """Write the product of `x` and an arranged operand, with bias, alpha and beta."""
        dims = self.result_dims
        ordered = [operand, x] if self.site.layout is Layout.SECOND_LAST else [x, operand]
        attributes: dict[str, Any] = {}
        if isinstance(self.stage, Convolution):
            operator = "ConvTranspose" if self.spreads else "Conv"
            attributes = window_attributes(self.site.node, self.stage)
        elif self.is_gemm:
            operator, attributes = "Gemm", self._attributes("alpha", "beta")
        else:
            operator = "MatMul"
        if operator == "MatMul":
            product = nodes.add(operator, ordered, operator, dims, attributes, self.product_output)
            return self.finish(nodes, product)
        if self.bias is not None:
            ordered += [self.bias]
        return nodes.add(operator, ordered, operator, dims, attributes, self.output)
