"""Turns packed codes into matrices with standard operators, all of it on constants.

Runtimes compute this once, when they load the model, and may keep every result until all of it is
done. So there are few results as large as the weights: bytes, a quarter of that, are put in order
and cut first; a table gives the four values of each byte; one more step puts rows in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxlr.operators.body import FLOAT, INT32, INT64, Body
from onnxlr.operators.packing import SIDE
from onnxlr.operators.schema import GROUP_SIZES

__all__ = ["Packed"]

_SHARING = 4  # inputs in one byte; bytes of one column in a block
_MANY = 2**30  # ONNX Runtime takes a wrong least of int64 numbers from 2**31 on
_VALUES = (np.arange(256) >> np.array([[0], [2], [4], [6]]) & 3) - 1


@dataclass(frozen=True)
class Packed:
    """The packed weights of a function.

    Attributes
    ----------
    order
        Name of a vector: the inputs in the order in which matrices have them.
    outputs
        Name of a one-element vector: columns of a matrix.
    group
        Name of a one-element vector: matrices of a term, for groups of channels; None for one
        matrix without that axis.
    """

    order: str
    outputs: str
    group: str | None = None

    def term(self, body: Body, term: int, zero: int = 0) -> str:
        """Return the matrices of one term; those of term 0 where there are not so many.

        They are int8 (inputs, outputs), or (inputs, group, outputs). If `zero` is 1 they are uint8
        and one more.
        """
        table = (_VALUES + zero).astype(np.uint8 if zero else np.int8)
        values = _looked_up(body, table, self._bytes(body, term))
        return self._in_order(body, values, [self._blocks_of_inputs(body)])

    def scaled(self, body: Body, term: int, grouped: bool) -> str:
        """Return the float32 matrices of one term times their scales; zeros if there is none.

        `grouped` tells whether there may be several groups of inputs that share a scale.
        """
        scales = self._scales(body, term)
        if not grouped:
            scales = body.reshape(scales, *self._columns)
            return body.add("Mul", body.cast(self.term(body, term), FLOAT), scales)
        # Blocks get an axis for their groups, so that the scales need not be as large as the
        # weights. The last group's may be fewer: what comes again from the start is cut later.
        parts, groups = self._bytes(body, term), body.dims("scales", 1, 2)
        size = _blocks_of_groups(body, parts, groups)
        starts = body.reshape(body.add("Mul", body.range(groups), size), -1, 1)
        places = body.modulo(body.add("Add", starts, body.range(size)), body.dims(parts, 0, 1))
        values = _looked_up(
            body, _VALUES.astype(np.float32), body.add("Gather", parts, places, axis=0)
        )
        scaled = body.add("Mul", values, body.reshape(scales, 0, 1, 1, *self._columns))
        block = self._blocks_of_inputs(body)
        return self._in_order(
            body, scaled, [body.add("Div", block, size), body.modulo(block, size)]
        )

    def scales_of_outputs(self, body: Body, term: int) -> str:
        """Return the scales of a term as a vector, if there is one group of inputs."""
        return body.reshape(self._scales(body, term), -1)

    @property
    def _columns(self) -> list[str | int]:
        """Return the last parts of a shape that ends with all columns."""
        return [-1] if self.group is None else [self.group, self.outputs]

    def _bytes(self, body: Body, term: int) -> str:
        """Return bytes (blocks, j, outputs), or (blocks, j, group, outputs)."""
        axes = len(self._columns)
        index = body.reshape(_place(body, term)[0], body.constant([]))
        codes = body.add("Gather", "codes", index, axis=0)
        parts = body.reshape(codes, *[0] * (axes + 1), SIDE, _SHARING)
        order = [axes, axes + 2, *range(axes), axes + 1]
        columns = body.add("Transpose", parts, perm=order)
        padded = body.reshape(columns, *[0] * (axes + 1), -1)
        return body.crop(padded, {axes + 1: self.outputs})

    def _scales(self, body: Body, term: int) -> str:
        """Return the scales (groups of inputs, all outputs) of a term; zeros if there is none."""
        index, exists = _place(body, term)
        scales = body.add("Gather", "scales", index, axis=0)
        scales = body.add("Mul", scales, body.cast(exists, FLOAT))
        return body.add("Flatten", scales, axis=2)

    def _blocks_of_inputs(self, body: Body) -> str:
        return body.add("Div", self.order, body.constant(SIDE))

    def _in_order(self, body: Body, values: str, blocks: list[str]) -> str:
        """Return rows of values (g, *blocks, j, …) in the order of inputs, which are 4 · g + j.

        The place of an input's block is one vector for each axis that blocks have.
        """
        inputs, four = self.order, body.constant(_SHARING)
        g, j = body.modulo(body.add("Div", inputs, four), four), body.modulo(inputs, four)
        if body.opset >= 11:
            places = [body.reshape(place, -1, 1) for place in (g, *blocks, j)]
            return body.add("GatherND", values, body.add("Concat", *places, axis=1))
        sizes = [body.dims(values, axis, axis + 1) for axis in range(1, len(blocks) + 2)]
        row = g
        for place, size in zip((*blocks, j), sizes, strict=True):
            row = body.add("Add", body.add("Mul", row, size), place)
        if self.group is None:  # a rank that shape inference sees
            rows = body.add("Flatten", values, axis=len(sizes) + 1)
        else:
            rows = body.reshape(values, -1, *self._columns)
        return body.add("Gather", rows, row, axis=0)


def _looked_up(body: Body, table: npt.NDArray[np.generic], parts: str) -> str:
    """Return the values (4, *shape) of bytes of any shape."""
    # Identity costs nothing, and in onnx 1.19's reference evaluator it makes what was transposed
    # contiguous: Gather fails there if its indices are not.
    places = body.cast(body.add("Identity", parts), INT32)
    return body.add("Gather", body.constant(table, table.dtype), places, axis=1)


def _place(body: Body, term: int) -> tuple[str, str]:
    """Return where a term is, 0 if there are not so many, and how many of it exist, 0 or 1."""
    wanted = body.constant([term])
    exists = body.cast(body.add("Less", wanted, body.dims("scales", 0, 1)), INT64)
    return body.add("Mul", wanted, exists), exists


def _blocks_of_groups(body: Body, parts: str, groups: str) -> str:
    """Return how many blocks of inputs share a scale."""
    blocks = body.dims(parts, 0, 1)
    sizes = body.shape(body.constant([size // SIDE for size in GROUP_SIZES]), blocks)
    # Of two groups or more there is one size that gives as many; of one, all are large enough.
    fits = body.add("Equal", body.divided_up(blocks, sizes), groups)
    chosen = body.add("Where", fits, sizes, body.constant(_MANY))
    return body.reduce("ReduceMin", chosen, 0, keep=True)
