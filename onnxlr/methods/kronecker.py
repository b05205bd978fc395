"""A sum of Kronecker products."""

from __future__ import annotations

from dataclasses import replace
from math import log, prod
from typing import Any

import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.tensors import Modes, Structure, check_kernel
from onnxlr.methods.tensors.options import sizes_text
from onnxlr.methods.tensors.orders import EitherEnd, TrainOptions
from onnxlr.methods.tensors.trains import Train

__all__ = ["Kronecker"]


class Kronecker(EitherEnd):
    """`W ≈ Σ_r A_r ⊗ B_r`, by the rearrangement of Van Loan and Pitsianis (1993).

    With rows and columns as pairs of indices, `W[(i₁ i₂), (o₁ o₂)]` rearranged to
    `(i₁ o₁) × (i₂ o₂)` has rank r, so that its singular value decomposition is the best sum of r
    products there is (in metric frobenius). Of a kernel, rows and columns are channels, and A_r has
    the window: the channels are split so that A and B have about the same number of entries, which
    for a given number of terms is the least there can be.
    """

    name = "kronecker"
    options: type[Options] = TrainOptions
    pairs_kernels = True

    def structure(
        self, weight: npt.NDArray[Any], options: TrainOptions, setting: Setting
    ) -> Structure:
        """Return trains of two cores over pairs of modes."""
        if options.modes is None:
            whole = Modes.of(weight, setting.groups, options)
            options = replace(options, modes=_balanced(whole).text)
        modes = Modes.of(weight, setting.groups, options)
        check_kernel(modes, "Kronecker")
        if len(modes.inputs) != 2 or len(modes.outputs) != 2:
            raise UsageError(
                f"modes {modes.text} are {len(modes.inputs)} of the inputs and "
                f"{len(modes.outputs)} of the outputs, expected two of each, {_example(modes)}"
            )
        rows = (*modes.inputs, *modes.window)
        count = len(rows)
        first = (0, *range(2, count), count)
        backward = options.order == "backward"
        cores = (first, (1, count + 1))
        return Train(modes, rows, modes.outputs, cores, backward=backward, polishing=0)


def _example(modes: Modes) -> str:
    split = _balanced(replace(modes, inputs=(prod(modes.inputs),), outputs=(prod(modes.outputs),)))
    return f"for instance {sizes_text(split.inputs)},{sizes_text(split.outputs)}"


def _balanced(modes: Modes) -> Modes:
    """Return two modes of inputs and of outputs, so that A and B have few entries together.

    Of splits with equally many, the one whose sizes are nearest to the square roots.
    """
    inputs, outputs, window = modes.inputs[0], modes.outputs[0], prod(modes.window)

    def cost(split: tuple[int, int]) -> tuple[int, float, int]:
        a, b = split
        uneven = abs(log(a * a / inputs)) + abs(log(b * b / outputs))
        return (a * b * window + inputs * outputs // (a * b), round(uneven, 9), a)

    splits = [(a, b) for a in _divisors(inputs) for b in _divisors(outputs)]
    a, b = min(splits, key=cost)
    return replace(modes, inputs=(a, inputs // a), outputs=(b, outputs // b))


def _divisors(size: int) -> list[int]:
    return [divisor for divisor in range(1, size + 1) if size % divisor == 0]
