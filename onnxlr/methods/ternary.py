"""The whole weight as a sum of a few scaled matrices of −1, 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.methods.quantize import round_whole
from onnxlr.stages import Chain

__all__ = ["Ternary", "TernaryOptions"]

_TERMS = 2
"""Terms where none are given: one loses a quarter of the outputs or more."""

_MOST_TERMS = 3
"""Behind three, int8 takes hardly more bytes and loses less."""


@dataclass(frozen=True)
class TernaryOptions:
    """How many ternary matrices are added.

    Attributes
    ----------
    terms
        Of ternary: 1, 2 or 3; 2 if not given. Each takes 2 bits for every entry, and its scales.
    """

    terms: int | None = None

    def __post_init__(self) -> None:
        terms = self.terms
        if terms is not None and (not isinstance(terms, int) or not 1 <= terms <= _MOST_TERMS):
            raise UsageError(f"terms {terms} is not 1, 2 or {_MOST_TERMS}")

    @property
    def count(self) -> int:
        """The number of terms."""
        return _TERMS if self.terms is None else self.terms

    def __str__(self) -> str:
        return f"×{self.count}"


class Ternary:
    """`W ≈ Σ_t α_t T_t` with `T_t` of −1, 0 and 1, and a scale for each group of inputs and output.

    Nothing is factorized: one stage takes the weight's place, which additions multiply. Where the
    covariance of the inputs is known, GPTQ feeds errors on and coordinate descent follows
    (`numbers.gptq`, `numbers.descent`); elsewhere each number takes its nearest value.
    """

    name = "ternary"
    options: type[Options] = TernaryOptions
    default_format: str | None = "ternary"
    is_slow = False
    default_group_size = 128
    default_rounding = "gptq"

    def factorize(
        self, weight: npt.NDArray[Any], options: TernaryOptions, setting: Setting
    ) -> Chain:
        """Return one stage.

        Raises
        ------
        UsageError
            If the weight is a table, whose rows nothing multiplies.
        """
        if setting.is_table:
            raise UsageError(
                "a table of rows has no product that additions could take the place of; method "
                "quantize changes its format"
            )
        kept = replace(setting.format, kind="ternary", terms=options.count)
        return Chain((round_whole(weight, replace(setting, format=kept)),))

    def settle(self, options: TernaryOptions, chain: Chain) -> TernaryOptions:  # noqa: ARG002
        """Return the number of terms."""
        return TernaryOptions(options.count)

    def heeds_metric(self, options: TernaryOptions, setting: Setting) -> bool:  # noqa: ARG002
        """Return whether rounding feeds errors on."""
        return setting.format.rounding != "nearest"

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return sums of terms that an operator of the target multiplies.

        Written in any other way they are no faster than floats, and less exact than sums of atoms
        of as many bits. ONNX Runtime's own operator takes one term at a time: from two on its
        products of int4 are faster.
        """
        if not occasion.takes_trits:
            return ()
        if occasion.target == "ort":
            counts: tuple[int, ...] = (1,) if occasion.is_matrix else ()
        else:
            counts = tuple(range(1, _MOST_TERMS + 1))
        # the operator has groups of channels, the format of what lies side by side
        size = 0 if occasion.window else None
        return tuple(
            Offer(TernaryOptions(count), group_size=size, activations="dynamic_int8")
            for count in counts
        )
