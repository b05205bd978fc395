"""Rows of a table: the rows that are asked for are gathered as codes and decoded. Any opset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import helper

from onnxlr.stages import Lookup

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place

__all__ = ["GatherRows"]


class GatherRows:
    """Gather of codes, Cast, and Mul by gathered scales: the table is never decoded whole."""

    name = "gather_rows"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse everything but tables in another type than the model's."""
        if not isinstance(place.stage, Lookup):
            return "it is a product, not a table of rows"
        if place.stage.weight.format.kind == context.dtype.name:
            return f"its numbers are {context.dtype.name} already"
        if context.activations != "float":
            return "rows of a table have no data to round"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the gathers and the decoding."""
        weight, dims = place.stage.weight, place.site.output_dims
        output = place.site.output
        kind = int(helper.np_dtype_to_tensor_dtype(nodes.dtype))
        codes = nodes.constant(weight.codes, place, "codes")
        rows = nodes.add("Gather", [codes, x], "Gather", dims, {"axis": 0}, dtype=codes.dtype)
        if weight.scales is None:
            return nodes.add("Cast", [rows], "Cast", dims, {"to": kind}, output)
        cast = nodes.add("Cast", [rows], "Cast", dims, {"to": kind})
        scales = nodes.constant(weight.scales.astype(nodes.dtype), place, "scales")
        narrow = None if dims is None else (*dims[:-1], 1)
        scale = nodes.add("Gather", [scales, x], "GatherScales", narrow, {"axis": 0})
        return nodes.add("Mul", [cast, scale], "Mul", dims, None, output)
