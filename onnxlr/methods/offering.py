"""What methods offer for a layer, without having seen its numbers, for a planner to choose from."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

from onnxlr.methods.method import Options
from onnxlr.numbers import Format

__all__ = ["Occasion", "Offer", "Offering"]

_INTEGER_COMPUTE = "float32"
"""The float type that products of integers are scaled to."""


_FEW_INPUTS = 16
"""Inputs of an output, below which ternary numbers do not pay: a scale is as large as 16 trits."""


@dataclass(frozen=True)
class Occasion:
    """What a method is told of a layer before it is fitted.

    Attributes
    ----------
    shape
        That of the canonical weight: `(*batch, inputs, outputs)` of matrices,
        `(outputs, inputs/groups, *kernel)` of a convolution, `(rows, width)` of a table.
    groups
        Of a convolution; None of matrices and tables.
    is_table
        Whether the weight is a table of which rows are taken.
    stored
        Name of the float type that the weight is stored in.
    observed
        Whether the layer's inputs are known from calibration: their covariance, and the ranges
        that static int8 data needs.
    target
        What the rewritten model will run on: `onnx`, `ort` or `onnxlr`.
    """

    shape: tuple[int, ...]
    groups: int | None
    is_table: bool
    stored: str
    observed: bool
    target: str

    @property
    def entries(self) -> int:
        """How many numbers the weight has."""
        return prod(self.shape)

    @property
    def inputs(self) -> int:
        """How many numbers may share a scale: the inputs of one output, or the row of a table."""
        if self.groups is not None:
            return prod(self.shape[1:])
        return self.shape[1] if self.is_table else self.shape[-2]

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of one matrix: of a convolution a group's patches and its outputs."""
        if self.groups is not None:
            return prod(self.shape[1:]), self.shape[0] // self.groups
        return self.shape[-2], self.shape[-1]

    @property
    def is_matrix(self) -> bool:
        """Whether the weight is one matrix that data is multiplied by."""
        return self.groups is None and not self.is_table and len(self.shape) == 2

    @property
    def is_stack(self) -> bool:
        """Whether the weight is several matrices."""
        return self.groups is None and len(self.shape) > 2

    @property
    def is_depthwise(self) -> bool:
        """Whether a convolution's groups have one channel on a side."""
        return self.groups is not None and 1 in (self.shape[1], self.shape[0] // self.groups)

    @property
    def window(self) -> tuple[int, ...]:
        """A convolution's kernel sizes along the axes that have more than one entry."""
        return () if self.groups is None else tuple(size for size in self.shape[2:] if size > 1)

    @property
    def splits_window(self) -> bool:
        """Whether a tensor decomposition of a convolution has channels and a window to split."""
        return bool(self.window) and not self.is_depthwise and self.shrinks("int8")

    @property
    def component(self) -> float:
        """What the least tensor decomposition of a convolution takes, as a fraction of the weight.

        A vector for channels in, window and channels out of each group, and a core of one number.
        """
        rows, columns = self.sides
        window = prod(self.window)
        return (rows // window + window + columns + 1) / (rows * columns)

    @property
    def has_operators(self) -> bool:
        """Whether the target has operators that take int8 data and numbers of few bits."""
        return self.target in ("ort", "onnxlr") and self.stored == _INTEGER_COMPUTE

    @property
    def takes_trits(self) -> bool:
        """Whether the target's operators for ternary numbers can be the product, and are of use.

        Of few inputs scales take more bytes than trits; of a convolution of a channel for each
        group, rearranging patches takes longer than multiplying.
        """
        if not self.has_operators or self.is_table or self.is_stack or self.inputs < _FEW_INPUTS:
            return False
        return self.is_matrix or (len(self.shape) in (3, 4) and not self.is_depthwise)

    @property
    def integer_data(self) -> tuple[str, ...]:
        """Activations that int8 numbers with one scale for each output can have, beside `float`.

        Ranges of static data are those that calibration saw. Convolutions have no fast operator
        for dynamic data, tables have no data.
        """
        if self.is_table or self.stored != _INTEGER_COMPUTE:
            return ()
        static = ("static_int8",) if self.observed else ()
        return static if self.groups is not None else ("dynamic_int8", *static)

    @property
    def gptq(self) -> str | None:
        """The rounding `gptq` where inputs are known for it to use; None, the nearest, elsewhere.

        Rows of tables are taken, not multiplied: there is nothing to feed errors on to.
        """
        return "gptq" if self.observed and not self.is_table else None

    def group_sizes(self, *sizes: int) -> tuple[int, ...]:
        """Return those of some ascending group sizes that are not the same for this weight."""
        counts = [-(-self.inputs // size) for size in sizes]
        return tuple(size for i, size in enumerate(sizes) if i == 0 or counts[i] < counts[i - 1])

    def shrinks(self, kind: str) -> bool:
        """Return whether a format has fewer bits for a number than the weight has as it is."""
        return Format.parse(kind).bits < Format.parse(self.stored).bits


@dataclass(frozen=True)
class Offer:
    """One way to write a layer.

    Attributes
    ----------
    options
        Of the method that makes the offer.
    format, group_size, rounding
        How the method's numbers are kept, as plans have it; None is what is usual.
    activations
        What data is computed in: `float`, `dynamic_int8` or `static_int8`; None is what is usual
        for the method on the target.
    safe
        Whether the model can be expected to stay what it is with no data to judge by.
    """

    options: Options
    format: str | None = None
    group_size: int | None = None
    rounding: str | None = None
    activations: str | None = None
    safe: bool = False


@runtime_checkable
class Offering(Protocol):
    """What a method has beside that knows which of its fits may be worth their time.

    Offers are made by the layer's kind and sizes alone and are to span what the method is good at;
    which one is best is measured. Methods whose forms were measured to be larger, slower or less
    exact than others' everywhere have none.
    """

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return what the method can make of a layer, each offer another one; none if nothing."""
