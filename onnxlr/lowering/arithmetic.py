"""Small steps that decoding is made of, in operators that every opset from 7 on has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import helper

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.model.shapes import Dim

__all__ = ["Arithmetic"]

_SLICE_INPUTS_OPSET = 10


@dataclass(frozen=True)
class Arithmetic:
    """Writes nodes on tensors of known rank.

    Attributes
    ----------
    nodes
        Where they are written.
    place
        The stage they are written for.
    """

    nodes: Nodes
    place: Place

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike, hint: str) -> gs.Constant:
        """Return a constant."""
        return self.nodes.constant(np.asarray(values, dtype), self.place, hint)

    def cast(self, x: gs.Tensor, dtype: npt.DTypeLike, output: str | None = None) -> gs.Tensor:
        """Return `x` in another type; `x` itself if it has that already."""
        if x.dtype == np.dtype(dtype):
            return x
        attributes = {"to": self.kind(dtype)}
        return self.nodes.add("Cast", [x], "Cast", x.shape, attributes, output, dtype)

    @staticmethod
    def kind(dtype: npt.DTypeLike) -> int:
        """Return ONNX's number of a type."""
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def combine(
        self,
        operator: str,
        x: gs.Tensor,
        y: gs.Tensor,
        dims: Sequence[Dim] | None = None,
        output: str | None = None,
    ) -> gs.Variable:
        """Return an operator of two: as large as `x`, or of `dims` if given."""
        return self.nodes.add(operator, [x, y], operator, dims or x.shape, None, output, x.dtype)

    def floor(self, x: gs.Tensor) -> gs.Variable:
        """Return the largest whole numbers that are not above `x`."""
        return self.nodes.add("Floor", [x], "Floor", x.shape, dtype=x.dtype)

    def reshape(self, x: gs.Tensor, dims: Sequence[Dim]) -> gs.Variable:
        """Return `x` in other dimensions; one that is not a number stays where it is."""
        sizes = [dim if isinstance(dim, int) else 0 for dim in dims]
        wanted = self.constant(sizes, np.int64, "shape")
        return self.nodes.add("Reshape", [x, wanted], "Reshape", dims, dtype=x.dtype)

    def begin(self, x: gs.Tensor, axis: int, length: int) -> gs.Tensor:
        """Return the first entries along an axis; `x` itself if it has no more."""
        if x.shape[axis] == length:
            return x
        dims = [length if position == axis else dim for position, dim in enumerate(x.shape)]
        inputs, attributes = [x], dict[str, Any]()
        if self.nodes.opset < _SLICE_INPUTS_OPSET:
            attributes = {"axes": [axis], "starts": [0], "ends": [length]}
        else:
            bounds = ([0], [length], [axis])
            inputs += [self.constant(bound, np.int64, "bound") for bound in bounds]
        return self.nodes.add("Slice", inputs, "Slice", dims, attributes, dtype=x.dtype)

    def transpose(self, x: gs.Tensor, axes: Sequence[int]) -> gs.Variable:
        """Return `x` with its axes in another order."""
        dims = [x.shape[axis] for axis in axes]
        return self.nodes.add("Transpose", [x], "Transpose", dims, {"perm": axes}, dtype=x.dtype)
