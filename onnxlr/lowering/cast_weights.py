"""Numbers kept in a smaller type, decoded by Cast and Mul. Any opset, float data.

ONNX Runtime folds both nodes when it loads the model: a small file, the speed and the memory of
float weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import helper

from onnxlr.lowering.lowering import shared_operand
from onnxlr.stages import Lookup

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place

__all__ = ["CastWeights"]


class CastWeights:
    """Stored codes, cast to the model's float type and multiplied by their scales."""

    name = "cast"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse what is in the model's type already, and data that is not float."""
        kind = place.stage.weight.format.kind
        if isinstance(place.stage, Lookup):
            return "it is a table of rows"
        if kind == context.dtype.name:
            return f"its numbers are {kind} already"
        if context.activations != "float":
            return f"Cast and Mul give float weights, {context.activations} data was asked"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write Cast, Mul where there are scales, and the product."""
        operand = shared_operand(nodes, place, lambda: _decoded(nodes, place))
        return place.multiply(nodes, x, operand)


def _decoded(nodes: Nodes, place: Place) -> gs.Tensor:
    weight = place.stage.weight
    codes = place.arrange(weight.codes)
    kind = helper.np_dtype_to_tensor_dtype(nodes.dtype)
    stored = nodes.constant(codes, place, "codes")
    cast = nodes.add("Cast", [stored], "Cast", codes.shape, {"to": int(kind)})
    if weight.scales is None:
        return cast
    scales = place.arrange_scales(weight.scales).astype(nodes.dtype)
    return nodes.add("Mul", [cast, nodes.constant(scales, place, "scales")], "Mul", codes.shape)
