"""Another order of the features: data is seen with its features apart, and its axes are moved."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.features import Seen, Size, product
from onnxlr.stages import Fold

if TYPE_CHECKING:
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.position import Position

__all__ = ["fold"]


def fold(nodes: Nodes, data: Seen, position: Position) -> Seen:
    """Return the data with its features in a step's order.

    Sizes behind the features are one axis meanwhile. Where two of them are not known, no Reshape
    finds them again by itself, and the shape of the data is kept for it.
    """
    stage = position.stage
    if not isinstance(stage, Fold):
        raise TypeError("only a fold is written as another order")
    data = replace(data, position=position)
    dims, order = _fewest(stage)
    if len(dims) < 2:
        return data
    behind = product(data.tail)
    if len(behind.unknown) > 1 and data.shape is None:
        data = _with_shape(nodes, data)
    view = (*data.lead, *map(Size, dims), *([behind] if data.tail else []))
    first, last = data.axis, data.axis + len(dims)
    moved = (*range(first), *(first + axis for axis in order), *range(last, len(view)))
    return data.seen_as(nodes, view).moved(moved)


def _with_shape(nodes: Nodes, data: Seen) -> Seen:
    """Return the data as a whole, and its shape beside it."""
    whole = data.seen_as(nodes, data.whole)
    tensor, rank = whole.settled(nodes), len(whole.dims)
    shape = nodes.add("Shape", [tensor], "Shape", (rank,), dtype=np.int64)
    return replace(whole, tensor=tensor, order=None, shape=shape)


def _fewest(stage: Fold) -> tuple[list[int], list[int]]:
    """Return the dims and the order with the fewest axes that move all entries in the same way."""
    runs: list[list[int]] = []
    after = -1
    kept = [axis for axis in range(len(stage.dims)) if stage.dims[axis] > 1]
    for axis in (axis for axis in stage.order if axis in kept):
        place = kept.index(axis)
        if runs and place == after:
            runs[-1].append(axis)
        else:
            runs.append([axis])
        after = place + 1
    sources = sorted(runs)
    dims = [int(np.prod([stage.dims[axis] for axis in run])) for run in sources]
    return dims, [sources.index(run) for run in runs]
