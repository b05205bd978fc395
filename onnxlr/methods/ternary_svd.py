"""Two ternary factors and a strength for each rank: additions, and one multiplication a rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxlr.errors import UsageError
from onnxlr.methods.budget import RankBudget
from onnxlr.methods.matricisation import FORMS, Matricisation, form_of, matricisations
from onnxlr.methods.method import Options, Setting
from onnxlr.methods.offering import Occasion, Offer
from onnxlr.methods.scaled_rows import ScaledRows, smallest_kept
from onnxlr.methods.semidiscrete import (
    Alternating,
    ErrorOf,
    Goal,
    Published,
    Terms,
    spectral_norm,
)
from onnxlr.metrics import Frobenius, relative_error
from onnxlr.numbers import Encoded, Format
from onnxlr.stages import Chain, Convolution, Linear, Scale, Stage

__all__ = ["FITS", "TernarySvd", "TernarySvdOptions", "ternary_stage"]

Matrix = npt.NDArray[np.float64]

FITS = ("alternating", "published")
"""Ways to find the factors."""

_METRICS = ("frobenius", "activation", "fisher-rows")
_LARGEST_RATIO = 16.0
"""Most trits a weight: what they leave is near the rounding of float32, which fits compute in."""

_OFFERED_RATIO, _LARGEST_OFFERED = 2.0, 1 << 20
"""Trits a weight that are offered, and the most entries: larger weights take minutes."""

_WASTED = 0.1
"""Part of the terms that may be empty before a fit of fewer is made."""

_MORE = 32
"""Where a fit misses the error by a little, one part in so many more terms are taken."""


@dataclass(frozen=True)
class TernarySvdOptions(RankBudget):
    """A budget, the way to fit, and for convolutions the form as in `SvdOptions`.

    The ratio is the number of trits for each entry of the weight. The rank may exceed the weight's
    smaller side, and usually does; it is never more than what makes 16 trits an entry.

    Attributes
    ----------
    tolerance_spectral
        Of ternary_svd, one more budget: largest relative error `‖W − Ŵ‖₂/‖W‖₂` in the spectral
        norm, above 0 and below 1, as the published method has it.
    fit
        Of ternary_svd: `alternating`, the default, or `published`, the paper's direct transition,
        which knows no inputs.
    sweeps
        Of ternary_svd: sweeps of coordinate descent in the end; 4 of matrices of up to a
        million entries if not given, fewer of larger ones.
    """

    tolerance_spectral: float | None = None
    fit: str | None = None
    form: str | None = None
    sweeps: int | None = None

    budgets: ClassVar[tuple[str, ...]] = (*RankBudget.budgets, "tolerance_spectral")
    most: ClassVar[Mapping[str, float]] = {**RankBudget.most, "ratio": inf}
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"form": ("auto", *FORMS), "fit": FITS}

    def __post_init__(self) -> None:
        super().__post_init__()
        spectral = self.tolerance_spectral
        if spectral is not None and not 0 < spectral < 1:
            raise UsageError(f"tolerance_spectral {spectral} is not above 0 and below 1")
        if self.sweeps is not None and (not isinstance(self.sweeps, int) or self.sweeps < 0):
            raise UsageError(f"sweeps {self.sweeps} is not a whole number of at least 0")

    def __str__(self) -> str:
        words = [super().__str__(), *(w for w in (self.fit, self.form) if w)]
        return ", ".join(words)


class TernarySvd:
    """`W ≈ D⁻¹ U diag(s) Vᵀ` with −1, 0 and 1 in U and V, and a factor for each input in D.

    Sources: *Ternary Singular Value Decomposition as a Better Parameterized Form in Linear Mapping*
    for the form and the published fit; semidiscrete decomposition (Kolda and O'Leary 1998) for the
    alternations. `docs/methods.md` says what is added to them.
    """

    name = "ternary_svd"
    options: type[Options] = TernarySvdOptions
    default_format: str | None = "ternary"
    is_slow = True

    def factorize(
        self, weight: npt.NDArray[Any], options: TernarySvdOptions, setting: Setting
    ) -> Chain:
        """Return two ternary stages, behind a Scale where inputs or rows are known to differ.

        Raises
        ------
        UsageError
            If the budget does not reach rank 1, or asks for an error that 16 trits a weight do not
            reach; if the weight has not got the form asked for, or is a table; if the metric is one
            of single entries or of outputs.
        """
        _check(setting)
        forms = matricisations(weight, setting.groups, options.form, setting.whole_window)
        answers = [_attempt(form, options, setting) for form in forms]
        chains = [answer for answer in answers if isinstance(answer, Chain)]
        if not chains:
            raise next(answer for answer in answers if isinstance(answer, UsageError))
        if len(chains) == 1:
            return chains[0]
        if not (options.limits_bytes or options.rank is not None):
            return min(chains, key=lambda chain: chain.cost.bytes)
        exact = weight.astype(np.float64)
        return min(
            chains,
            key=lambda chain: relative_error(
                setting.metric, exact, chain.reconstruct(), setting.groups
            ),
        )

    def settle(self, options: TernarySvdOptions, chain: Chain) -> TernarySvdOptions:
        """Return the rank and the form that the chain has."""
        first, second = chain.stages[-2:]
        rank, form = int(first.shape[-1]), None
        if isinstance(first, Convolution) and isinstance(second, Convolution):
            rank, form = rank // first.groups, form_of(first, second)
        return TernarySvdOptions(rank=rank, fit=options.fit, form=form, sweeps=options.sweeps)

    def heeds_metric(self, options: TernarySvdOptions, setting: Setting) -> bool:  # noqa: ARG002
        """Return whether the fit knows of inputs at all."""
        return options.fit != "published"

    def plainer(self, options: TernarySvdOptions, setting: Setting) -> Options | None:  # noqa: ARG002
        """Return the options without sweeps: coordinate descent can go too far."""
        if options.fit == "published" or options.sweeps == 0:
            return None
        return replace(options, sweeps=0)

    def offers(self, occasion: Occasion) -> tuple[Offer, ...]:
        """Return two trits a weight of a convolution, where the target has the operators.

        For every matrix measured, a sum of two ternary matrices was as small, faster and closer.
        """
        worth = occasion.target == "onnxlr" and occasion.takes_trits and bool(occasion.window)
        if not worth or occasion.entries > _LARGEST_OFFERED:
            return ()
        return (Offer(TernarySvdOptions(ratio=_OFFERED_RATIO), activations="dynamic_int8"),)


def _check(setting: Setting) -> None:
    if setting.is_table:
        raise UsageError(
            "a table of rows has no product to factorize; method quantize changes its format"
        )
    if setting.format.kind not in ("ternary", setting.stored) or setting.format.group:
        raise UsageError(
            f"ternary_svd keeps its factors as ternary numbers, one scale for each rank, not as "
            f"{setting.format}: leave the format out"
        )
    if setting.metric.name not in _METRICS:
        raise UsageError(
            f"ternary_svd fits in metric {', '.join(_METRICS)}, not {setting.metric.name}"
        )


def _attempt(
    form: Matricisation, options: TernarySvdOptions, setting: Setting
) -> Chain | UsageError:
    try:
        task = _Task.of(form, options, setting)
        return task.chain(task.parts())
    except UsageError as error:
        return error


@dataclass(frozen=True)
class _Task:
    """One form of a weight to fit.

    Attributes
    ----------
    rows
        Its matrices, their rows scaled.
    """

    form: Matricisation
    options: TernarySvdOptions
    setting: Setting
    rows: ScaledRows

    @classmethod
    def of(cls, form: Matricisation, options: TernarySvdOptions, setting: Setting) -> _Task:
        metric = Frobenius() if options.fit == "published" else setting.metric
        return cls(form, options, setting, ScaledRows.of(form, metric, setting.compute))

    @property
    def goals(self) -> Sequence[Goal]:
        """What the terms of each part are to approximate."""
        return self.rows.goals

    def parts(self) -> list[Terms]:
        """Return the terms of each part, as many in all of them."""
        limit = self._limit()
        if limit is None:
            return self._of_count(self._count())
        errors = [self._error(part) for part in range(len(self.goals))]
        found = []
        for part, error in enumerate(errors):
            terms = self._fitter(part).until(error, limit, self._most)
            if error(terms) > limit:
                raise self._missed()
            found.append(terms.count)
        count = max(*found, 1)
        while True:
            parts = self._of_count(count)
            if all(error(terms) <= limit for error, terms in zip(errors, parts, strict=True)):
                return parts
            if count >= self._most:
                raise self._missed()
            count = min(count + max(count // _MORE, 1), self._most)

    def _missed(self) -> UsageError:
        rows, columns = self.goals[0].matrix.shape
        return UsageError(
            f"{self.options} is not reached with {_LARGEST_RATIO:g} trits for each entry of the "
            f"{rows}×{columns} weight: allow a larger error"
        )

    @property
    def _most(self) -> int:
        """Return the largest rank."""
        rows, columns = self.goals[0].matrix.shape
        return max(int(_LARGEST_RATIO * rows * columns / (rows + columns)), 1)

    def _of_count(self, count: int) -> list[Terms]:
        """Return that many terms of each part, fewer if all are exact with fewer.

        The number returned gives the very same terms again: a plan records nothing else.
        """
        while True:
            found = [self._fitter(part).of_count(count) for part in range(len(self.goals))]
            most = max(terms.count for terms in found)
            if most >= (1 - _WASTED) * count or count == 1:
                return [terms.filled(count) for terms in found]
            count = max(most, 1)

    def _fitter(self, part: int) -> Alternating | Published:
        goal = self.goals[part]
        if self.options.fit == "published":
            return Published(goal.matrix, self.setting.seed)
        return Alternating(goal, self.options.sweeps, self.setting.seed, self.setting.progress)

    def _limit(self) -> float | None:
        """Return the error that is allowed, None where the budget is a size."""
        if self.options.tolerance_spectral is not None:
            return self.options.tolerance_spectral
        if self.options.energy is not None:
            return sqrt(1 - self.options.energy)
        return self.options.error_limit if self.options.limits_error else None

    def _error(self, part: int) -> ErrorOf:
        """Return what the error of a part's terms is, in what the budget is given in."""
        goal, rows = self.goals[part], self.rows.factors[part].astype(np.float32)[:, None]
        if self.options.tolerance_spectral is None:
            return goal.error
        whole = spectral_norm(goal.matrix / rows) or 1.0
        return lambda terms: spectral_norm(terms.residual(goal.matrix) / rows) / whole

    def _count(self) -> int:
        """Return the rank of a budget that is a size."""
        options, (rows, columns) = self.options, self.goals[0].matrix.shape
        if options.rank is not None:
            return min(options.rank, self._most)
        if options.ratio is not None:
            count = options.ratio * rows * columns / (rows + columns)
        else:
            scale, own = self.setting.compute.itemsize, Format("ternary")
            size = self.form.matrices().size
            fixed = 0 if self.rows.scales is None else len(self.rows.scales) * scale
            each = self.form.bytes(8, own, scale) - self.form.bytes(0, own, scale)
            start = self.form.bytes(0, own, scale) + fixed
            count = ((options.bits or inf) * size / 8 - start) / (each / 8)
        if count < 1:
            raise UsageError(f"{options} leaves less than rank 1 of a {rows}×{columns} weight")
        return int(min(count + 1e-9, self._most))

    def chain(self, parts: Sequence[Terms]) -> Chain:
        """Return the stages of the terms of all parts."""
        batch = self.form.matrices().shape[:-2]
        left = np.stack([terms.left.T for terms in parts])
        right = np.stack([terms.right for terms in parts])
        strengths = np.stack([terms.strengths for terms in parts]) * self.rows.units[:, None]
        plain = self.form.chain(
            left.reshape(*batch, *left.shape[1:]).astype(np.float64),
            right.reshape(*batch, *right.shape[1:]).astype(np.float64),
        )
        compute = self.setting.compute
        kept = np.maximum(strengths, smallest_kept(compute)).astype(compute)
        first, second = plain.stages
        stages: list[Stage] = [ternary_stage(first, kept), ternary_stage(second, None, compute)]
        if self.rows.scales is not None:
            groups, axes = self.setting.groups, None
            if groups is not None:
                axes = self.form.canonical.ndim - 2
            stages.insert(0, Scale(self.rows.scales.astype(compute), axes, groups or 1))
        return Chain(tuple(stages))


def ternary_stage(
    stage: Stage, strengths: npt.NDArray[Any] | None, compute: npt.DTypeLike = np.float32
) -> Stage:
    """Return a stage of −1, 0 and 1 with its numbers kept as ternary ones."""
    if isinstance(stage, Convolution):
        trits = stage.dense().astype(np.int8)
        scales = np.ones(len(trits), compute) if strengths is None else strengths.reshape(-1)
        kept = Encoded.of_trits(trits[None], scales.reshape(-1, 1, 1), None, kernel=True)
        return Convolution(kept, stage.groups, stage.window)
    trits = stage.dense().astype(np.int8)
    shape = (*trits.shape[:-2], 1, 1, trits.shape[-1])
    scales = np.ones(shape, compute) if strengths is None else strengths.reshape(shape)
    return Linear(Encoded.of_trits(trits[None], scales))
