"""Numbers of 4 and 2 bits, several in a byte, taken apart by arithmetic. Any opset, float data.

ONNX Runtime folds the nodes when it loads the model: a small file, the speed and the memory of
float weights. The types int4 and int2 of newer opsets would need fewer nodes, but ONNX Runtime
rounds the data to int8 where it finds them behind DequantizeLinear, has no Cast from them before
1.20, and cannot hold them below opset 21.
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

__all__ = ["PackedWeights"]


class PackedWeights:
    """Packed codes and zero points, unpacked, and multiplied by their scales."""

    name = "packed"
    activations = "float"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse numbers of whole bytes, and data that is not float."""
        kept = place.stage.weight.format
        if isinstance(place.stage, Lookup):
            return "it is a table of rows"
        if not kept.is_packed:
            return f"{kept.kind} numbers are not packed"
        if context.activations != "float":
            return f"unpacking gives float weights, {context.activations} data was asked"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write what unpacks and decodes the weight, and the product."""
        operand = shared_operand(nodes, place, lambda: decode_weight(Arithmetic(nodes, place)))
        return place.multiply(nodes, x, operand)
