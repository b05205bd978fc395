"""Rows of a table: the rows that are asked for are gathered as codes and decoded. Any opset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.arithmetic import Arithmetic
from onnxlr.lowering.decoding import decode_rows, pack
from onnxlr.stages import Lookup

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.stages import Stored

__all__ = ["GatherRows"]


class GatherRows:
    """Gathers of codes, scales and zero points: the table is never decoded whole."""

    name = "gather_rows"
    activations = "float"

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse everything but tables in another type than the model's."""
        if not isinstance(place.stage, Lookup):
            return "it is a product, not a table of rows"
        if place.stage.weight.format.kind == context.dtype.name:
            return f"its numbers are {context.dtype.name} already"
        if context.activations != "float":
            return "rows of a table have no data to round"
        if _has_parts(place.stage) and place.site.output_dims is None:
            return "it unpacks along the last axis, and the rank of the indices is not known"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the gathers and the decoding."""
        weight, write = place.stage.weight, Arithmetic(nodes, place)
        if weight.scales is None:
            return _cast(write, weight.codes, x)
        if not _has_parts(place.stage):
            return _cast(write, weight.codes, x, weight.scales)
        bits = weight.format.bits
        codes, zeros = weight.codes, weight.zero_points
        points = None
        if zeros is not None:
            codes = pack(codes, bits)[:, None]
            points = _rows(write, pack(zeros, bits)[:, None], x, "zero_points")
        kept = weight.scales.astype(nodes.dtype)
        scales = _rows(write, kept if kept.shape[1] == 1 else kept[..., None], x, "scales")
        return decode_rows(write, _rows(write, codes, x, "codes"), scales, points)


def _has_parts(stage: Stored) -> bool:
    """Whether a row is more than numbers of whole bytes with at most one scale."""
    scales = stage.weight.scales
    return stage.weight.format.is_packed or (scales is not None and scales.shape[1] > 1)


def _cast(
    write: Arithmetic,
    table: npt.NDArray[np.generic],
    x: gs.Tensor,
    scales: npt.NDArray[np.generic] | None = None,
) -> gs.Variable:
    """Write Gather, Cast, and Mul by the gathered scale of each row if there are scales."""
    nodes, place = write.nodes, write.place
    dims = place.site.output_dims
    codes = write.constant(table, table.dtype, "codes")
    rows = nodes.add("Gather", [codes, x], "Gather", dims, {"axis": 0}, dtype=table.dtype)
    to = {"to": write.kind(nodes.dtype)}
    if scales is None:
        return nodes.add("Cast", [rows], "Cast", dims, to, place.output)
    cast = nodes.add("Cast", [rows], "Cast", dims, to)
    kept = write.constant(scales, nodes.dtype, "scales")
    narrow = None if dims is None else (*dims[:-1], 1)
    scale = nodes.add("Gather", [kept, x], "GatherScales", narrow, {"axis": 0})
    return nodes.add("Mul", [cast, scale], "Mul", dims, None, place.output)


def _rows(
    write: Arithmetic, table: npt.NDArray[np.generic], x: gs.Tensor, hint: str
) -> gs.Variable:
    """Return the rows of a table `(rows, …)` that the indices ask for."""
    dims = write.place.site.output_dims
    if dims is None:
        raise ValueError("indices of unknown rank")
    stored = write.constant(table, table.dtype, hint)
    gathered = (*dims[:-1], *table.shape[1:])
    return write.nodes.add(
        "Gather", [stored, x], "Gather", gathered, {"axis": 0}, dtype=table.dtype
    )
