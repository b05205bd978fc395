"""Cores in a ring."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.tensors import Modes, Structure, TensorMethod, TensorOptions, check_kernel
from onnxlr.methods.tensors.rings import Ring

__all__ = ["TensorRing", "ring_of"]

MATRIX_MODES = 2
"""Modes of each side of a matrix where their sizes are not given."""


class TensorRing(TensorMethod):
    """`W ≈ tr(G₁[i₁] G₂[i₂] … G_d[i_d])`, by alternating least squares from TR-SVD.

    Source: Zhao et al. 2016. The modes are those of the inputs, of a convolution's window, and of
    the outputs, as in Wang et al. 2018 (Wide Compression: Tensor Ring Nets).
    """

    name = "tensor_ring"
    options: type[Options] = TensorOptions

    def structure(
        self, weight: npt.NDArray[Any], options: TensorOptions, setting: Setting
    ) -> Structure:
        """Return tensor rings over the modes."""
        modes = Modes.of(weight, setting.groups, options, MATRIX_MODES)
        return ring_of(modes, setting)


def ring_of(modes: Modes, setting: Setting, t: int = 1) -> Ring:
    """Return rings over the modes.

    Raises
    ------
    UsageError
        If there are two modes only, or as of `check_kernel`.
    """
    check_kernel(modes, "tensor ring")
    ring = Ring.of(modes, t, setting.whole_window, setting.progress)
    if len(ring.cores) < 3:
        raise UsageError(
            f"the matrix has one mode of {modes.inputs[0]} inputs and one of {modes.outputs[0]} "
            "outputs, whose tensor ring is a product of two factors: give modes, or take method svd"
        )
    return ring
