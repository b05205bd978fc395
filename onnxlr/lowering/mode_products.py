"""A product along one mode: the features are seen apart, and any lowering writes the product.

`I_before ⊗ F ⊗ I_behind` is one product by the small factor `F` of data in which the mode is the
axis of the features. Of a convolution, what is before the mode goes into the batch and what is
behind it into the first spatial axis: no data is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxlr.layers import Layout
from onnxlr.lowering.features import Seen, Size, View, product
from onnxlr.lowering.folding import fold
from onnxlr.lowering.place import Place
from onnxlr.stages import Convolution, Fold, Linear, ModeProduct, Range

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.position import Position
    from onnxlr.model.shapes import Dim

__all__ = ["Write", "multiply_mode"]

Write = Callable[["gs.Tensor", Place], "gs.Tensor"]
"""Writes a stage of numbers at its place, by whichever lowering accepts it."""

_COLUMNS = 16
"""Size behind a mode from which on rows are multiplied from the left, each as a matrix.

Where it is smaller, it is moved to the front, and one product takes all. For 512 rows of 32
features in and out, by ONNX Runtime 1.31 on one thread, from the left and with the axis moved there
and back: 179 and 39 µs for a size of 2, 200 and 123 for 8, 243 and 310 for 16, 918 and 2753 for 64;
of 96 features 1180 and 794 for 8, 1328 and 1851 for 16. ONNX Runtime 1.18 differs in the same way.
The product from the left takes no empty batch in either.
"""


@dataclass(frozen=True)
class _Mode:
    """A step along a mode, and where it is.

    Attributes
    ----------
    position
        Of the step.
    stage
        The step.
    write
        Writes the product.
    ranges
        Of the step's data and of its result, where they are known.
    """

    position: Position
    stage: ModeProduct
    write: Write
    ranges: tuple[Range, Range] | None

    @property
    def sizes(self) -> tuple[int, int]:
        """Size of the mode before the step and behind it."""
        inputs, outputs = self.stage.stage.shape
        return (outputs, inputs) if self.position.site.transposed else (inputs, outputs)

    def multiply(self, nodes: Nodes, data: Seen, dims: Sequence[Dim], layout: Layout) -> gs.Tensor:
        """Write the product of data as it is seen, with a result of these dimensions."""
        tensor = data.settled(nodes)
        site = replace(
            self.position.site,
            layout=layout,
            data=tensor.name,
            data_dims=tuple(data.dims_seen(data.view)),
            output_dims=tuple(dims),
            transpose_data=False,
        )
        # the dimensions are those behind the whole window
        slid = frozenset(range(len(dims) - 2)) if site.is_convolution else frozenset()
        place = Place(site, self.stage.stage, ends=False, slid=slid, ranges=self.ranges)
        return self.write(tensor, place)


def multiply_mode(
    nodes: Nodes,
    data: Seen,
    position: Position,
    write: Write,
    ranges: tuple[Range, Range] | None = None,
    activations: str = "float",
) -> Seen:
    """Return the data multiplied along one mode.

    Parameters
    ----------
    position
        Of the step; its alpha and its bias are not written here.
    ranges
        Of the step's data and of the bare product, where they are known.
    activations
        What the products' data is computed in. Integers are multiplied in rows in any case.
    """
    if not isinstance(position.stage, ModeProduct):
        raise TypeError("only a product along a mode is written as one")
    mode = _Mode(position, position.stage, write, ranges)
    if isinstance(mode.stage.stage, Linear):
        return _multiplied(nodes, data, mode, activations)
    if mode.stage.behind == 1 or _is_still(position.site.node, mode.stage.stage, 0):
        return _convolved(nodes, data, mode)
    return _convolved_before(nodes, data, mode)


def _multiplied(nodes: Nodes, data: Seen, mode: _Mode, activations: str) -> Seen:
    """Return rows multiplied along a mode, or columns."""
    stage, (inputs, outputs) = mode.stage, mode.sizes
    first = [*data.lead, *([Size(stage.before)] if stage.before > 1 else [])]
    columns = Size(stage.behind) * product(data.tail)
    last = [columns] if data.tail or stage.behind > 1 else []
    seen = data.seen_as(nodes, (*first, Size(inputs), *last))
    layout, order = Layout.SECOND_LAST, list(range(len(seen.view)))
    if not data.tail:
        layout, order = _in_rows(seen, len(first), activations)
    turned = seen.moved(order)
    exchanged = (*range(len(order) - 2), len(order) - 1, len(order) - 2)
    if turned.order == exchanged and activations == "float":
        turned = _beside(nodes, turned)
    results = list(turned.view)
    results[-1 if layout is Layout.LAST else -2] = Size(outputs)
    result = mode.multiply(nodes, turned, data.dims_seen(tuple(results)), layout)
    whole = list(data.dims)
    whole[data.axis] = stage.copies * outputs
    done = Seen(result, mode.position, tuple(whole), tuple(results))
    if order == sorted(order):
        return done
    return done.moved([order.index(axis) for axis in range(len(order))])


def _in_rows(seen: Seen, mode: int, activations: str) -> tuple[Layout, list[int]]:
    """Return how a mode of rows is multiplied, and with what order of the view's axes.

    The axes beside the mode may stay wherever they are in the tensor.
    """
    rank = len(seen.view)
    order = list(range(rank)) if seen.order is None else list(seen.order)
    axes = [order.index(axis) for axis in range(rank)]  # of the view, as the tensor has them
    if axes[-1] == mode:
        return Layout.LAST, axes
    many = rank == 2 or (mode < rank - 1 and seen.view[axes[-1]].known >= _COLUMNS)
    if axes[-2] == mode and many and activations == "float":
        return Layout.SECOND_LAST, axes
    if mode == rank - 1:  # the axes have to come into the view's order anyway
        return Layout.LAST, list(range(rank))
    others = [axis for axis in axes if axis != mode]
    if axes[-2] == mode:
        others = [others[-1], *others[:-1]]
    return Layout.LAST, [*others, mode]


def _beside(nodes: Nodes, data: Seen) -> Seen:
    """Return data with an axis of 1 before its last.

    ONNX Runtime makes an exchange of the last two axes a part of the product behind it, then one of
    small matrices: 512 rows of 8×8 take 56 µs in two products instead of 37, and of 32×32 837
    instead of 789. No batch may be empty then, and 1.18 has no such product of float64.
    """
    return data.seen_as(nodes, (*data.view[:-1], Size(1), data.view[-1]))


def _convolved(nodes: Nodes, data: Seen, mode: _Mode) -> Seen:
    """Return data convolved along a mode that is before the spatial axes, or can be put there."""
    inputs, outputs = mode.sizes
    seen = data.seen_as(nodes, *_as_convolution(data, mode.stage, inputs))
    behind = replace(seen, position=mode.position, dims=_dims_behind(data, mode))
    view, stops = _as_convolution(behind, mode.stage, outputs)
    layout = mode.position.site.layout
    result = mode.multiply(nodes, seen, behind.dims_seen(view), layout)
    return Seen(result, mode.position, behind.dims, view, None, stops)


def _as_convolution(data: Seen, stage: ModeProduct, channels: int) -> tuple[View, tuple[View, ...]]:
    """Return the view in which the mode is the channels, and what can be seen on the way to it."""
    batch, first, *others = (*data.lead, *data.tail)
    rows = (Size(stage.behind) * first, *others)
    half = (batch, Size(stage.before * channels), *rows)
    return (Size(stage.before) * batch, Size(channels), *rows), (half,)


def _dims_behind(data: Seen, mode: _Mode) -> tuple[Dim, ...]:
    """Return the dimensions of the whole data behind a convolution along a mode."""
    position, stage = mode.position, mode.stage
    if not isinstance(stage.stage, Convolution):
        raise TypeError("only a convolution has a window")
    dims = list(data.dims)
    dims[1] = position.features
    results = position.result_dims
    for axis in range(len(dims) - 2):
        if not _is_still(position.site.node, stage.stage, axis):
            dims[axis + 2] = None if results is None else results[axis + 2]
    return tuple(dims)


def _convolved_before(nodes: Nodes, data: Seen, mode: _Mode) -> Seen:
    """Return data convolved along a mode that its spatial axes must be kept apart from.

    What is behind the mode is moved before it, into the batch, and back.
    """
    stage, (inputs, outputs) = mode.stage, mode.sizes
    there = Fold((stage.before, inputs, stage.behind), (0, 2, 1), stage.axes)
    back = Fold((stage.before, stage.behind, outputs), (0, 2, 1), stage.axes)
    moved = fold(nodes, data, replace(mode.position, stage=there))
    whole = ModeProduct(stage.stage, stage.copies)
    done = _convolved(nodes, moved, replace(mode, stage=whole))
    return replace(fold(nodes, done, replace(mode.position, stage=back)), position=mode.position)


def _is_still(node: onnx.NodeProto, stage: Convolution, axis: int) -> bool:
    """Return whether each place along a spatial axis is convolved by itself, at a stride of 1."""
    if stage.weight.shape[axis + 2] != 1:
        return False
    if axis not in stage.window:
        return True
    axes = len(stage.weight.shape) - 2
    found = {a.name: list(a.ints) for a in node.attribute if a.ints}
    pads, strides = found.get("pads", [0] * 2 * axes), found.get("strides", [1] * axes)
    added = [*pads[axis::axes], *found.get("output_padding", [0] * axes)[axis : axis + 1]]
    return strides[axis] == 1 and not any(added) and "output_shape" not in found
