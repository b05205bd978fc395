"""What becomes of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

from onnxlr.errors import PlanError, UsageError
from onnxlr.layers import Layer
from onnxlr.lowering import ACTIVATIONS
from onnxlr.methods import Method, Options, Recipe, find_method, format_of
from onnxlr.methods.method import NoOptions
from onnxlr.metrics import METRICS, SOLVERS
from onnxlr.numbers import Format
from onnxlr.plan.fields import (
    flag_of,
    object_of,
    one_of,
    one_of_or_none,
    options_of,
    part_of,
    shown,
    text_of,
)
from onnxlr.stages import Adjustment, Chain, Cost

__all__ = ["Choice", "Proposal"]

_UNSET: Options = NoOptions()
"""Stands for the defaults of whatever method it comes with."""


@dataclass(frozen=True)
class Choice:
    """What becomes of one layer.

    Attributes
    ----------
    method
        Name of a method; `keep` leaves the layer alone.
    options
        The method's options; its defaults if not given.
    metric, solver, shrinkage
        What the error is measured in, for metric `fisher` how it is minimised, and for `activation`
        how far the covariance is shrunk where that is not the usual.
    format, group_size, rounding
        How the factors are kept, as `Format.parse` reads it; without a format they keep the
        weight's own float type, or have the one format of the method.
    bias_correction
        Whether the mean of the outputs is corrected.
    activations
        What the data may be computed in.
    reason
        Why, for the reader; never acted upon.
    rejected
        What else was measured, and why it was not chosen; for the reader as well.
    """

    method: str
    options: Options = _UNSET
    metric: str = "frobenius"
    format: str | None = None
    activations: str = "float"
    reason: str | None = None
    group_size: int | None = None
    rounding: str | None = None
    bias_correction: bool = False
    solver: str | None = None
    shrinkage: float | None = None
    rejected: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.options is _UNSET:
            object.__setattr__(self, "options", find_method(self.method).options())

    def __str__(self) -> str:
        """Return the method and its options: `svd rank 12, spatial`."""
        return f"{self.method} {self.options}".strip()

    @property
    def kept_as(self) -> str:
        """How its numbers are kept: `int4 in groups of 32, gptq`, or `own`."""
        if self.encoding is None:
            return "own"
        rounding = f", {self.rounding}" if self.rounding not in (None, "nearest") else ""
        return f"{self.encoding}{rounding}"

    @property
    def summary(self) -> str:
        """The method, how its numbers are kept and what is corrected, for tables."""
        parts = [str(self)]
        if self.encoding is not None:
            parts.append(self.kept_as)
        if self.activations != "float":
            parts.append(f"{self.activations} data")
        if self.bias_correction:
            parts.append("bias corrected")
        return ", ".join(parts)

    @property
    def keeps(self) -> bool:
        """Whether the layer stays as it is."""
        return self.method == "keep"

    @property
    def needs_statistics(self) -> bool:
        """Whether it can only be followed with statistics of the layer's inputs.

        Metric kfac can also do with what came with importance; its plan says which it was.
        """
        fitted = self.metric == "activation" or self.bias_correction
        return fitted or self.activations == "static_int8"

    @property
    def encoding(self) -> Format | None:
        """The format; None for the weight's own float type."""
        method = find_method(self.method)
        return format_of(method, self.format, self.group_size, self.rounding)

    @property
    def recipe(self) -> Recipe:
        """How the layer is fitted, beside its method and options."""
        rounding = self.rounding or "nearest"
        return Recipe(self.metric, rounding, self.bias_correction, self.solver, self.shrinkage)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as a plan writes it, without what is not given."""
        entry: dict[str, Any] = {"method": self.method}
        if not self.keeps:
            given = {k: v for k, v in asdict(self.options).items() if v is not None}
            entry |= {"options": given, "metric": self.metric}
            for name in ("solver", "shrinkage", "format", "group_size", "rounding"):
                if getattr(self, name) is not None:
                    entry[name] = getattr(self, name)
            if self.bias_correction:
                entry["bias_correction"] = True
            entry["activations"] = self.activations
        if self.reason is not None:
            entry["reason"] = self.reason
        if self.rejected:
            entry["rejected"] = dict(self.rejected)
        return entry

    @classmethod
    def from_json(cls, entry: Any, where: str) -> Choice:
        """Return the choice of an entry; raises PlanError saying where it is wrong."""
        known = {f.name for f in fields(cls)}
        values = object_of(entry, where, known)
        name = text_of(values.get("method"), f"{where}.method")
        try:
            method = find_method(name)
            options = options_of(method.options, values.get("options", {}), f"{where}.options")
        except PlanError:
            raise
        except UsageError as error:
            raise PlanError(f"{where}: {error}") from None
        reason, rejected = values.get("reason"), values.get("rejected")
        if reason is not None:
            text_of(reason, f"{where}.reason")
        if rejected is not None:
            rejected = object_of(rejected, f"{where}.rejected", None)
            rejected = {n: text_of(t, f"{where}.rejected['{n}']") for n, t in rejected.items()}
        return cls(
            name,
            options,
            one_of(values.get("metric", "frobenius"), METRICS, f"{where}.metric"),
            activations=one_of(
                values.get("activations", "float"), ACTIVATIONS, f"{where}.activations"
            ),
            reason=reason,
            bias_correction=flag_of(
                values.get("bias_correction", False), f"{where}.bias_correction"
            ),
            solver=one_of_or_none(values.get("solver"), SOLVERS, f"{where}.solver"),
            shrinkage=part_of(values.get("shrinkage"), f"{where}.shrinkage"),
            rejected=rejected,
            **_encoding(values, where, method),
        )


def _encoding(values: Mapping[str, Any], where: str, method: Method) -> dict[str, Any]:
    """Return the entries that say how factors are kept."""
    kind, size = values.get("format"), values.get("group_size")
    if kind is not None:
        text_of(kind, f"{where}.format")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise PlanError(f"{where}.group_size: found {shown(size)}, expected a whole number")
    rounding = values.get("rounding")
    few_bits = kind is not None or method.default_format is not None
    if not few_bits and (size is not None or rounding is not None):
        raise PlanError(f"{where}: group_size and rounding are for a format, and there is none")
    if rounding is not None:
        text_of(rounding, f"{where}.rounding")
    try:
        format_of(method, kind, size, rounding)
    except UsageError as error:
        raise PlanError(f"{where}: {error}") from None
    return {"format": kind, "group_size": size, "rounding": rounding}


@dataclass(frozen=True)
class Proposal:
    """A layer, the choice made for it, and what it means.

    Attributes
    ----------
    layer, choice
        The layer and the choice.
    chain
        What takes the weight's place; None where the layer is kept.
    adjustments
        What comes with the chain at each site; none where nothing is known.
    error, plain_error
        Relative error of its outputs on held-out inputs, and that of the plain fit of the same
        size (metric frobenius, nearest rounding, no bias correction); None where not measured.
    importance_variance, importance_gain
        Where importance is the metric: its variance inside the matrix over its squared mean, and
        by how much the weighted error is less than that of the plain fit.
    """

    layer: Layer
    choice: Choice
    chain: Chain | None = None
    adjustments: tuple[Adjustment, ...] = ()
    error: float | None = None
    plain_error: float | None = None
    importance_variance: float | None = None
    importance_gain: float | None = None

    @property
    def ternary_cost(self) -> Cost | None:
        """What the chain costs; None where it has no ternary numbers, or the layer is kept."""
        cost = None if self.chain is None else self.chain.cost
        return cost if cost is not None and cost.trits else None

    @property
    def trits_per_weight(self) -> float | None:
        """Numbers −1, 0 and 1 for each entry of the weight; None where there are none."""
        cost, shape = self.ternary_cost, self.layer.shape
        return None if cost is None or not shape else cost.trits / prod(shape)
