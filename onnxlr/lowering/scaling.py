"""A step of one factor for each input, written as a node of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxlr.layers import Layout
from onnxlr.lowering.rows import dims_of
from onnxlr.stages import Scale

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.position import Position

__all__ = ["refuses_scaling", "scale"]


def refuses_scaling(x: gs.Tensor, position: Position) -> str | None:
    """Return why data cannot be multiplied by a factor for each of its features."""
    site = position.site
    if site.layout is Layout.SECOND_LAST and dims_of(x, position) is None:
        return "factors of its columns need the rank of its data, which is not known"
    return None


def scale(nodes: Nodes, x: gs.Tensor, position: Position) -> gs.Variable:
    """Write the product with a step's factors, with bias, alpha and beta."""
    if not isinstance(position.stage, Scale):
        raise TypeError("only a scale is written by a product with its factors")
    dims = dims_of(x, position)
    rank = None if dims is None else len(dims)
    values = _along_features(position.stage.factors, position, rank)
    factors = nodes.constant(values.astype(nodes.dtype), position, "factors")
    name = position.product_output
    product = nodes.add("Mul", [x, factors], "Scale", dims, None, name)
    return position.finish(nodes, product)


def _along_features(
    factors: npt.NDArray[np.generic], position: Position, rank: int | None
) -> npt.NDArray[np.generic]:
    """Return factors in a shape that broadcasts to the data."""
    if position.site.is_convolution:
        return factors.reshape(-1, *[1] * (len(position.site.operand.dims) - 2))
    if position.site.layout is Layout.LAST or rank == 1:
        return factors
    return factors[:, None]
