"""Where a step stands at a site, and what becomes of its result there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from onnxlr.layers import Layout, Site
from onnxlr.stages import Convolution, Fold, Linear, ModeProduct, Scale, Stored

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.model.shapes import Dim

__all__ = ["Position"]


@dataclass(frozen=True)
class Position:
    """One step of a chain at one site.

    Attributes
    ----------
    site
        The node that is replaced.
    stage
        The step.
    ends
        Whether the stage is the last on its way, which takes a Gemm's alpha.
    bias
        The tensor that is added to its result, times a Gemm's beta; None or empty for nothing.
    output
        Name of the tensor of the model that its result is; None for a new one.
    slid
        Spatial axes along which this stage or one before it has moved the convolution's window.
    """

    site: Site
    stage: Stored | Scale | Fold | ModeProduct
    ends: bool
    bias: gs.Tensor | None = None
    output: str | None = None
    slid: frozenset[int] = frozenset()

    @property
    def groups(self) -> int:
        """Groups of channels: those of a convolution, 1 elsewhere."""
        return self.stage.groups if isinstance(self.stage, Convolution) else 1

    @property
    def features(self) -> int:
        """Features of the stage's result."""
        return int(self.stage.shape[-2 if self._is_flipped else -1])

    @property
    def inputs(self) -> int:
        """Features of the stage's data."""
        return int(self.stage.shape[-1 if self._is_flipped else -2])

    @property
    def _is_flipped(self) -> bool:
        return isinstance(self.stage, Linear | ModeProduct) and self.site.transposed

    def feature_axis(self, rank: int) -> int:
        """Return the axis of the features of data of that rank."""
        if self.site.is_convolution:
            return 1
        return rank - 1 if rank == 1 or self.site.layout is Layout.LAST else rank - 2

    @property
    def is_gemm(self) -> bool:
        """Whether the result is multiplied by a Gemm's alpha, and a bias by its beta."""
        return self.ends and self.site.node.op_type == "Gemm"

    @property
    def product_output(self) -> str | None:
        """Name that the bare product writes: the stage's output, if nothing follows it."""
        return self.output if self.bias is None and self.alpha == 1 else None

    @property
    def alpha(self) -> float:
        """What the product is multiplied by."""
        return float(self._attributes("alpha").get("alpha", 1)) if self.is_gemm else 1.0

    @property
    def beta(self) -> float:
        """What the bias is multiplied by."""
        return float(self._attributes("beta").get("beta", 1)) if self.is_gemm else 1.0

    def finish(self, nodes: Nodes, product: gs.Variable) -> gs.Variable:
        """Multiply a bare product, which wrote `product_output`, by alpha and add the bias."""
        dims, last = self.result_dims, self.output
        if self.alpha != 1:
            alpha = nodes.constant(np.array(self.alpha, nodes.dtype), self, "alpha")
            name = last if self.bias is None else None
            product = nodes.add("Mul", [product, alpha], "Alpha", dims, None, name)
        if self.bias is None:
            return product
        return nodes.add("Add", [product, self._added(nodes)], "Bias", dims, None, last)

    def _added(self, nodes: Nodes) -> gs.Tensor:
        """Return the bias as it is added to a bare product."""
        if self.bias is None:
            raise ValueError("nothing is added here")
        if self.site.is_convolution:
            ones = [1] * (len(self.site.operand.dims) - 2)
            wanted = nodes.constant(np.array((1, -1, *ones), np.int64), self, "bias_shape")
            dims = (1, self.features, *ones)
            return nodes.add("Reshape", [self.bias, wanted], "BiasReshape", dims)
        if self.beta == 1:
            return self.bias
        factor = nodes.constant(np.array(self.beta, nodes.dtype), self, "beta")
        return nodes.add("Mul", [self.bias, factor], "Beta", None)

    @property
    def result_dims(self) -> tuple[Dim, ...] | None:
        """Dimensions of the stage's result: the site's, with other features."""
        dims = self.site.output_dims
        if dims is None:
            return None
        changed = list(dims)
        changed[self.feature_axis(len(dims))] = self.features
        if self.site.is_convolution:
            data = self.site.data_dims
            if data is None:
                return None
            for axis in range(len(dims) - 2):
                changed[axis + 2] = (dims if axis in self.slid else data)[axis + 2]
        return tuple(changed)

    def _attributes(self, *names: str) -> dict[str, Any]:
        found = {}
        for attribute in self.site.node.attribute:
            if attribute.name in names:
                found[attribute.name] = helper.get_attribute_value(attribute)
        return found
