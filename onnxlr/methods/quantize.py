"""The whole weight in another format, and what that loses as a low-rank correction beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.factors import encode_factors
from onnxlr.methods.matricisation import matricisations
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.methods.spectrum import Spectrum
from onnxlr.metrics import relative_error
from onnxlr.numbers import FORMATS, Format
from onnxlr.stages import Chain, Convolution, Linear, Lookup, Stage, Sum

__all__ = ["Quantize", "QuantizeOptions", "round_whole"]

_CORRECTION = 0.1
"""Parameters of the correction that is offered, as a fraction of the weight's."""

_LARGEST_CORRECTED = 1 << 18
"""Entries of weights above which no correction is offered: a fit takes as long as all others."""

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

    choices: ClassVar[Mapping[str, Sequence[str]]] = {"correction_format": FORMATS}

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

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return whole bytes, few bits, and few bits with a correction."""
        few = _offered_rows(occasion) if occasion.is_table else _offered_bits(occasion)
        return (*_offered_bytes(occasion), *few)


def _offered_bytes(occasion: Occasion) -> list[Offer]:
    """Return float16, and int8 with each kind of data; float data holds without calibration."""
    whole, rounding = QuantizeOptions(), occasion.gptq
    found = [Offer(whole, "float16", safe=True)] if occasion.shrinks("float16") else []
    if occasion.shrinks("int8"):
        found.append(Offer(whole, "int8", rounding=rounding, safe=True))
        found += [
            Offer(whole, "int8", rounding=rounding, activations=data)
            for data in occasion.integer_data
        ]
    return found


def _offered_rows(occasion: Occasion) -> list[Offer]:
    """Return few bits of a table."""
    found = [
        Offer(QuantizeOptions(), "int4", group_size=size) for size in occasion.group_sizes(32, 128)
    ]
    return [*found, Offer(QuantizeOptions(), "int2", group_size=32)]


def _offered_bits(occasion: Occasion) -> list[Offer]:
    """Return int4 of a product, with int8 data as well where an operator takes that by groups.

    Where that operator takes less than float data does, groups of 128 are for it alone: fewer bits
    with float data are sums of atoms. int2 is further off than sums of atoms in fewer bits, so that
    there is none.
    """
    sizes, rounding = occasion.group_sizes(32, 128), occasion.gptq
    by_groups = occasion.has_operators and occasion.is_matrix
    found = [
        Offer(QuantizeOptions(), "int4", group_size=size, rounding=rounding)
        for size in (sizes[:1] if by_groups else sizes)
    ]
    if by_groups:
        found += [replace(found[0], group_size=size, activations="dynamic_int8") for size in sizes]
    rank = _offered_rank(occasion)
    if rank:
        found.append(replace(found[0], options=QuantizeOptions(correction_rank=rank)))
    return found


def _offered_rank(occasion: Occasion) -> int:
    """Return the rank of a correction that is worth its fit; 0 if there is none.

    Without a metric that knows the inputs a residual is near to noise.
    """
    rows, columns = occasion.sides
    if not occasion.observed or occasion.entries > _LARGEST_CORRECTED:
        return 0
    return int(_CORRECTION * rows * columns / (rows + columns))


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
    spectrum = Spectrum.of(form[0].matrices(), form[0].weighings(setting.metric), rank)
    factors = spectrum.factors(min(rank, spectrum.full_rank))
    return encode_factors(form[0], *factors, setting)
