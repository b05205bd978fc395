"""Rounding data to 8 bits in a known range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.rows import dims_of

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.stages import Range

__all__ = ["grid_constants", "grid_of", "rounded"]

_STEPS = 255


def grid_of(range: Range) -> tuple[np.float32, np.uint8]:
    """Return scale and zero point of the 256 codes for a range; 0 is always among them."""
    low, high = min(range[0], 0.0), max(range[1], 0.0)
    scale = np.float32((high - low) / _STEPS)
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1), np.uint8(0)
    return scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, _STEPS))


def grid_constants(nodes: Nodes, place: Place, range: Range) -> tuple[gs.Constant, gs.Constant]:
    """Return the constants of a range's scale and zero point."""
    scale, zero_point = grid_of(range)
    return (
        nodes.constant(np.asarray(scale), place, "data_scale"),
        nodes.constant(np.asarray(zero_point), place, "data_zero_point"),
    )


def rounded(
    nodes: Nodes, x: gs.Tensor, place: Place, range: Range
) -> tuple[gs.Variable, gs.Constant]:
    """Return data as codes, and their zero point."""
    scale, zero_point = grid_constants(nodes, place, range)
    dims = dims_of(x, place)
    codes = nodes.add(
        "QuantizeLinear", [x, scale, zero_point], "QuantizeLinear", dims, dtype=np.uint8
    )
    return codes, zero_point
