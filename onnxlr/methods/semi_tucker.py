"""A core between factors, each with an identity behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from onnxlr.methods.method import Options, Setting
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.methods.tensors import Structure
from onnxlr.methods.tensors.blocks import SemiOptions, check_divides, divisible_modes
from onnxlr.methods.tucker import Tucker, TuckerOptions, TuckerStructure

__all__ = ["SemiTucker", "SemiTuckerOptions"]

MATRIX_MODES = 2
"""Modes of each side of a matrix where their sizes are not given."""


@dataclass(frozen=True)
class SemiTuckerOptions(TuckerOptions, SemiOptions):
    """As of tucker, and the size of the identity."""


class SemiTucker(Tucker):
    """`W ≈ G ×₁ (U₁ ⊗ I_t) ×₂ (U₂ ⊗ I_t) …` (STTu), with factors t² times smaller.

    With each mode of channels as `(a, j)`, j of size t, it is the partial Tucker decomposition in
    which only the a have factors, and is fitted as such.
    """

    name = "semi_tucker"
    options: type[Options] = SemiTuckerOptions

    def structure(
        self, weight: npt.NDArray[Any], options: TuckerOptions, setting: Setting
    ) -> Structure:
        """Return semi-tensor Tucker networks over the modes."""
        if not isinstance(options, SemiTuckerOptions):
            raise TypeError(f"options of semi_tucker expected, found {type(options).__name__}")
        modes = divisible_modes(weight, setting.groups, options, MATRIX_MODES)
        given = replace(options, modes=modes.text)
        plain = super().structure(weight, given, setting)
        check_divides(options.t, [("inputs", modes.inputs), ("outputs", modes.outputs)])
        if not isinstance(plain, TuckerStructure):
            raise TypeError(f"no Tucker networks: {type(plain).__name__}")
        return replace(plain, t=options.t)

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:  # noqa: ARG002
        """Return nothing: at equal numbers tucker was closer for every kernel measured."""
        return ()
