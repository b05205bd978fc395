"""A Khatri-Rao product of initializers, which ONNX Runtime multiplies when it loads the model."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from onnxlr.lowering.lowering import shared_operand
from onnxlr.stages import KhatriRao

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place

__all__ = ["multiply_factors"]


def multiply_factors(nodes: Nodes, place: Place, stage: KhatriRao) -> gs.Tensor:
    """Return a stage's matrix as this place takes it, as nodes on its factors."""
    return shared_operand(nodes, place, lambda: _written(nodes, place, stage))


def _written(nodes: Nodes, place: Place, stage: KhatriRao) -> gs.Tensor:
    behind = stage.gathers != place.flip  # components are the last axis of what the place takes
    count = len(stage.factors)
    factors = []
    for number, factor in enumerate(stage.factors):
        codes = factor.codes if behind else factor.codes.T
        first = number if behind else number + 1
        extent = [1] * (count + 1)
        extent[first] = factor.codes.shape[0]
        extent[-1 if behind else 0] = factor.codes.shape[1]
        factors.append(_as_computed(nodes, place, codes.reshape(extent)))
    if count == 1:
        return factors[0]
    whole = reduce(lambda a, b: _product(nodes, a, b), factors)
    rows, columns = place.arrange(stage.weight.codes).shape
    wanted = nodes.constant(np.array((rows, columns), np.int64), place, "factors_shape")
    return nodes.add("Reshape", [whole, wanted], "Factors", (rows, columns))


def _product(nodes: Nodes, first: gs.Tensor, second: gs.Tensor) -> gs.Tensor:
    dims = np.broadcast_shapes(first.shape, second.shape)
    return nodes.add("Mul", [first, second], "FactorsProduct", dims)


def _as_computed(nodes: Nodes, place: Place, codes: np.ndarray) -> gs.Tensor:
    factor = nodes.constant(codes, place, "factor")
    if codes.dtype == nodes.dtype:
        return factor
    kind = helper.np_dtype_to_tensor_dtype(nodes.dtype)
    return nodes.add("Cast", [factor], "FactorCast", codes.shape, {"to": kind})
