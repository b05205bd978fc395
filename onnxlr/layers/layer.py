"""The nouns of discovery: a layer is one constant weight, a site is a node that uses it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from onnxlr.layers.weights import Weight
    from onnxlr.model.shapes import Dim

__all__ = ["Layer", "Layout", "Site"]


class Layout(Enum):
    """Which axis of the data holds the features that the weight mixes."""

    LAST = "x @ W"
    SECOND_LAST = "W @ x"
    CHANNELS = "conv"


@dataclass(frozen=True)
class Site:
    """One node that uses a layer's weight.

    Attributes
    ----------
    index
        Position of the node in the main graph.
    node
        The node itself.
    layout
        Where the features are.
    swapped
        Whether the node uses the stored matrix transposed, seen as `(inputs, outputs)`.
    data, output
        Names of the tensor it multiplies and of its result.
    transpose_data
        Whether the data is transposed before it is multiplied (Gemm's flag of the other operand).
    output_dims
        Dimensions of the result as far as they are known, None if not even the rank is.
    kernel_axes
        Spatial axes of a convolution; 0 elsewhere.
    """

    index: int
    node: onnx.NodeProto
    layout: Layout
    swapped: bool
    data: str
    transpose_data: bool = False
    output_dims: tuple[Dim, ...] | None = None
    kernel_axes: int = 0

    @property
    def output(self) -> str:
        """Name of the node's result."""
        return str(self.node.output[0])

    @property
    def label(self) -> str:
        """What messages call the node."""
        return self.node.name or self.output


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
        Labels of all nodes, in graph order, with the way to the graph they are in.
    weight
        The weight, None where a skipped node has none.
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
    def swapped(self) -> bool:
        """Whether the canonical matrix is the stored one transposed: as the first site sees it."""
        return self.sites[0].swapped

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Canonical shape `(*batch, inputs, outputs)`, or the stored shape of a skipped weight."""
        if self.weight is None:
            return None
        return self.weight.canonical_shape(self.swapped) if self.sites else self.weight.dims

    def multiply_adds(self) -> tuple[int, tuple[str, ...]] | None:
        """Return the multiply-adds of all sites, and the symbolic dimensions to multiply them by.

        None where the rank of a site's output is not known. An unnamed unknown dimension is `?`.
        """
        total, symbols = 0, set[str]()
        for site in self.sites:
            if site.output_dims is None or self.shape is None:
                return None
            count = self.shape[-2]
            for dim in site.output_dims:
                if isinstance(dim, int):
                    count *= dim
                else:
                    symbols.add(dim or "?")
            total += count
        return total, tuple(sorted(symbols))
