"""A matrix kept in a smaller type, decoded by Cast and Mul. Any opset, float data.

ONNX Runtime folds both nodes when it loads the model: a small file, the speed and the memory of
float weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import helper

from onnxlr.lowering.lowering import shared_operand

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.stages import Linear

__all__ = ["CastWeights"]


class CastWeights:
    """Stored codes, cast to the model's float type and multiplied by their scales."""

    name = "cast"

    def refuses(self, stage: Linear, context: Context, place: Place) -> str | None:  # noqa: ARG002
        """Refuse what is in the model's type already, and data that is not float."""
        kind = stage.weight.format.kind
        if kind == context.dtype.name:
            return f"its numbers are {kind} already"
        if context.activations != "float":
            return f"Cast and Mul give float weights, {context.activations} data was asked"
        return None

    def emit(self, stage: Linear, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write Cast, Mul where there are scales, and the product."""
        operand = shared_operand(nodes, stage, place, lambda: _decoded(stage, nodes, place))
        return place.multiply(nodes, x, operand, stage.shape[-2 if place.transposed else -1])


def _decoded(stage: Linear, nodes: Nodes, place: Place) -> gs.Tensor:
    codes = place.arrange(stage.weight.codes)
    kind = helper.np_dtype_to_tensor_dtype(nodes.dtype)
    stored = nodes.constant(codes, "codes")
    cast = nodes.add("Cast", [stored], "Cast", codes.shape, {"to": int(kind)})
    if stage.weight.scales is None:
        return cast
    scales = nodes.constant(place.arrange(stage.weight.scales.astype(nodes.dtype)), "scales")
    return nodes.add("Mul", [cast, scales], "Mul", codes.shape)
