"""Where a stage stands at a site, and how its numbers are multiplied there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from onnxlr.layers import Layout, Site, exchange_channels
from onnxlr.lowering.window import window_attributes
from onnxlr.stages import Convolution, Linear, Stage

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.model.shapes import Dim

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """One stage of a chain at one site.

    Attributes
    ----------
    site
        The node that is replaced.
    stage
        The stage.
    last
        Whether the stage is the chain's last, which takes bias, alpha and beta, and writes the
        site's output.
    slid
        Spatial axes along which this stage or one before it has moved the convolution's window.
    """

    site: Site
    stage: Stage
    last: bool
    slid: frozenset[int] = frozenset()

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
            return exchange_channels(numbers, self._groups)
        return np.swapaxes(numbers, -1, -2) if self.flip else numbers

    def arrange_scales(self, scales: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a stage's scales in a shape that broadcasts against the arranged codes."""
        if not self.spreads:
            return self.arrange(scales)
        arranged = exchange_channels(scales, self._groups)  # (groups, outputs/groups, 1, …)
        if self._groups == 1:
            return arranged
        return np.repeat(arranged, self.stage.shape[0] // self._groups, axis=0)

    @property
    def _groups(self) -> int:
        return self.stage.groups if isinstance(self.stage, Convolution) else 1

    @property
    def features(self) -> int:
        """Features of the stage's result."""
        flipped = isinstance(self.stage, Linear) and self.site.transposed
        return int(self.stage.shape[-2 if flipped else -1])

    def multiply(self, nodes: Nodes, x: gs.Tensor, operand: gs.Tensor) -> gs.Variable:
        """Write the product of `x` and an arranged operand."""
        output = self.site.output if self.last else None
        dims = self._result_dims()
        ordered = [operand, x] if self.site.layout is Layout.SECOND_LAST else [x, operand]
        if isinstance(self.stage, Convolution):
            operator = "ConvTranspose" if self.spreads else "Conv"
            attributes = window_attributes(self.site.node, self.stage)
        elif self.site.node.op_type == "Gemm" and self.last:
            operator, attributes = "Gemm", self._attributes("alpha", "beta")
        else:
            operator, attributes = "MatMul", {}
        if self.last and operator != "MatMul":
            ordered += [nodes.existing(name) for name in self.site.node.input[2:3]]
        return nodes.add(operator, ordered, operator, dims, attributes, output)

    def _result_dims(self) -> tuple[Dim, ...] | None:
        """Return the dimensions of the stage's result: the site's, with other features."""
        dims = self.site.output_dims
        if dims is None:
            return None
        changed = list(dims)
        if isinstance(self.stage, Convolution):
            data = self.site.data_dims
            if data is None:
                return None
            changed[1] = self.features
            for axis in range(len(dims) - 2):
                changed[axis + 2] = (dims if axis in self.slid else data)[axis + 2]
        else:
            axis = -1 if self.site.layout is Layout.LAST else -2
            changed[0 if len(dims) == 1 else axis] = self.features
        return tuple(changed)

    def _attributes(self, *names: str) -> dict[str, Any]:
        found = {}
        for attribute in self.site.node.attribute:
            if attribute.name in names:
                found[attribute.name] = helper.get_attribute_value(attribute)
        return found
