"""Turns packed codes into matrices with standard operators, all of it on constants.

Runtimes compute this once, when they load the model. Whatever is as large as the weights lives
until then, so there are few steps, in int8 as long as possible: a table of 256 rows gives the four
values of each byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxlr.operators.body import FLOAT, INT32, INT64, Body
from onnxlr.operators.packing import SIDE
from onnxlr.operators.schema import GROUP_SIZES

__all__ = ["Packed"]

_BYTES = np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3


@dataclass(frozen=True)
class Packed:
    """The packed weights of a function.

    Attributes
    ----------
    inputs, outputs
        Names of one-element vectors: rows and columns of a matrix.
    group
        Name of a one-element vector: matrices of a term, for groups of channels; None for one
        matrix without that axis.
    """

    inputs: str
    outputs: str
    group: str | None = None

    def term(self, body: Body, term: int, zero: int = 0) -> str:
        """Return the matrices of one term; those of term 0 where there are not so many.

        They are int8 (inputs, outputs), or (group, outputs, inputs). If `zero` is 1 they are uint8
        and one more.
        """
        codes = body.add("Gather", "codes", self._place(body, term)[0], axis=0)
        kept = 3 if self.group is None else 4
        parts = body.reshape(codes, *[0] * kept, SIDE, 4)
        values = (_BYTES - 1 + zero).astype(np.uint8 if zero else np.int8)
        table = body.constant(values, values.dtype)
        looked_up = body.add("Gather", table, body.cast(parts, INT32), axis=0)
        # term, (group,) panel, block, column, j, g: the input of a block is 4 * g + j.
        if self.group is None:
            ordered = body.add("Transpose", looked_up, perm=[0, 2, 5, 4, 1, 3])
            padded = body.add("Flatten", ordered, axis=4)
            return body.crop(padded, {0: self.inputs, 1: self.outputs})
        ordered = body.add("Transpose", looked_up, perm=[0, 1, 2, 4, 3, 6, 5])
        sides = body.add("Mul", body.dims(codes, 2, 4), body.constant([SIDE]))
        padded = body.reshape(ordered, self.group, sides)
        return body.crop(padded, {1: self.outputs, 2: self.inputs})

    def scales_of_groups(self, body: Body, term: int) -> str:
        """Return the scales (groups of inputs, all outputs) of a term; zeros if there is none."""
        index, exists = self._place(body, term)
        scales = body.add("Gather", "scales", index, axis=0)
        scales = body.add("Mul", scales, body.cast(exists, FLOAT))
        return body.add("Flatten", scales, axis=2)

    def scales_of_outputs(self, body: Body, term: int) -> str:
        """Return the scales of a term as a vector, if there is one group of inputs."""
        return body.reshape(self.scales_of_groups(body, term), -1)

    def group_of_inputs(self, body: Body) -> str:
        """Return the group of each input that shares a scale, as a vector."""
        groups = body.dims("scales", 1, 2)
        sizes = body.shape(body.constant(GROUP_SIZES), self.inputs)
        # Of two groups or more there is one size that gives as many; of one, any is large enough.
        fits = body.add("Equal", body.divided_up(self.inputs, sizes), groups)
        chosen = body.add("Mul", sizes, body.cast(fits, INT64))
        size = body.reduce("ReduceSum", chosen, 0, keep=True)
        return body.add("Div", body.range(self.inputs), size)

    def _place(self, body: Body, term: int) -> tuple[str, str]:
        """Return where a term is, 0 if there are not so many, and how many of it exist, 0 or 1."""
        wanted = body.constant([term])
        exists = body.cast(body.add("Less", wanted, body.dims("scales", 0, 1)), INT64)
        return body.add("Mul", wanted, exists), exists
