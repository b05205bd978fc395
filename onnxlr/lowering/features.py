"""Data whose features are seen apart, as the axes of a tensor.

A step along one mode needs them so, and so does another order. A node is written only when a step
takes the data otherwise than the one before it has left it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import permutations
from operator import mul
from typing import TYPE_CHECKING

import numpy as np

from onnxlr.lowering.rows import dims_of

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.position import Position
    from onnxlr.model.shapes import Dim

__all__ = ["Seen", "Size", "View", "product", "see"]


@dataclass(frozen=True)
class Size:
    """Size of an axis: a number, times the sizes of axes that are known as the model runs only.

    Attributes
    ----------
    known
        The number.
    unknown
        Those axes of the whole data.
    """

    known: int
    unknown: tuple[int, ...] = ()

    def __mul__(self, other: Size) -> Size:
        """Return the size of both axes as one."""
        return Size(self.known * other.known, self.unknown + other.unknown)


View = tuple[Size, ...]
"""The axes that data is seen with; its entries are in one order in all views."""


def product(sizes: Sequence[Size]) -> Size:
    """Return the size of axes as one."""
    return reduce(mul, sizes, Size(1))


@dataclass(frozen=True)
class Seen:
    """Data that a step has left with other axes than the whole data has.

    Attributes
    ----------
    tensor
        What is there.
    position
        The step that left it so.
    dims
        Dimensions of the whole data.
    view
        Axes of the tensor, in `order` if there is one.
    order
        The tensor's axes in an order that no node has brought them into yet; None for their own.
    stops
        Views that can be seen on the way to others: a Reshape finds one size by itself, no more.
    shape
        A tensor that holds the dimensions of the whole data, where they may be needed.
    """

    tensor: gs.Tensor
    position: Position
    dims: tuple[Dim, ...]
    view: View
    order: tuple[int, ...] | None = None
    stops: tuple[View, ...] = ()
    shape: gs.Tensor | None = None

    @property
    def axis(self) -> int:
        """The axis of the features, of the whole data."""
        return self.position.feature_axis(len(self.dims))

    @property
    def whole(self) -> View:
        """Axes of the whole data."""
        # a size of 0 cannot be written into a Reshape, where it stands for "as it is"
        return tuple(
            Size(dim) if isinstance(dim, int) and dim > 0 else Size(1, (axis,))
            for axis, dim in enumerate(self.dims)
        )

    @property
    def lead(self) -> View:
        """Axes before the features."""
        return self.whole[: self.axis]

    @property
    def tail(self) -> View:
        """Axes behind the features."""
        return self.whole[self.axis + 1 :]

    def dims_seen(self, view: View) -> list[Dim]:
        """Return the dimensions of a view as far as they are known."""
        return [self._dim(size) for size in view]

    def _dim(self, size: Size) -> Dim:
        if not size.unknown:
            return size.known
        return self.dims[size.unknown[0]] if size == Size(1, size.unknown[:1]) else None

    def moved(self, order: Sequence[int]) -> Seen:
        """Return the data with the axes of its view in another order; no node is written yet."""
        now = tuple(order if self.order is None else (self.order[axis] for axis in order))
        view = tuple(self.view[axis] for axis in order)
        return replace(self, view=view, order=None if now == tuple(sorted(now)) else now)

    def settled(self, nodes: Nodes) -> gs.Tensor:
        """Return the tensor in the view's order."""
        if self.order is None:
            return self.tensor
        dims, attributes = self.dims_seen(self.view), {"perm": list(self.order)}
        return nodes.add("Transpose", [self.tensor], "Transpose", dims, attributes)

    def seen_as(
        self, nodes: Nodes, view: View, stops: tuple[View, ...] = (), output: str | None = None
    ) -> Seen:
        """Return the data in another view.

        Parameters
        ----------
        stops
            Views that can be seen on the way, beside the data's own.
        output
            Name of the tensor of the model that the result is, which is then written in any case.
        """
        if view == self.view and output is None:
            return self
        tensor, before = self.settled(nodes), self.view
        way = self._way(view, (*stops, self.whole, *self.stops))
        for number, after in enumerate(way, 1):
            name, dims = output if number == len(way) else None, self.dims_seen(after)
            inputs = [tensor, self._shape(nodes, before, after)]
            tensor = nodes.add("Reshape", inputs, "Reshape", dims, None, name)
            before = after
        return replace(self, tensor=tensor, view=view, order=None)

    def joined(self, nodes: Nodes, output: str | None = None) -> gs.Tensor:
        """Return the whole data, by the name of a tensor of the model if one is given."""
        if self.view == self.whole and output is not None:
            return nodes.add("Identity", [self.settled(nodes)], "Identity", self.dims, None, output)
        return self.seen_as(nodes, self.whole, output=output).settled(nodes)

    def _way(self, goal: View, stops: tuple[View, ...]) -> tuple[View, ...]:
        """Return the fewest views, the goal last, of which each can be seen from the one before."""
        for count in range(len(stops) + 1):
            for between in permutations(stops, count):
                views = (self.view, *between, goal)
                if all(map(self._leads, views, views[1:])):
                    return views[1:]
        raise ValueError(f"no Reshape leads from {self.view} to {goal}")

    def _shape(self, nodes: Nodes, before: View, after: View) -> gs.Tensor:
        numbers = self._numbers(before, after)
        if numbers is not None:
            return nodes.constant(np.array(numbers, np.int64), self.position, "shape")
        if self.shape is None:
            raise ValueError("the shape of the whole data was not kept")
        return self.shape

    def _leads(self, before: View, after: View) -> bool:
        if after == self.whole and self.shape is not None:
            return True
        return self._numbers(before, after) is not None

    def _numbers(self, before: View, after: View) -> list[int] | None:
        """Return a Reshape's shape, None if more than one size had to be found by itself.

        Sizes before the features are taken from the data even where they are known.
        """
        numbers = [size.known for size in after]
        for axis, size in enumerate(after):
            same = axis < len(before) and before[axis] == size
            if same and (size.unknown or axis < self.axis):
                numbers[axis] = 0
            elif size.unknown:
                numbers[axis] = -1
        return None if numbers.count(-1) > 1 else numbers


def see(x: gs.Tensor, position: Position) -> Seen | None:
    """Return a step's data as it is; None if not even its rank is known."""
    dims, site = dims_of(x, position), position.site
    if dims is None and site.is_convolution:
        dims = [None] * len(site.operand.dims)
    elif dims is None and site.node.op_type == "Gemm":
        dims = [None, None]
    if dims is None:
        return None
    known = list(dims)
    known[position.feature_axis(len(known))] = position.inputs
    whole = Seen(x, position, tuple(known), ())
    return replace(whole, view=whole.whole)
