"""Types and shapes of a graph's tensors, as far as they are known without running it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, shape_inference

from onnxlr.model.confined import confined
from onnxlr.model.growth import Growth
from onnxlr.model.scopes import scopes

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Dim", "TensorType", "infer_types"]

Dim = int | str | None
"""A known size, a symbol, or nothing known."""

_ROOM = 1 << 30
_FOLD = 50
"""Bytes that shape inference may take, and how many for each of the model without its weights."""

_FAILURES = (RuntimeError, ValueError, MemoryError, IndexError, OverflowError)
"""What becomes of exceptions of C++."""

_TERM = rb"[A-Za-z ]*(?:\.\.\.[A-Za-z ]*)?"
_EQUATION = re.compile(rb"%b(?:,%b)*(?:->%b)?" % (_TERM, _TERM, _TERM))

_SHAPE_LIKE = 1024
"""Tensors up to this many bytes keep their values: they may be the shape a Reshape needs."""


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor: its ONNX element type and its dimensions (None: unknown rank)."""

    elem_type: int
    dims: tuple[Dim, ...] | None

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> TensorType | None:
        """Return the type a value info states, None for sequences, maps and optionals."""
        if not value.type.HasField("tensor_type"):
            return None
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            return cls(tensor.elem_type, None)
        return cls(tensor.elem_type, tuple(_dim(d) for d in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # exporters write -1 for open
        return int(dim.dim_value)
    if dim.dim_param.startswith("unk__"):  # shape inference's own name for what it does not know
        return None
    return dim.dim_param or None


_WINDOWED = (
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "ConvInteger",
    "QLinearConv",
)
_LEAST_RANK = 3


def infer_types(model: onnx.ModelProto) -> Mapping[str, TensorType]:
    """Return the types of the main graph's tensors by name.

    Shape inference sees the model without its weights, so a model of any size can be asked. Where
    it fails (operators it does not know are no failure), or would not end in reasonable time or
    memory (it lists the dimensions of what could be a shape, however many are stated), only what
    the file states is returned.
    """
    bare = _without_weights(model)
    growth = Growth(bare)
    if growth.allows_shapes and not _convolves_rows(bare) and not _has_odd_equation(model):
        try:
            with confined(_ROOM + _FOLD * bare.ByteSize()):
                bare = shape_inference.infer_shapes(bare, data_prop=growth.allows_values)
        except (shape_inference.InferenceError, *_FAILURES):
            bare = _without_weights(model)
    values = (*bare.graph.input, *bare.graph.value_info, *bare.graph.output)
    types = {value.name: TensorType.of(value) for value in values}
    for tensor in model.graph.initializer:
        types[tensor.name] = TensorType(tensor.data_type, tuple(tensor.dims))
    return {name: known for name, known in types.items() if known is not None}


def _convolves_rows(bare: onnx.ModelProto) -> bool:
    """Return whether a convolution's data is stated to have no axes that a window moves along.

    ONNX Runtime refuses such a model; shape inference of onnx 1.19 ends the process.
    """
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*bare.graph.input, *bare.graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    windowed = (node for node in bare.graph.node if node.op_type in _WINDOWED and node.input)
    return any(ranks.get(node.input[0], _LEAST_RANK) < _LEAST_RANK for node in windowed)


def _has_odd_equation(model: onnx.ModelProto) -> bool:
    """Return whether an Einsum is of what is no equation; on some, shape inference never ends."""
    return any(
        attribute.name == "equation" and not _EQUATION.fullmatch(attribute.s)
        for scope in scopes(model)
        for node in scope.graph.node
        if node.op_type == "Einsum"
        for attribute in node.attribute
    )


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.initializer.extend(_light(tensor) for tensor in model.graph.initializer)
    for node in model.graph.node:
        graph.node.append(_light_node(node))
    return bare


def _light_node(node: onnx.NodeProto) -> onnx.NodeProto:
    if node.op_type != "Constant" or node.ByteSize() <= _SHAPE_LIKE:
        return node
    light = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
    light.output.extend(node.output)
    for attribute in node.attribute:
        if attribute.HasField("t"):
            light.attribute.add(name=attribute.name, type=attribute.type, t=_light(attribute.t))
        else:
            light.attribute.append(attribute)
    return light


def _light(tensor: TensorProto) -> TensorProto:
    if tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= _SHAPE_LIKE:
        return tensor
    return TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
