"""Low rank by singular value decomposition, in any metric that weights rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.budget import RankBudget
from onnxlr.methods.factors import encode_factors, fit_elements
from onnxlr.methods.matricisation import FORMS, Matricisation, form_of, matricisations
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.methods.spectrum import Spectrum
from onnxlr.metrics import relative_error
from onnxlr.stages import Chain, Convolution

__all__ = ["Svd", "SvdOptions"]

_OF_MATRICES = ((0.5,), (0.25, 0.5))
_OF_KERNELS = ((0.25, 0.5, 0.75), (0.5,))
"""Ratios that are offered with float data and with int8 data. Whole matrices with int8 data are
closer than all others, and as fast as a quarter of one with float data."""


@dataclass(frozen=True)
class SvdOptions(RankBudget):
    """A budget, and for convolutions the form.

    Attributes
    ----------
    form
        How a convolution is split in two: `channel` (k×k, then 1×1), `input` (1×1, then k×k),
        `spatial` (1×k, then k×1), `spatial_swapped` (k×1, then 1×k), or `auto`, the default: the
        least error at equal bytes, or the least bytes within an error or energy.
    """

    form: str | None = None

    choices: ClassVar[Mapping[str, Sequence[str]]] = {"form": ("auto", *FORMS)}

    def __str__(self) -> str:
        form = f", {self.form}" if self.form else ""
        return f"{super().__str__()}{form}"


@dataclass(frozen=True)
class _Fit:
    """A chain, its rank, and what it is judged by."""

    chain: Chain
    rank: int
    error: float
    bytes: int


class Svd:
    """Truncated singular value decomposition: the best approximation of a rank in the metric.

    `W ≈ U_r diag(s_r) V_rᵀ` (Eckart and Young 1936); under a metric `T`, `T⁻¹` of the truncated
    decomposition of `T W`. A convolution's kernel is seen as one matrix for each group, in one of
    the forms of `matricisation`.
    """

    name = "svd"
    options: type[Options] = SvdOptions
    default_format: str | None = None
    is_slow = False

    def factorize(self, weight: npt.NDArray[Any], options: SvdOptions, setting: Setting) -> Chain:
        """Return two stages.

        Raises
        ------
        UsageError
            If the format's own rounding error is above the `max_error` asked, the budget does not
            reach rank 1, or the weight has not got the form asked for.
        """
        if setting.is_table:
            raise UsageError(
                "a table of rows has no product to factorize; method quantize changes its format"
            )
        forms = matricisations(weight, setting.groups, options.form, setting.whole_window)
        several = len(forms) > 1
        answers = [_attempt(form, options, setting, several) for form in forms]
        fits = [answer for answer in answers if isinstance(answer, _Fit)]
        if not fits:
            raise next(answer for answer in answers if isinstance(answer, UsageError))
        if options.limits_bytes:
            return min(fits, key=lambda fit: fit.error).chain
        return min(fits, key=lambda fit: fit.bytes).chain

    def settle(self, options: SvdOptions, chain: Chain) -> SvdOptions:  # noqa: ARG002
        """Return the rank and the form that the chain has."""
        first, second = chain.stages
        if not (isinstance(first, Convolution) and isinstance(second, Convolution)):
            return SvdOptions(rank=first.shape[-1])
        rank = second.weight.shape[1]
        return SvdOptions(rank=rank, form=form_of(first, second))

    def heeds_metric(self, options: SvdOptions, setting: Setting) -> bool:  # noqa: ARG002
        """Return that it does."""
        return True

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return int8 factors of some sizes, with float data and with int8 data.

        Factors in int8 lose next to nothing beside those in float, and are as fast with float data.
        """
        if occasion.is_table or not occasion.shrinks("int8"):
            return ()
        data = (None, *occasion.integer_data[:1])
        offered = _OF_MATRICES if occasion.groups is None else _OF_KERNELS
        least = _least_ratio(occasion)
        return tuple(
            Offer(SvdOptions(ratio=ratio), "int8", activations=kind)
            for kind, ratios in zip(data, offered, strict=False)
            for ratio in ratios
            if ratio >= least
        )


def _least_ratio(occasion: Occasion) -> float:
    """Return the parameters of the smallest form at rank 1, as a fraction of the weight's."""
    rows, columns = occasion.sides
    if occasion.groups is None:
        return (rows + columns) / (rows * columns)
    window, last = prod(occasion.shape[2:]), occasion.shape[-1]
    inputs = rows // window
    firsts = (1, last, window // last, window)
    return min(inputs * k + columns * (window // k) for k in firsts) / (rows * columns)


def _attempt(
    form: Matricisation, options: SvdOptions, setting: Setting, several: bool
) -> _Fit | UsageError:
    try:
        return _fit(form, options, setting, several)
    except UsageError as error:
        return error


def _fit(form: Matricisation, options: SvdOptions, setting: Setting, several: bool) -> _Fit:
    """Return the fit in one form; its error counts where it is limited, or forms compete by it."""
    metric = setting.metric
    most = _rank_by_size(options, setting, form)
    spectrum = Spectrum.of(form.matrices(), form.weighings(metric), most)
    rank = _rank_by_error(spectrum, options) if most is None else most
    # Only then the spectrum says what the factors' error is, before they are rounded.
    is_spectral = form.is_whole and metric.name != "fisher" and setting.format.is_float
    is_exact = is_spectral and setting.format.kind in ("float32", "float64")
    counts = options.limits_error or (several and options.limits_bytes)

    def build(candidate: int) -> _Fit:
        left, right = spectrum.factors(candidate)
        if metric.name == "fisher":
            left, right = fit_elements(form, left, right, metric)
        elif metric.covariance is not None and not form.is_whole:
            right = form.solve_second(left, metric.covariance)
        chain = encode_factors(form, left, right, setting)
        error = float(spectrum.errors()[candidate - 1])
        if counts and not is_exact:
            weight = form.canonical.astype(np.float64)
            error = relative_error(metric, weight, chain.reconstruct(), setting.groups)
        return _Fit(chain, candidate, error, chain.cost.bytes)

    fit = build(rank)
    if not options.limits_error or fit.error <= options.error_limit or is_spectral:
        return fit
    return _within_error(build, rank, spectrum.full_rank, options, setting)


def _rank_by_size(options: SvdOptions, setting: Setting, form: Matricisation) -> int | None:
    """Return the rank of a budget that sizes alone tell, None of others.

    Raises
    ------
    UsageError
        If that is below 1.
    """
    *_, rows, columns = form.matrices().shape
    full = int(min(rows, columns))
    if options.rank is not None:
        return min(options.rank, full)
    if options.ratio is not None:
        rank = _whole(options.ratio * rows * columns / (rows + columns), full)
    elif options.bits is not None:
        available = options.bits * form.matrices().size / 8
        scale = setting.compute.itemsize
        # bytes grow by steps where groups are, so that the rank is searched for
        rank = _most(lambda rank: form.bytes(rank, setting.format, scale) <= available, full)
    else:
        return None
    if rank < 1:
        raise UsageError(f"{options} leaves less than rank 1 of a {rows}×{columns} weight")
    return rank


def _rank_by_error(spectrum: Spectrum, options: SvdOptions) -> int:
    """Return the least rank of enough energy, or of an error within the limit."""
    if options.energy is not None:
        rank = int(np.searchsorted(spectrum.energies(), options.energy - 1e-12) + 1)
    else:
        # errors descend; the full rank's is 0, so that there always is one within the limit
        rank = int(np.argmax(spectrum.errors() <= options.error_limit) + 1)
    return min(rank, spectrum.full_rank)


def _whole(rank: float, full: int) -> int:
    """Return the largest whole rank, of a weight that has no more than its full rank."""
    return int(min(rank + 1e-9, full))


def _most(fits: Callable[[int], bool], full: int) -> int:
    """Return the largest rank that fits, 0 if none does."""
    low, high = 0, full + 1
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _within_error(
    build: Callable[[int], _Fit], rank: int, full_rank: int, options: SvdOptions, setting: Setting
) -> _Fit:
    """Raise the rank until truncation and rounding together are within the error asked."""
    low, high = rank, full_rank
    best = build(high)
    if best.error > options.error_limit:
        raise UsageError(
            f"rounding to {setting.format} alone costs an error of {best.error:.2g}, "
            f"more than {options}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        attempt = build(middle)
        if attempt.error <= options.error_limit:
            best, high = attempt, middle
        else:
            low = middle
    return best
