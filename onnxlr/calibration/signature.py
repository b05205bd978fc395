"""What inputs a model takes, and whether some arrays fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from onnxlr.errors import DataError
from onnxlr.model import Model
from onnxlr.model.shapes import Dim, TensorType
from onnxlr.model.tensors import type_name

__all__ = ["Feeds", "InputSpec", "check_feeds", "check_names", "signature"]

Feeds = Mapping[str, npt.NDArray[Any]]
"""One array for each input: what one run of the model takes."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes
    ----------
    name
        Its name.
    elem_type
        ONNX element type; 0 for inputs that are no tensors.
    dims
        Its dimensions as far as they are known, None if not even the rank is.
    """

    name: str
    elem_type: int
    dims: tuple[Dim, ...] | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type its arrays must have; raises DataError where there is none."""
        if self.elem_type == TensorProto.STRING:
            return np.dtype(np.str_)
        try:
            return np.dtype(helper.tensor_dtype_to_np_dtype(self.elem_type))
        except (KeyError, TypeError):  # a number that no version of ONNX knows
            raise DataError(f"input {self} has an element type that no array has") from None

    def __str__(self) -> str:
        if not self.elem_type:
            return f"'{self.name}' (not a tensor)"
        shape = (
            "any shape" if self.dims is None else f"[{', '.join(str(d or '?') for d in self.dims)}]"
        )
        return f"'{self.name}' {type_name(self.elem_type)} {shape}"


def signature(model: Model) -> list[InputSpec]:
    """Return the inputs that must be fed: those without an initializer behind them."""
    specs = []
    for value in model.proto.graph.input:
        if value.name not in model.initializers:
            known = TensorType.of(value) or TensorType(0, None)
            specs.append(InputSpec(value.name, known.elem_type, known.dims))
    return specs


def check_names(feeds: Mapping[str, Any], specs: Sequence[InputSpec], source: str) -> None:
    """Check that no input is missing; raises DataError naming the first that is."""
    for spec in specs:
        if spec.name not in feeds:
            found = ", ".join(f"'{name}'" for name in feeds) or "nothing"
            raise DataError(f"{source}: input {spec} is missing; found {found}")


def check_feeds(feeds: Mapping[str, Any], specs: Sequence[InputSpec], source: str) -> Feeds:
    """Return the arrays a model takes out of `feeds`; other entries are ignored.

    Parameters
    ----------
    source
        What messages call the data.

    Raises
    ------
    DataError
        If an input is missing or has another dtype or shape than the model says.
    """
    check_names(feeds, specs, source)
    checked = {}
    for spec in specs:
        if not spec.elem_type:
            raise DataError(f"{source}: input {spec} cannot be given as an array")
        array = np.asarray(feeds[spec.name])
        if spec.elem_type == TensorProto.STRING and array.dtype.kind in "SO":
            array = _as_text(array, spec, source)
        _check_array(array, spec, source)
        checked[spec.name] = array
    return checked


def _as_text(array: npt.NDArray[Any], spec: InputSpec, source: str) -> npt.NDArray[np.str_]:
    """Return bytes (UTF-8) or objects as strings, which can be stored without pickling."""
    try:
        texts = [x.decode() if isinstance(x, bytes) else str(x) for x in array.ravel()]
    except UnicodeDecodeError:
        raise DataError(
            f"{source}: input '{spec.name}' has bytes that are not UTF-8, expected strings"
        ) from None
    return np.array(texts, np.str_).reshape(array.shape)


def _check_array(array: npt.NDArray[Any], spec: InputSpec, source: str) -> None:
    same_kind = array.dtype.kind == "U" and spec.elem_type == TensorProto.STRING
    if array.dtype != spec.dtype and not same_kind:
        expected = "strings" if spec.elem_type == TensorProto.STRING else spec.dtype
        raise DataError(
            f"{source}: input '{spec.name}' has dtype {array.dtype}, expected {expected}"
        )
    if spec.dims is None:
        return
    fits = array.ndim == len(spec.dims) and all(
        not isinstance(dim, int) or dim == size
        for dim, size in zip(spec.dims, array.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(dim or "?") for dim in spec.dims)
        raise DataError(
            f"{source}: input '{spec.name}' has shape {list(array.shape)}, expected [{expected}]"
        )
