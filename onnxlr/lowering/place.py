"""Where a stage stands at a site, and how its matrix is multiplied there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from onnxlr.layers import Layout, Site

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
    transposed
        Whether the site uses the transpose of the layer's matrix, and so of each of its stages.
    first, last
        Whether the stage is the chain's first (takes a convolution's window) or last (takes bias,
        alpha and beta, and writes the site's output).
    """

    site: Site
    transposed: bool
    first: bool
    last: bool

    @property
    def is_kernel(self) -> bool:
        """Whether the operand is a 1×1 convolution's kernel."""
        return self.site.layout is Layout.CHANNELS

    @property
    def flip(self) -> bool:
        """Whether the operand is the stage's matrix transposed."""
        return (self.site.layout is not Layout.LAST) != self.transposed

    def arrange(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a stage's matrix `(*batch, inputs, outputs)` as the operator takes it."""
        arranged = np.swapaxes(matrix, -1, -2) if self.flip else matrix
        if not self.is_kernel:
            return arranged
        return arranged.reshape(*arranged.shape, *(1,) * self.site.kernel_axes)

    def multiply(
        self, nodes: Nodes, x: gs.Tensor, operand: gs.Tensor, features: int
    ) -> gs.Variable:
        """Write the product of `x` and an arranged operand, with `features` outputs."""
        output = self.site.output if self.last else None
        dims = self.result_dims(features)
        ordered = [operand, x] if self.site.layout is Layout.SECOND_LAST else [x, operand]
        if self.site.node.op_type == "Gemm" and self.last:
            return nodes.add(
                "Gemm",
                [*ordered, *self._bias(nodes)],
                "Gemm",
                dims,
                self._attributes("alpha", "beta"),
                output,
            )
        if self.is_kernel:
            bias = self._bias(nodes) if self.last else []
            attributes = self._attributes("strides", "pads", "auto_pad", "dilations")
            return nodes.add(
                "Conv", [*ordered, *bias], "Conv", dims, attributes if self.first else None, output
            )
        return nodes.add("MatMul", ordered, "MatMul", dims, None, output)

    def result_dims(self, features: int) -> tuple[Dim, ...] | None:
        """Return the dimensions of the stage's result: the site's, with other features."""
        dims = self.site.output_dims
        if dims is None:
            return None
        axis = {Layout.LAST: -1, Layout.SECOND_LAST: -2, Layout.CHANNELS: 1}[self.site.layout]
        if len(dims) == 1:
            axis = 0
        changed = list(dims)
        changed[axis] = features
        return tuple(changed)

    def _bias(self, nodes: Nodes) -> list[gs.Tensor]:
        return [nodes.existing(name) for name in self.site.node.input[2:3]]

    def _attributes(self, *names: str) -> dict[str, Any]:
        found = {}
        for attribute in self.site.node.attribute:
            if attribute.name in names:
                value = helper.get_attribute_value(attribute)
                found[attribute.name] = value.decode() if isinstance(value, bytes) else value
        return found
