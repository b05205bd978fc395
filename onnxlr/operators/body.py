"""Writes the nodes of a function body, each as the opset has its operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

__all__ = [
    "FLOAT",
    "INT8",
    "INT32",
    "INT64",
    "LOWEST_OPSET",
    "UINT8",
    "Body",
    "reference",
    "references",
]

LOWEST_OPSET = 9
"""ConstantOfShape, EyeLike, MaxUnpool and Where begin with it."""

FLOAT, INT8, UINT8, INT32, INT64 = (
    TensorProto.FLOAT,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
)
_TO_THE_END = 2**31 - 1
_EXACT_HALVES = 12582912.0  # 1.5 * 2**23: floats of this size have no places after the point


class Body:
    """The nodes of a function.

    Attributes
    ----------
    opset
        Version of the standard operators.
    nodes
        What was written so far.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its result.

        An `AttributeProto` is taken as it is; it may refer to an attribute of the function.
        """
        output = output or f"{operator}_{len(self.nodes)}"
        references = {k: v for k, v in attributes.items() if isinstance(v, AttributeProto)}
        given = {k: v for k, v in attributes.items() if k not in references}
        node = helper.make_node(operator, inputs, [output], **given)
        node.attribute.extend(references.values())
        self.nodes.append(node)
        return output

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Return a constant; one of equal values is shared."""
        array = np.asarray(values, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.add("Constant", value=numpy_helper.from_array(array))
        return self._constants[key]

    def number(self, value: float) -> str:
        """Return a float32 scalar."""
        return self.constant(value, np.float32)

    def dims(self, x: str, first: int, last: int | None = None) -> str:
        """Return a part of a tensor's shape as a vector; up to the end if no last is given."""
        end = _TO_THE_END if last is None else last
        shape = self.add("Shape", x)
        if self.opset < 10:
            return self.add("Slice", shape, axes=[0], starts=[first], ends=[end])
        return self.add("Slice", shape, self.constant([first]), self.constant([end]))

    def shape(self, *parts: str | int) -> str:
        """Return one vector of vectors and numbers."""
        vectors = [p if isinstance(p, str) else self.constant([p]) for p in parts]
        return self.add("Concat", *vectors, axis=0)

    def reshape(self, x: str, *parts: str | int, output: str | None = None) -> str:
        """Return a tensor in a shape given by vectors and numbers."""
        fixed = all(isinstance(part, int) for part in parts)
        shape = self.constant(parts) if fixed else self.shape(*parts)
        return self.add("Reshape", x, shape, output=output)

    def crop(self, x: str, sizes: dict[int, str]) -> str:
        """Return the first entries along axes, as many as the one-element vectors say."""
        if self.opset < 10:
            for axis, size in sizes.items():
                x = self.add("Gather", x, self.range(size), axis=axis)
            return x
        axes, ends = self.constant(list(sizes)), self.shape(*sizes.values())
        return self.add("Slice", x, self.constant([0] * len(sizes)), ends, axes)

    def range(self, size: str) -> str:
        """Return 0, 1, … as a vector of a size that is a one-element vector."""
        if self.opset >= 11:
            limit = self.reshape(size, self.constant([]))
            return self.add("Range", self.constant(0), limit, self.constant(1))
        # Pooling of single entries tells where each was. NonZero would be the obvious way, but
        # ONNX Runtime does not fold operators whose result has a shape that depends on values.
        zeros = self.add("ConstantOfShape", self.shape(1, 1, size))
        pooled = f"MaxPool_{len(self.nodes)}"
        outputs = [pooled, f"{pooled}_places"]
        self.nodes.append(helper.make_node("MaxPool", [zeros], outputs, kernel_shape=[1]))
        return self.reshape(outputs[1], -1)

    def divided_up(self, x: str, by: str) -> str:
        """Return ⌈x / by⌉ of positive integers."""
        summed = self.add("Add", x, self.add("Sub", by, self.constant([1])))
        return self.add("Div", summed, by)

    def modulo(self, x: str, by: str) -> str:
        """Return what is left of integers that are not negative."""
        whole = self.add("Mul", self.add("Div", x, by), by)
        return self.add("Sub", x, whole)

    def cast(self, x: str, to: int) -> str:
        """Return values in another type."""
        return self.add("Cast", x, to=to)

    def reduce(self, operator: str, x: str, axis: int, keep: bool = False) -> str:
        """Return ReduceMax, ReduceMin, ReduceProd or ReduceSum over one axis."""
        if self.opset < (13 if operator == "ReduceSum" else 18):
            return self.add(operator, x, axes=[axis], keepdims=int(keep))
        return self.add(operator, x, self.constant([axis]), keepdims=int(keep))

    def rounded(self, x: str) -> str:
        """Return the nearest integers as floats, halves to even; magnitudes below 2**22 only."""
        if self.opset >= 11:
            return self.add("Round", x)
        large = self.number(_EXACT_HALVES)
        return self.add("Sub", self.add("Add", x, large), large)

    def sum(self, values: Sequence[str]) -> str:
        """Return the sum of tensors."""
        return values[0] if len(values) == 1 else self.add("Sum", *values)


def reference(name: str, kind: AttributeProto.AttributeType, attribute: str) -> AttributeProto:
    """Return an attribute `name` whose value is the function's `attribute`."""
    return AttributeProto(name=name, ref_attr_name=attribute, type=kind)


def references(attributes: Sequence[str], kind: AttributeProto.AttributeType) -> dict[str, Any]:
    """Return attributes that are the function's of the same names."""
    return {name: reference(name, kind, name) for name in attributes}
