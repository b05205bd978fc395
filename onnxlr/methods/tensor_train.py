"""Cores in a row."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.tensors import Modes, Structure, check_kernel
from onnxlr.methods.tensors.orders import EitherEnd, TrainOptions
from onnxlr.methods.tensors.trains import Train, window_cores

__all__ = ["TensorTrain", "kernel_train", "matrix_train"]

MATRIX_MODES = 2
"""Modes of each side of a matrix where their sizes are not given. Three were worse at every ratio
tried: a 384×384 matrix of MiniLM had relative errors of .653, .830 and .943 at .5, .25 and .1 with
three, and of .613, .791 and .913 with two."""


class TensorTrain(EitherEnd):
    """`W ≈ G₁[i₁] G₂[i₂] … G_d[i_d]`, by TT-SVD (Oseledets 2011).

    Of a matrix, mode k is a pair of one mode of the inputs and one of the outputs (Novikov et al.
    2015), so that each step multiplies one mode of the features. Of a kernel, the modes are those
    of the inputs, the window's axes, and those of the outputs: 1×1, k×1, 1×k and 1×1.

    It offers nothing to planners: of kernels it was behind spatial svd in error and in time at half
    of the numbers (docs/results/tensors.md), and at a quarter, where it was tried, behind full
    tucker in error; of matrices it takes many times as long as the matrix.
    """

    name = "tensor_train"
    options: type[Options] = TrainOptions

    def structure(
        self, weight: npt.NDArray[Any], options: TrainOptions, setting: Setting
    ) -> Structure:
        """Return tensor trains over the modes."""
        modes = Modes.of(weight, setting.groups, options, MATRIX_MODES)
        if setting.groups is None:
            return matrix_train(modes, backward=options.order == "backward")
        check_kernel(modes, "tensor train")
        return kernel_train(modes, setting.whole_window)


def matrix_train(modes: Modes, t: int = 1, backward: bool = False) -> Train:
    """Return trains over pairs of modes; the side with fewer gets some of size 1.

    Parameters
    ----------
    t
        A divisor of the last mode of the outputs: its minor part, which the first core has and all
        others leave as it is.

    Raises
    ------
    UsageError
        If there is one pair only.
    """
    count = max(len(modes.inputs), len(modes.outputs))
    if count == 1:
        raise UsageError(
            f"the matrix has one mode of {modes.inputs[0]} inputs and one of {modes.outputs[0]} "
            "outputs, whose tensor train is the matrix itself: give modes, or take method svd"
        )
    inputs = (*modes.inputs, *[1] * (count - len(modes.inputs)))
    # The last mode of the outputs stays the last: it is the one that t divides.
    outputs = (*modes.outputs[:-1], *[1] * (count - len(modes.outputs)), modes.outputs[-1])
    columns = outputs if t == 1 else (*outputs[:-1], outputs[-1] // t, t)
    pairs = [(k, count + k) for k in range(count)]
    cores = pairs if t == 1 else [(*pairs[0], 2 * count), *pairs[1:]]
    whole = Modes(inputs, outputs)
    return Train(whole, inputs, columns, tuple(cores), t, backward)


def kernel_train(modes: Modes, whole_window: bool, t: int = 1) -> Train:
    """Return trains over the modes of inputs, the window, and the modes of outputs.

    Parameters
    ----------
    whole_window
        Whether the window is one mode.
    t
        As of `matrix_train`.
    """
    rows = (*modes.inputs, *modes.window)
    last = modes.outputs[-1]
    columns = modes.outputs if t == 1 else (*modes.outputs[:-1], last // t, t)
    inputs = [(axis,) for axis in range(len(modes.inputs))]
    window = window_cores(modes, len(inputs), whole_window)
    outputs = [(len(rows) + axis,) for axis in range(len(modes.outputs))]
    first: tuple[int, ...] = inputs[0]
    if not window:
        first = (*first, *range(len(inputs), len(rows)))
    if t > 1:
        first = (*first, len(rows) + len(modes.outputs))
    cores = (first, *inputs[1:], *window, *outputs)
    return Train(modes, rows, columns, cores, t)
