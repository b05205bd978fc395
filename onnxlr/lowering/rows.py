"""Products whose operator takes data in rows only, at sites that have it in columns as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onnxlr.layers import Layout
from onnxlr.stages import Linear

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.lowering.position import Position
    from onnxlr.model.shapes import Dim

__all__ = ["Product", "dims_of", "multiply_rows", "refuses_rows"]

Product = Callable[["gs.Tensor", "Sequence[Dim] | None", "str | None"], "gs.Variable"]
"""Writes a bare product of data, with these dimensions and this name."""


def refuses_rows(place: Place) -> str | None:
    """Return why a stage's matrix, with scales for its columns, cannot be multiplied by rows."""
    if not isinstance(place.stage, Linear):
        return "it is not a matrix"
    if place.site.transposed:
        return "this site takes the matrix transposed, so that its scales lie along the sum"
    known = place.site.data_dims is not None and place.site.output_dims is not None
    if place.site.layout is Layout.SECOND_LAST and not known:
        return "its data has to be transposed, and the rank is not known"
    return None


def multiply_rows(nodes: Nodes, x: gs.Tensor, place: Place, product: Product) -> gs.Variable:
    """Write a product, with bias, alpha and beta; data in columns is transposed, and the result."""
    dims, name = place.result_dims, place.product_output
    data = dims_of(x, place)
    if place.site.layout is Layout.LAST or data is None or len(data) == 1:
        return place.finish(nodes, product(x, dims, name))
    turned = product(_turned(nodes, x, data), _exchanged(dims), None)
    return place.finish(nodes, _turned(nodes, turned, _exchanged(dims), name))


def dims_of(x: gs.Tensor, place: Position) -> Sequence[Dim] | None:
    """Return the dimensions of a place's data, None if its rank is not known."""
    if x.shape is not None:
        return list(x.shape)
    return place.site.data_dims if x.name == place.site.data else None


def _turned(
    nodes: Nodes, x: gs.Tensor, dims: Sequence[Dim] | None, output: str | None = None
) -> gs.Variable:
    if dims is None:
        raise ValueError("data of unknown rank cannot be transposed")
    axes = list(range(len(dims)))
    axes[-2:] = axes[:-3:-1]
    attributes = {"perm": axes}
    return nodes.add("Transpose", [x], "Transpose", _exchanged(dims), attributes, output)


def _exchanged(dims: Sequence[Dim] | None) -> list[Dim] | None:
    return None if dims is None else [*dims[:-2], dims[-1], dims[-2]]
