"""The nouns of discovery: a layer is one constant weight, a site is a node that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.layers.operands import Operand, Weight
from onnxlr.model.shapes import Dim
from onnxlr.model.tensors import FLOAT_TYPES

__all__ = ["Layer", "Layout", "Site"]


class Layout(Enum):
    """How a node applies its operand."""

    LAST = "x @ W"
    SECOND_LAST = "W @ x"
    CONVOLUTION = "conv"
    TRANSPOSED_CONVOLUTION = "conv transpose"
    ROWS = "rows of W"


@dataclass(frozen=True)
class Site:
    """One node that uses a layer's weight.

    Attributes
    ----------
    scope, index
        Position of its graph among the model's graphs, and of the node in that graph.
    node
        The node itself.
    layout
        How it applies the operand.
    operand
        The weight as it takes it.
    swapped
        Whether the operand is `(outputs, inputs)` where the layout has matrices.
    data
        Name of the tensor it multiplies, or of the indices.
    label
        What messages call the node: its name and the way to its graph.
    transpose_data
        Whether the data is transposed before it is multiplied (Gemm's flag of the other operand).
    data_dims, output_dims
        Dimensions as far as they are known, None if not even the rank is.
    in_function
        Whether its graph is, or is inside, a function.
    transposed
        Whether it uses the transpose of the layer's canonical matrix.
    """

    scope: int
    index: int
    node: onnx.NodeProto
    layout: Layout
    operand: Operand
    swapped: bool
    data: str
    label: str
    transpose_data: bool = False
    data_dims: tuple[Dim, ...] | None = None
    output_dims: tuple[Dim, ...] | None = None
    in_function: bool = False
    transposed: bool = False

    @property
    def output(self) -> str:
        """Name of the node's result."""
        return str(self.node.output[0])

    @property
    def is_convolution(self) -> bool:
        """Whether the operand is a kernel."""
        return self.layout in (Layout.CONVOLUTION, Layout.TRANSPOSED_CONVOLUTION)

    @property
    def groups(self) -> int | None:
        """Groups of a convolution, None elsewhere."""
        if not self.is_convolution:
            return None
        return next((int(a.i) for a in self.node.attribute if a.name == "group"), 1)

    @property
    def states_output(self) -> bool:
        """Whether a transposed convolution states the shape of its output."""
        return any(a.name == "output_shape" and a.ints for a in self.node.attribute)

    def along_features(self, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return one number for each feature of the output in a shape that can be added to it."""
        if self.is_convolution:
            return vector.reshape(-1, *[1] * (len(self.operand.dims) - 2))
        flat = self.output_dims is not None and len(self.output_dims) == 1
        return vector if self.layout is Layout.LAST or flat else vector[:, None]

    def canonical(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an operand's values as the layer's weight is canonical."""
        if self.layout is Layout.TRANSPOSED_CONVOLUTION:
            return exchange_channels(values, self.groups or 1)
        return np.swapaxes(values, -1, -2) if self.swapped else values

    def arranged(self, canonical: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return canonical values as the node takes its operand."""
        if self.transposed:
            canonical = np.swapaxes(canonical, -1, -2)
        return self.canonical(canonical)  # each arrangement undoes itself


def exchange_channels(kernel: npt.NDArray[Any], groups: int) -> npt.NDArray[Any]:
    """Exchange the two channel axes of a kernel `(a, b/groups, *k)` within each group."""
    first, second, *sizes = kernel.shape
    grouped = kernel.reshape(groups, first // groups, second, *sizes).swapaxes(1, 2)
    return np.asarray(grouped.reshape(groups * second, first // groups, *sizes))


@dataclass(frozen=True)
class Layer:
    """One constant weight and every node that multiplies by it.

    Attributes
    ----------
    name
        Unique in the model: the first site's node name, else the name of the weight.
    operator
        Operator type of the first site.
    nodes
        Labels of all nodes, in graph order.
    weight
        The stored constant, None where a skipped node has none.
    sites
        Where it is used; empty for a skipped layer.
    skip
        Why the layer is left alone; None if it can be rewritten.
    other_uses
        What else needs the weight as it is, so that it cannot disappear.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    weight: Weight | None
    sites: tuple[Site, ...] = ()
    skip: str | None = None
    other_uses: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float type that the sites compute in."""
        return self.sites[0].operand.dtype

    @property
    def stored(self) -> str:
        """Name of the float type that the weight is stored in."""
        if self.weight is None:
            raise ValueError(f"layer '{self.name}' has no weight")
        return str(FLOAT_TYPES[int(self.weight.tensor.data_type)].name)

    @property
    def groups(self) -> int | None:
        """Groups of a convolution, None for other layers."""
        return self.sites[0].groups

    @property
    def in_function(self) -> bool:
        """Whether the weight is a constant of a function."""
        return self.sites[0].in_function

    @property
    def is_table(self) -> bool:
        """Whether the weight is a table of which rows are taken."""
        return self.sites[0].layout is Layout.ROWS

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Canonical shape, or the stored shape of a skipped weight.

        `(*batch, inputs, outputs)`, `(outputs, inputs/groups, *kernel)` or `(rows, width)`.
        """
        if self.weight is None:
            return None
        if not self.sites:
            return tuple(self.weight.tensor.dims)
        site = self.sites[0]
        if site.layout is Layout.TRANSPOSED_CONVOLUTION:
            first, second, *sizes = site.operand.dims
            groups = site.groups or 1
            return (second * groups, first // groups, *sizes)
        *rest, rows, columns = site.operand.dims
        return (*rest, columns, rows) if site.swapped else (*rest, rows, columns)

    def multiply_adds(self) -> tuple[int, tuple[str, ...]] | None:
        """Return the multiply-adds of all sites, and the symbolic dimensions to multiply them by.

        None where the rank of a site's result is not known. An unnamed unknown dimension is `?`.
        """
        total, symbols = 0, set[str]()
        if self.is_table or self.shape is None:
            return 0, ()
        for site in self.sites:
            # every entry of the data of a transposed convolution meets every entry of its kernel
            scatter = site.layout is Layout.TRANSPOSED_CONVOLUTION
            dims = site.data_dims if scatter else site.output_dims
            if dims is None:
                return None
            if site.is_convolution:
                count = prod(site.operand.dims[1:])
            else:
                count = self.shape[-1 if site.transposed else -2]
            for dim in dims:
                if isinstance(dim, int):
                    count *= dim
                else:
                    symbols.add(dim or "?")
            total += count
        return total, tuple(sorted(symbols))
