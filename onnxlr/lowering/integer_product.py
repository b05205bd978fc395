"""Products of 8-bit integers, exact in 32 bits, by operators of the standard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnxlr.lowering.rows import refuses_rows

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.model.shapes import Dim

__all__ = ["column_scales", "integer_product", "refuses_integers", "refuses_matrix"]

_MOST_INPUTS = (2**31 - 1) // (255 * 127)
"""Inputs whose products surely add up to an int32."""


def refuses_integers(context: Context, place: Place) -> str | None:
    """Return why a stage cannot be a product of integers: its codes, its scales, its type."""
    kept = place.stage.weight.format
    if kept.kind != "int8":
        return f"its numbers are kept as {kept.kind}, not int8"
    if context.dtype != np.float32:
        return f"integers are scaled to float32, the model computes in {context.dtype.name}"
    return None


def refuses_matrix(place: Place) -> str | None:
    """Return why an int8 stage cannot be the matrix of an integer product."""
    weight = place.stage.weight
    if reason := refuses_rows(place):
        return reason
    if weight.format.groups(weight.shape[-2]) > 1:
        return f"a sum has one scale, the weight has one for each {weight.format.group} inputs"
    if weight.shape[-2] > _MOST_INPUTS:
        return f"a sum of more than {_MOST_INPUTS} inputs may not fit into 32 bits"
    return None


def column_scales(place: Place) -> npt.NDArray[Any]:
    """Return the scales of a stage's columns, in a shape that broadcasts to its result."""
    scales = place.stage.weight.scales
    if scales is None:
        raise ValueError("int8 codes without scales")
    return scales.reshape(-1) if scales.ndim == 2 else scales


def integer_product(
    nodes: Nodes,
    place: Place,
    data: tuple[gs.Tensor, gs.Tensor],
    factors: gs.Tensor,
    dims: Sequence[Dim] | None,
    output: str | None,
) -> gs.Variable:
    """Write the product of data, as codes and their zero point, and a stage's codes.

    The sums are multiplied by `factors`, which are those of the data and of the columns together.
    """
    codes, zero_point = data
    weight = nodes.constant(place.stage.weight.codes, place, "codes")
    sums = nodes.add(
        "MatMulInteger", [codes, weight, zero_point], "MatMulInteger", dims, dtype=np.int32
    )
    cast = nodes.add("Cast", [sums], "Cast", dims, {"to": int(TensorProto.FLOAT)})
    return nodes.add("Mul", [cast, factors], "Mul", dims, None, output)
