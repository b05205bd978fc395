"""Puts trained values back where a model keeps its constants; nothing else of the file changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxlr.errors import ModelError
from onnxlr.model import Model
from onnxlr.model.tensors import make_tensor

__all__ = ["constant_tensors", "write_constants"]


def constant_tensors(model: Model) -> dict[str, onnx.TensorProto]:
    """Return the main graph's initializers and the values of its Constant nodes by name."""
    found = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    for node in model.proto.graph.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        for held in node.attribute:
            if held.name == "value":
                found[node.output[0]] = held.t
    return found


def write_constants(model: Model, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put values in place of initializers and Constant nodes of a model's main graph.

    A constant that holds the same numbers already keeps its bytes, as raw, typed or external data.

    Parameters
    ----------
    model
        An opened model; its proto is changed.
    values
        Arrays by the names of tensors, in the shapes that these have. Numbers are cast to the
        type that the file has.

    Raises
    ------
    ModelError
        If there is no such constant, its shape is another, or a value is NaN or infinite in its
        type. Nothing is changed then.
    """
    places = constant_tensors(model)
    found = []
    for name, value in values.items():
        if name not in places:
            raise ModelError(f"{model.name}: there is no constant '{name}' in its main graph")
        held = _held(places[name], value, f"{model.name}: constant '{name}'")
        if not _same(model.read(places[name]), held):
            found.append((places[name], held))
    for tensor, held in found:
        new = make_tensor(held, tensor.name)
        tensor.CopyFrom(new)


def _held(tensor: onnx.TensorProto, value: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Return numbers in the type of a tensor."""
    if tuple(tensor.dims) != value.shape:
        raise ModelError(f"{where} has shape {list(tensor.dims)}, found {list(value.shape)}")
    with np.errstate(over="ignore"):  # said below
        held = value.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if value.dtype.kind == "f" and not np.isfinite(held.astype(np.float64)).all():
        raise ModelError(f"{where} would hold NaN or infinity")
    return held


def _same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()
