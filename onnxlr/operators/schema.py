"""What the ternary operators have in common: their limits, a value that checks itself, its node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxlr.errors import UsageError
from onnxlr.model.tensors import make_tensor
from onnxlr.operators.packing import Codes, Ternary

__all__ = [
    "ACCURACY_LEVELS",
    "DOMAIN",
    "GROUP_SIZES",
    "LAYOUT",
    "MAX_INPUTS",
    "MAX_TERMS",
    "VERSION",
    "TernaryOperator",
    "make_node",
]

DOMAIN = "onnxlr"
VERSION = 1
LAYOUT = 1
GROUP_SIZES = (32, 64, 128)
MAX_INPUTS = 8388608
MAX_TERMS = 8
ACCURACY_LEVELS = (0, 4)

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TernaryOperator(ABC):
    """What both operators have.

    Attributes
    ----------
    ternary
        int8 values -1, 0 and 1, terms first.
    scales
        float32 (terms, groups of inputs, outputs).
    input_scale
        float32, what each input or channel is multiplied by.
    bias
        float32 (outputs).
    group_size
        Inputs that share a scale: 32, 64, 128, or all.
    accuracy_level
        0 for float32 additions, 4 for rows rounded to int8.
    """

    ternary: Ternary
    scales: Floats
    input_scale: Floats
    bias: Floats
    group_size: int
    accuracy_level: int

    operator: ClassVar[str]

    @property
    def terms(self) -> int:
        """Ternary weights that are summed."""
        return int(self.ternary.shape[0])

    @property
    @abstractmethod
    def inputs(self) -> int:
        """Inputs of a matrix, K."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Outputs, N."""

    @property
    @abstractmethod
    def codes(self) -> Codes:
        """The packed weights."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return {
            "K": self.inputs,
            "N": self.outputs,
            "group_size": self.group_size,
            "terms": self.terms,
            "layout": LAYOUT,
            "accuracy_level": self.accuracy_level,
        }

    @property
    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """The node's inputs after the data, in order, by the names of the specification."""
        return {
            "codes": self.codes,
            "scales": self.scales,
            "input_scale": self.input_scale,
            "bias": self.bias,
        }

    @abstractmethod
    def reference(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the result by numpy, with sums in float64."""

    def _check(self, scaled: int) -> None:
        """Check what both operators have; `scaled` entries belong to the input scale."""
        if not 1 <= self.terms <= MAX_TERMS:
            raise self._wrong("terms", self.terms, f"1 to {MAX_TERMS}")
        if not 1 <= self.inputs <= MAX_INPUTS:
            raise self._wrong("inputs", self.inputs, f"1 to {MAX_INPUTS}")
        if self.group_size not in (*GROUP_SIZES, self.inputs):
            raise self._wrong(
                "group size", self.group_size, f"32, 64, 128 or all {self.inputs} inputs"
            )
        if self.accuracy_level not in ACCURACY_LEVELS:
            raise self._wrong("accuracy level", self.accuracy_level, "0 or 4")
        groups = -(-self.inputs // self.group_size)
        self._check_floats("scales", self.scales, (self.terms, groups, self.outputs))
        self._check_floats("input scale", self.input_scale, (scaled,))
        self._check_floats("bias", self.bias, (self.outputs,))

    def _check_floats(self, what: str, values: Floats, shape: tuple[int, ...]) -> None:
        if values.dtype != np.float32 or values.shape != shape:
            raise self._wrong(what, f"{values.dtype} {values.shape}", f"float32 {shape}")
        if not np.isfinite(values).all():
            raise self._wrong(what, "infinity or NaN", "finite numbers")

    def _wrong(self, what: str, found: object, expected: str) -> UsageError:
        return UsageError(f"{self.operator}: {what}: found {found}; expected {expected}.")


def make_node(
    weights: TernaryOperator, x: str, y: str, name: str, constants: Mapping[str, str] | None = None
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """Return a node with all five inputs, and its initializers.

    Parameters
    ----------
    weights
        What the node computes.
    x, y
        Names of the data and of the result.
    name
        Of the node; initializers are called `name.codes` and so on.
    constants
        Other names for initializers, by `codes`, `scales`, `input_scale` and `bias`.

    Returns
    -------
    onnx.NodeProto
        The node, of the domain `onnxlr`; the model needs that domain's opset import.
    list of onnx.TensorProto
        Its constants in the order of the inputs.
    """
    names = {key: f"{name}.{key}" for key in weights.constants} | dict(constants or {})
    tensors = [make_tensor(values, names[key]) for key, values in weights.constants.items()]
    node = helper.make_node(
        weights.operator,
        [x, *(tensor.name for tensor in tensors)],
        [y],
        name=name,
        domain=DOMAIN,
        **weights.attributes,
    )
    return node, tensors
