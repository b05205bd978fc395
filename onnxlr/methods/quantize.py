"""The whole weight in another format, and what that loses as a low-rank correction beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.factors import encode_factors
from onnxlr.methods.matricisation import matricisations
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.spectrum import Spectrum
from onnxlr.metrics import relative_error
from onnxlr.numbers import Format
from onnxlr.stages import Chain, Convolution, Linear, Lookup, Stage, Sum

__all__ = ["Quantize", "QuantizeOptions", "round_whole"]

_ROUNDS = 3
"""How often the weight is rounded anew beside its correction, and the correction fitted anew."""


@dataclass(frozen=True)
class QuantizeOptions:
    """What comes beside the rounded weight.

    Attributes
    ----------
    correction_rank
        Rank of a low-rank correction of what rounding lost; none if not given.
    correction_format
        How the correction is kept; `int8` if not given.
    """

    correction_rank: int | None = None
    correction_format: str | None = None

    def __post_init__(self) -> None:
        rank = self.correction_rank
        if rank is not None and (not isinstance(rank, int) or rank < 1):
            raise UsageError(f"correction_rank {rank} is not a whole number of at least 1")
        if self.correction_format is not None:
            if rank is None:
                raise UsageError("correction_format is given, but no correction_rank")
            Format.parse(self.correction_format)

    def __str__(self) -> str:
        if self.correction_rank is None:
            return ""
        return f"+ rank {self.correction_rank} {self.correction_format or 'int8'}"


class Quantize:
    """Rounds a weight to the format asked for.

    Matrices and kernels get scales for each output (and group of inputs), tables for each row.

    With a correction, `W ≈ Q + A B`: the weight is rounded to `Q`, the residual `W − Q` is
    approximated in the metric, and both are repeated with what the other leaves, the best kept.
    Residuals of rounding have a flat spectrum: only a metric that knows the inputs makes them low
    rank.
    """

    name = "quantize"
    options: type[Options] = QuantizeOptions
    default_format: str | None = None
    is_slow = False

    def factorize(
        self, weight: npt.NDArray[Any], options: QuantizeOptions, setting: Setting
    ) -> Chain:
        """Return one stage, a sum where there is a correction.

        Raises
        ------
        UsageError
            If the format is the weight's own type: nothing would change; or a table, whose rows
            nothing multiplies, is to be corrected or ternary.
        """
        if setting.format.kind == setting.stored:
            raise UsageError(
                f"quantize keeps a {setting.stored} weight as {setting.format.kind}: nothing "
                "changes (give --format)"
            )
        if setting.is_table and setting.format.is_ternary:
            raise UsageError(
                "a table of rows has no product that additions could take the place of; it can be "
                "int8, int4 or int2"
            )
        if options.correction_rank is None:
            return Chain((round_whole(weight, setting),))
        if setting.is_table:
            raise UsageError("a table of rows has no product that a correction could be added to")
        return _corrected(weight.astype(np.float64), options, setting)

    def settle(self, options: QuantizeOptions, chain: Chain) -> QuantizeOptions:  # noqa: ARG002
        """Return the options as they are."""
        return options

    def heeds_metric(self, options: QuantizeOptions, setting: Setting) -> bool:
        """Return whether a correction is fitted, or rounding feeds errors on."""
        return options.correction_rank is not None or setting.format.rounding != "nearest"


def round_whole(weight: npt.NDArray[Any], setting: Setting) -> Stage:
    """Return one stage of a weight, rounded to the setting's format under its metric."""
    stage: Stage
    if setting.is_table:
        stage = Lookup.of(weight)
    elif setting.groups is not None:
        stage = Convolution.of(weight, setting.groups, tuple(range(weight.ndim - 2)))
    else:
        stage = Linear.of(weight)
    return stage.encoded(setting.format, setting.compute, setting.metric.covariance)


def _corrected(
    weight: npt.NDArray[np.float64], options: QuantizeOptions, setting: Setting
) -> Chain:
    rank = options.correction_rank or 0
    beside = replace(setting, format=Format.parse(options.correction_format or "int8"))
    best, least = None, np.inf
    residual = weight
    for _ in range(_ROUNDS):
        base = round_whole(residual, setting)
        correction = _low_rank(weight - base.dense(), rank, beside)
        chain = Chain((Sum((Chain((base,)), correction)),))
        error = relative_error(setting.metric, weight, chain.reconstruct(), setting.groups)
        if best is None or error < least:
            best, least = chain, error
        residual = weight - correction.reconstruct()
    if best is None:
        raise ValueError("no round was made")
    return best


def _low_rank(residual: npt.NDArray[np.float64], rank: int, setting: Setting) -> Chain:
    form = matricisations(residual, setting.groups, None if setting.groups is None else "channel")
    spectrum = Spectrum.of(form[0].matrices(), form[0].weighings(setting.metric))
    factors = spectrum.factors(min(rank, spectrum.full_rank))
    return encode_factors(form[0], *factors, setting)
