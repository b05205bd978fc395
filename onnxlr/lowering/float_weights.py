"""Numbers in the model's own float type: a product with an initializer. Any opset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxlr.lowering.khatri_rao import multiply_factors
from onnxlr.lowering.lowering import shared_operand
from onnxlr.stages import KhatriRao, Lookup

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place

__all__ = ["FloatWeights"]


class FloatWeights:
    """The plain way: what the model does already, with other numbers."""

    name = "float"
    activations = "float"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse numbers kept in another type than the model's."""
        kind = place.stage.weight.format.kind
        if isinstance(place.stage, Lookup):
            return "it is a table of rows"
        if kind != context.dtype.name and not isinstance(place.stage, KhatriRao):
            return f"its numbers are kept as {kind}, the model computes in {context.dtype.name}"
        if context.activations != "float":
            return f"float weights are multiplied by float data, {context.activations} was asked"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the product with the numbers as an initializer, or with the product of factors."""
        if isinstance(place.stage, KhatriRao):
            return place.multiply(nodes, x, multiply_factors(nodes, place, place.stage))
        codes = place.arrange(place.stage.weight.codes)
        operand = shared_operand(nodes, place, lambda: nodes.constant(codes, place, "weight"))
        return place.multiply(nodes, x, operand)
