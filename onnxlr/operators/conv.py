"""TernaryConv as a value that checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.operators.arithmetic import multiplied, patches_of, scaled_sum
from onnxlr.operators.packing import Codes, pack_kernel
from onnxlr.operators.schema import TernaryOperator

__all__ = ["TernaryConv"]


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
