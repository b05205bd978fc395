"""A ternary matrix as a TernaryMatMul node, which the op library has kernels for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnxlr.lowering.rows import multiply_rows, refuses_rows
from onnxlr.lowering.ternary_operator import (
    TernaryOperatorLowering,
    constants_of,
    floats,
    input_factors,
    inputs_of,
    with_own_bias,
)
from onnxlr.operators import TernaryMatMul
from onnxlr.operators.schema import DOMAIN

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.model.shapes import Dim

__all__ = ["TernaryMatMulLowering"]


class TernaryMatMulLowering(TernaryOperatorLowering):
    """TernaryMatMul: additions of floats, or of int8 numbers to which each row is rounded."""

    operator = TernaryMatMul.operator

    def _refuses_stage(self, place: Place) -> str | None:
        if reason := refuses_rows(place):
            return reason
        if len(place.stage.shape) > 2:
            return "it is a stack of matrices"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the node, and of alpha, beta and bias what it does not do itself."""
        place, bias = with_own_bias(place)
        weights = _weights(place, bias, self.level)
        constants = constants_of(nodes, place, weights)

        def product(rows: gs.Tensor, dims: Sequence[Dim] | None, output: str | None) -> gs.Variable:
            return nodes.add(
                self.operator,
                [rows, *constants],
                self.operator,
                dims,
                weights.attributes,
                output,
                domain=DOMAIN,
            )

        return multiply_rows(nodes, x, place, product)


def _weights(place: Place, bias: npt.NDArray[np.float32], level: int) -> TernaryMatMul:
    weight, inputs = place.stage.weight, inputs_of(place)
    if weight.scales is None:
        raise ValueError("ternary codes without scales")
    return TernaryMatMul(
        weight.trits,
        floats(weight.scales),
        input_factors(place, inputs),
        bias,
        min(weight.format.group or inputs, inputs),
        level,
    )
