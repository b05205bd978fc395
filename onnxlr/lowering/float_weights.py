"""A matrix in the model's own float type: MatMul, Gemm or Conv with an initializer. Any opset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxlr.lowering.lowering import shared_operand

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.stages import Linear

__all__ = ["FloatWeights"]


class FloatWeights:
    """The plain way: what the model does already, with another matrix."""

    name = "float"

    def refuses(self, stage: Linear, context: Context, place: Place) -> str | None:  # noqa: ARG002
        """Refuse matrices kept in another type than the model's."""
        kind = stage.weight.format.kind
        if kind != context.dtype.name:
            return f"its numbers are kept as {kind}, the model computes in {context.dtype.name}"
        if context.activations != "float":
            return f"float weights are multiplied by float data, {context.activations} was asked"
        return None

    def emit(self, stage: Linear, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the product with the matrix as an initializer."""
        operand = shared_operand(
            nodes,
            stage,
            place,
            lambda: nodes.constant(place.arrange(stage.weight.codes), "weight"),
        )
        return place.multiply(nodes, x, operand, stage.shape[-2 if place.transposed else -1])
