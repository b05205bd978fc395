"""The body of the function TernaryConv, for any number of spatial axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, numpy_helper

from onnxlr.operators.body import FLOAT, INT8, Body, reference, references
from onnxlr.operators.products import Needs, marked_steps, prepared_rows, rounded_rows
from onnxlr.operators.unpacking import Packed

__all__ = ["write_conv"]

_WINDOW = references(("strides", "pads", "dilations"), AttributeProto.INTS)


@dataclass(frozen=True)
class _Sizes:
    """One-element vectors, but for the kernel, which has one entry for each spatial axis."""

    kernel: str
    positions: str
    channels: str  # of one group
    group: str
    outputs: str  # of one group
    inputs: str


def write_conv(body: Body, needs: Needs) -> None:
    """Write the nodes from X to Y."""
    sizes = _sizes(body)
    packed = Packed(_order(body, sizes), sizes.outputs, sizes.group)
    if needs.levels == {0}:
        _dense(body, packed, sizes, needs)
        return
    entries = _entries(body, sizes)
    batch, space = body.dims(entries, 0, 1), body.dims(entries, 2)
    places = body.reduce("ReduceProd", space, 0, keep=True)
    # ONNX Runtime writes -1 for the one number of a shape that it does not know, and an empty batch
    # beside it leaves that open: here and at the end, it is joined to another number first, and the
    # pair is left as it is.
    patches = body.reshape(entries, 0, sizes.group, body.shape(sizes.inputs, places))
    patches = body.add("Transpose", patches, perm=[1, 2, 0, 3])
    # The batch goes among the columns: one large product instead of many small ones.
    columns = body.add("Mul", batch, places)
    patches = body.reshape(patches, sizes.group, sizes.inputs, columns)
    if needs.integer(body.opset):
        total, step = _integer(body, packed, sizes, patches, needs.terms)
    else:
        rows, step = prepared_rows(body, needs, patches, 1)
        total = body.add("MatMul", _decoded(body, packed, needs), rows)
    bias = body.reshape("bias", sizes.group, sizes.outputs, 1)
    values = body.add("Add", body.add("Mul", total, step), bias)
    values = body.reshape(values, sizes.group, sizes.outputs, batch, places)
    values = body.add("Transpose", values, perm=[2, 0, 1, 3])
    body.reshape(values, 0, body.shape(body.dims("bias", 0), space), output="Y")


def _sizes(body: Body) -> _Sizes:
    kernel = _kernel_shape(body)
    positions = body.reduce("ReduceProd", kernel, 0, keep=True)
    group = body.dims("codes", 1, 2)
    channels = body.add("Div", body.dims("input_scale", 0), group)
    outputs = body.add("Div", body.dims("bias", 0), group)
    return _Sizes(kernel, positions, channels, group, outputs, body.add("Mul", positions, channels))


def _kernel_shape(body: Body) -> str:
    if body.opset >= 12:
        return body.add(
            "Constant", value_ints=reference("value_ints", AttributeProto.INTS, "kernel_shape")
        )
    # No older operator makes a tensor of ints, but unpooling one entry gives a tensor of the
    # kernel's shape.
    ones = numpy_helper.from_array(np.ones(1, np.int64))
    zeros = numpy_helper.from_array(np.zeros(1, np.int64))
    single = body.add("ConstantOfShape", body.add("Shape", body.add("Shape", "X")), value=ones)
    unpooled = body.add(
        "MaxUnpool",
        body.add("ConstantOfShape", single),
        body.add("ConstantOfShape", single, value=zeros),
        **references(("kernel_shape",), AttributeProto.INTS),
    )
    return body.dims(unpooled, 2)


def _order(body: Body, sizes: _Sizes) -> str:
    """Return the inputs of packed codes in the order of kernels, the channel first."""
    places = body.range(sizes.inputs)
    position = body.modulo(places, sizes.positions)
    channel = body.add("Div", places, sizes.positions)
    return body.add("Add", body.add("Mul", position, sizes.channels), channel)


def _decoded(body: Body, packed: Packed, needs: Needs) -> str:
    """Return the float weights (group, outputs, inputs)."""
    weights = [packed.scaled(body, term, needs.grouped) for term in range(needs.terms)]
    return body.add("Transpose", body.sum(weights), perm=[1, 2, 0])


def _dense(body: Body, packed: Packed, sizes: _Sizes, needs: Needs) -> None:
    channel = body.add("Div", body.range(sizes.inputs), sizes.positions)
    input_scale = body.reshape("input_scale", sizes.group, 1, sizes.channels)
    input_scale = body.add("Gather", input_scale, channel, axis=2)
    kernel = body.add("Mul", _decoded(body, packed, needs), input_scale)
    shaped = body.reshape(kernel, body.dims("bias", 0), sizes.channels, sizes.kernel)
    group = references(("group",), AttributeProto.INT)
    body.add("Conv", "X", shaped, "bias", output="Y", **_WINDOW, **group)


def _entries(body: Body, sizes: _Sizes) -> str:
    """Return the scaled entries of patches (batch, channels · positions, *space).

    A convolution with one filter for each channel and position picks them; the input scale is what
    the filters hold.
    """
    square = body.add("ConstantOfShape", body.shape(sizes.positions, sizes.positions))
    picked = body.add("EyeLike", square)
    filters = body.add("Mul", picked, body.reshape("input_scale", -1, 1, 1))
    filters = body.reshape(filters, -1, 1, sizes.kernel)
    group = {"group": reference("group", AttributeProto.INT, "channels")}
    return body.add("Conv", "X", filters, **_WINDOW, **group)


def _integer(
    body: Body, packed: Packed, sizes: _Sizes, patches: str, terms: int
) -> tuple[str, str]:
    rows, step = rounded_rows(body, patches, 1)
    step = marked_steps(body, rows, step, 1)
    rows = body.cast(rows, INT8)
    zero = body.constant(1, np.uint8)
    sums = []
    for term in range(terms):
        codes = body.add("Transpose", packed.term(body, term, zero=1), perm=[1, 2, 0])
        product = body.cast(body.add("MatMulInteger", codes, rows, zero), FLOAT)
        scales = packed.scales_of_outputs(body, term)
        scales = body.reshape(scales, sizes.group, sizes.outputs, 1)
        sums.append(body.add("Mul", product, scales))
    return body.sum(sums), step
