"""Cores in a row, each but the first with an identity behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from onnxlr.methods.method import Options, Setting
from onnxlr.methods.tensor_train import MATRIX_MODES, kernel_train, matrix_train
from onnxlr.methods.tensors import Modes, Structure, check_kernel
from onnxlr.methods.tensors.blocks import SemiOptions, check_divides, divisible_modes
from onnxlr.methods.tensors.orders import EitherEnd, TrainOptions

__all__ = ["SemiTensorTrain", "SemiTrainOptions"]


@dataclass(frozen=True)
class SemiTrainOptions(TrainOptions, SemiOptions):
    """As of tensor trains, and the size of the identity."""


class SemiTensorTrain(EitherEnd):
    """`W(i₁, …, i_d) = G₁[i₁] ⋉ G₂[i₂] ⋉ … ⋉ G_d[i_d]`, a train by the semi-tensor product (STT).

    `A ⋉ B = A (B ⊗ I_t)` where A has t times as many columns as B has rows: core k ≥ 2 is of
    r_{k−1}/t × r_k/t matrices, and the last makes t numbers at once. The index j of these, the
    minor part of the last mode of the outputs, passes through all cores but the first: W is the
    plain train of ranks r/t of the tensor whose first mode is (i₁, j) and whose last is i_d
    without j. It is fitted as that train.
    """

    name = "semi_tensor_train"
    options: type[Options] = SemiTrainOptions

    def structure(
        self, weight: npt.NDArray[Any], options: SemiTrainOptions, setting: Setting
    ) -> Structure:
        """Return semi-tensor trains over the modes."""
        t = options.t
        if setting.groups is None:
            modes = self._modes(weight, options)
            check_divides(t, [("outputs", modes.outputs[-1:])])
            return matrix_train(modes, t, options.order == "backward")
        modes = Modes.of(weight, setting.groups, options)
        check_kernel(modes, "semi-tensor train")
        check_divides(t, [("outputs", modes.outputs[-1:])])
        return kernel_train(modes, setting.whole_window, t)

    def _modes(self, weight: npt.NDArray[Any], options: SemiTrainOptions) -> Modes:
        """Return the modes of a matrix: those of the plain train if t divides the last of them."""
        modes = Modes.of(weight, None, options, MATRIX_MODES)
        if modes.outputs[-1] % options.t == 0:
            return modes
        split = divisible_modes(weight, None, options, MATRIX_MODES)
        return Modes(modes.inputs, split.outputs)
