"""Cores in a ring, each with an identity behind it."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from onnxlr.methods.method import Options, Setting
from onnxlr.methods.tensor_ring import MATRIX_MODES, ring_of
from onnxlr.methods.tensors import Structure, TensorMethod
from onnxlr.methods.tensors.blocks import SemiOptions, check_divides, divisible_modes

__all__ = ["SemiTensorRing"]


class SemiTensorRing(TensorMethod):
    """A tensor ring of which each core of a channel mode is `F ⊗ I_t` (STR), t² times smaller.

    Fitted as the plain ring that it is of a rearranged tensor (`Ring`). Window modes are not split,
    and their cores are plain.
    """

    name = "semi_tensor_ring"
    options: type[Options] = SemiOptions

    def structure(
        self, weight: npt.NDArray[Any], options: SemiOptions, setting: Setting
    ) -> Structure:
        """Return semi-tensor rings over the modes."""
        modes = divisible_modes(weight, setting.groups, options, MATRIX_MODES)
        check_divides(options.t, [("inputs", modes.inputs), ("outputs", modes.outputs)])
        return ring_of(modes, setting, options.t)
