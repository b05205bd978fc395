"""The two ternary operators as values that check themselves: weights, attributes and nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from onnxlr.errors import UsageError
from onnxlr.model.tensors import make_tensor
from onnxlr.operators.arithmetic import multiplied, patches_of, scaled_sum
from onnxlr.operators.packing import Codes, Ternary, pack, pack_kernel

__all__ = [
    "ACCURACY_LEVELS",
    "DOMAIN",
    "GROUP_SIZES",
    "LAYOUT",
    "MAX_INPUTS",
    "MAX_TERMS",
    "VERSION",
    "TernaryConv",
    "TernaryMatMul",
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


@dataclass(frozen=True, eq=False)
class TernaryMatMul(TernaryOperator):
    """A matrix: `ternary` is (terms, inputs, outputs), `input_scale` (inputs).

    Raises
    ------
    UsageError
        If the parts do not fit each other or the specification.
    """

    operator: ClassVar[str] = "TernaryMatMul"

    def __post_init__(self) -> None:
        if self.ternary.ndim != 3:
            raise self._wrong("weights", self.ternary.shape, "(terms, inputs, outputs)")
        self._check(self.inputs)

    @property
    def inputs(self) -> int:
        """Inputs of the matrix, K."""
        return int(self.ternary.shape[1])

    @property
    def outputs(self) -> int:
        """Outputs of the matrix, N."""
        return int(self.ternary.shape[2])

    @property
    def codes(self) -> Codes:
        """The packed weights (terms, panels, blocks, 64)."""
        return pack(self.ternary)

    def reference(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the result (…, outputs) of x (…, inputs) by numpy, with sums in float64."""
        matrix = scaled_sum(self.ternary, self.scales, self.group_size)
        return multiplied(x * self.input_scale, matrix, self.accuracy_level) + self.bias


@dataclass(frozen=True, eq=False)
class TernaryConv(TernaryOperator):
    """A kernel: `ternary` is (terms, outputs, channels / group, *kernel), 1-D or 2-D.

    `input_scale` is (channels). Groups of inputs that share a scale follow the specification's
    order of a patch: kernel position first, channel last.

    Attributes
    ----------
    strides, dilations
        One for each spatial axis.
    pads
        Zeros before each axis, then behind each.
    group
        Groups of channels.

    Raises
    ------
    UsageError
        If the parts do not fit each other or the specification.
    """

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int = 1

    operator: ClassVar[str] = "TernaryConv"

    def __post_init__(self) -> None:
        if self.ternary.ndim not in (4, 5):
            expected = "(terms, outputs, channels / group, *kernel) with one or two kernel axes"
            raise self._wrong("weights", self.ternary.shape, expected)
        if self.group < 1 or self.outputs % self.group:
            raise self._wrong("group", self.group, f"a divisor of {self.outputs} outputs")
        axes = len(self.kernel_shape)
        for name, given, count, least in (
            ("strides", self.strides, axes, 1),
            ("dilations", self.dilations, axes, 1),
            ("pads", self.pads, 2 * axes, 0),
        ):
            if len(given) != count or min(given) < least:
                raise self._wrong(name, given, f"{count} numbers that are at least {least}")
        self._check(self.channels)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Size of the kernel along each spatial axis."""
        return self.ternary.shape[3:]

    @property
    def channels(self) -> int:
        """Channels of the data, of all groups together."""
        return int(self.ternary.shape[2]) * self.group

    @property
    def inputs(self) -> int:
        """Entries of a patch of one group of channels, K."""
        return int(self.ternary.shape[2]) * prod(self.kernel_shape)

    @property
    def outputs(self) -> int:
        """Output channels of all groups together, N."""
        return int(self.ternary.shape[1])

    @property
    def codes(self) -> Codes:
        """The packed weights (terms, group, panels, blocks, 64)."""
        return pack_kernel(self.ternary, self.group)

    def reference(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the result (batch, outputs, *out) of x (batch, channels, *space) by numpy."""
        axes = len(self.kernel_shape)
        scaled = x * self.input_scale.reshape(-1, *[1] * axes)
        patches = patches_of(scaled, self.kernel_shape, self.strides, self.pads, self.dilations)
        matrices = np.moveaxis(self.ternary, (1, 2), (-1, -2)).reshape(
            self.terms, self.inputs, self.outputs
        )
        matrix = scaled_sum(matrices, self.scales, self.group_size)
        parts = [
            multiplied(rows.reshape(*rows.shape[: 1 + axes], -1), columns, self.accuracy_level)
            for rows, columns in zip(
                np.split(patches, self.group, axis=-1),
                np.split(matrix, self.group, axis=-1),
                strict=True,
            )
        ]
        return np.moveaxis(np.concatenate(parts, axis=-1) + self.bias, -1, 1)

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return {
            **super().attributes,
            "kernel_shape": list(self.kernel_shape),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
            "group": self.group,
            "channels": self.channels,
        }


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
