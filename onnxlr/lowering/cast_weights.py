"""Numbers kept in a smaller type, decoded by Cast and Mul. Any opset, float data.

ONNX Runtime folds the nodes when it loads the model: a small file, the speed and the memory of
float weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxlr.lowering.arithmetic import Arithmetic
from onnxlr.lowering.decoding import decode_weight
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
    activations = "float"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse what is packed, or in the model's type already, and data that is not float."""
        kept = place.stage.weight.format
        if isinstance(place.stage, Lookup):
            return "it is a table of rows"
        if kept.kind == context.dtype.name:
            return f"its numbers are {kept.kind} already"
        if kept.is_packed:
            return f"several {kept.kind} numbers share a byte"
        if context.activations != "float":
            return f"Cast and Mul give float weights, {context.activations} data was asked"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write Cast, Mul where there are scales, and the product."""
        operand = shared_operand(nodes, place, lambda: decode_weight(Arithmetic(nodes, place)))
        return place.multiply(nodes, x, operand)
