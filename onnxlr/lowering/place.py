"""Where a stage stands at a site, and how its numbers are multiplied there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from onnxlr.layers import Layout, Site, exchange_channels
from onnxlr.lowering.window import window_attributes
from onnxlr.stages import Convolution, Linear, Range, Stored

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
    ends
        Whether the stage is the last on its way, which takes a Gemm's alpha.
    bias
        The tensor that is added to its result, times a Gemm's beta; None or empty for nothing.
    output
        Name of the tensor of the model that its result is; None for a new one.
    slid
        Spatial axes along which this stage or one before it has moved the convolution's window.
    ranges
        Ranges of the stage's data and of its result, where they are known.
    """

    site: Site
    stage: Stored
    ends: bool
    bias: gs.Tensor | None = None
    output: str | None = None
    slid: frozenset[int] = frozenset()
    ranges: tuple[Range, Range] | None = None

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

    @property
    def groups(self) -> int:
        """Groups of channels: those of a convolution, 1 elsewhere."""
        return self.stage.groups if isinstance(self.stage, Convolution) else 1

    @property
    def features(self) -> int:
        """Features of the stage's result."""
        flipped = isinstance(self.stage, Linear) and self.site.transposed
        return int(self.stage.shape[-2 if flipped else -1])

    @property
    def is_gemm(self) -> bool:
        """Whether the result is multiplied by a Gemm's alpha, and a bias by its beta."""
        return self.ends and self.site.node.op_type == "Gemm"

    @property
    def product_output(self) -> str | None:
        """Name that the bare product writes: the stage's output, if nothing follows it."""
        return self.output if self.bias is None and self._alpha == 1 else None

    @property
    def _alpha(self) -> float:
        return float(self._attributes("alpha").get("alpha", 1)) if self.is_gemm else 1.0

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

    def finish(self, nodes: Nodes, product: gs.Variable) -> gs.Variable:
        """Multiply a bare product, which wrote `product_output`, by alpha and add the bias."""
        dims, last = self.result_dims, self.output
        if self._alpha != 1:
            alpha = nodes.constant(np.array(self._alpha, nodes.dtype), self, "alpha")
            name = last if self.bias is None else None
            product = nodes.add("Mul", [product, alpha], "Alpha", dims, None, name)
        if self.bias is None:
            return product
        return nodes.add("Add", [product, self._added(nodes)], "Bias", dims, None, last)

    def _added(self, nodes: Nodes) -> gs.Tensor:
        """Return the bias as it is added to a bare product."""
        if self.bias is None:
            raise ValueError("nothing is added here")
        if isinstance(self.stage, Convolution):
            shape = (1, -1, *[1] * (self.stage.weight.codes.ndim - 2))
            wanted = nodes.constant(np.array(shape, np.int64), self, "bias_shape")
            return nodes.add("Reshape", [self.bias, wanted], "BiasReshape", None)
        beta = float(self._attributes("beta").get("beta", 1)) if self.is_gemm else 1.0
        if beta == 1:
            return self.bias
        factor = nodes.constant(np.array(beta, nodes.dtype), self, "beta")
        return nodes.add("Mul", [self.bias, factor], "Beta", None)

    @property
    def result_dims(self) -> tuple[Dim, ...] | None:
        """Dimensions of the stage's result: the site's, with other features."""
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
