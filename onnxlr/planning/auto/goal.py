"""What the user wants of a model as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan

from onnxlr.calibration.data import is_function
from onnxlr.errors import UsageError, check_known, nearest

__all__ = ["AIMS", "MEASURES", "Goal", "Limit"]

AIMS: Mapping[str, str] = {
    "size": "the smallest file",
    "latency": "the shortest time",
    "balanced": "size and time, which count alike",
}
"""What can be made small, and its words."""

MEASURES: Mapping[str, float] = {"cosine": 1.0, "relout": inf, "top1": 1.0}
"""Measures of a loss that need no function of the user's, and the most they make sense for."""


@dataclass(frozen=True)
class Limit:
    """What a model may lose by one measure.

    Attributes
    ----------
    measure
        `cosine` (1 − cosine similarity of the outputs), `relout` (their relative L2 distance),
        `top1` (share of rows whose largest entry is elsewhere), each of the output where it is
        worst; or a function `module:function` that gives a model's file a score, more is better.
    drop
        How much worse than the original a model may be at most.
    """

    measure: str
    drop: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read `METRIC=VALUE`.

        Raises
        ------
        UsageError
            If it is not of that form, or `check` refuses it.
        """
        measure, separator, value = (part.strip() for part in text.partition("="))
        if not separator or not measure or not value:
            raise UsageError(
                f"drop '{text}' cannot be understood, expected METRIC=VALUE, "
                "for instance cosine=0.01"
            )
        try:
            drop = float(value)
        except ValueError:
            raise UsageError(f"drop '{text}': '{value}' is not a number") from None
        limit = cls(measure, drop)
        limit.check()
        return limit

    @property
    def text(self) -> str:
        """The limit as `parse` reads it."""
        return f"{self.measure}={self.drop}"

    @property
    def is_function(self) -> bool:
        """Whether the measure is a function of the user's."""
        return self.measure not in MEASURES

    def check(self) -> None:
        """Refuse measures that do not exist and drops that mean nothing; raises UsageError."""
        if self.is_function and not is_function(self.measure):
            near, known = nearest(MEASURES, self.measure), ", ".join(MEASURES)
            hint = f"did you mean '{near}'?" if near else f"expected {known} or module:function"
            raise UsageError(f"drop '{self.text}': unknown measure '{self.measure}'; {hint}")
        if not isfinite(self.drop) or self.drop < 0:
            raise UsageError(
                f"drop '{self.text}': found {self.drop}, expected a finite number that is not "
                "negative"
            )
        most = MEASURES.get(self.measure, inf)
        if self.drop > most:
            raise UsageError(
                f"drop '{self.text}': found {self.drop}, expected at most {most:g} for "
                f"{self.measure}"
            )


@dataclass(frozen=True)
class Goal:
    """What is to be small, and what must hold.

    Attributes
    ----------
    aim
        Among `AIMS`. Without limits, size and time are bounded only, and the loss is made small.
    limits
        What may be lost.
    max_size, max_latency
        Fractions of the original's bytes and time that the result may take; None for any.
    """

    aim: str = "balanced"
    limits: Sequence[Limit] = ()
    max_size: float | None = None
    max_latency: float | None = None

    def check(self) -> None:
        """Refuse what means nothing or contradicts itself; raises UsageError."""
        check_known("goal", self.aim, AIMS)
        for name, fraction in (("size", self.max_size), ("latency", self.max_latency)):
            if fraction is not None and not 0 < fraction <= 1:  # NaN is refused, too
                raise UsageError(
                    f"the largest {name} is {fraction:g}, expected a fraction of the original's, "
                    "above 0 and at most 1"
                )
        self._check_limits()

    def _check_limits(self) -> None:
        measures = [limit.measure for limit in self.limits]
        for limit in self.limits:
            limit.check()
            if measures.count(limit.measure) > 1:
                raise UsageError(
                    f"there is more than one drop for '{limit.measure}', expected each measure once"
                )
        if not measures and self.max_size is None and self.max_latency is None:
            raise UsageError(
                "the goal bounds nothing, expected what may be lost (cosine=0.01, for instance), "
                "or the largest size or latency"
            )

    @property
    def measured(self) -> tuple[Limit, ...]:
        """The limits; where there are none, the measure of what is to be small, without a limit."""
        return tuple(self.limits) or (Limit("relout", inf),)

    def holds(self, drops: Mapping[str, float]) -> bool:
        """Return whether drops by measure are within the limits; what is NaN or missing is not."""
        return all(drops.get(limit.measure, nan) <= limit.drop for limit in self.limits)

    def fits(self, size: float, latency: float) -> bool:
        """Return whether fractions of the original's bytes and time are within bounds."""
        bounds = ((size, self.max_size), (latency, self.max_latency))
        return all(most is None or fraction <= most for fraction, most in bounds)

    @property
    def words(self) -> str:
        """The goal in words, for reports."""
        parts = [AIMS[self.aim] if self.limits else "the least loss"]
        parts += [f"{limit.measure} may drop by {limit.drop:g}" for limit in self.limits]
        for name, fraction in (("size", self.max_size), ("time", self.max_latency)):
            if fraction is not None:
                parts.append(f"{name} at most {fraction:g} of the original's")
        return "; ".join(parts)

    @property
    def tolerance(self) -> str:
        """What a proof is to hold outputs to: the limits that are about outputs."""
        terms = {
            "cosine": lambda drop: f"cosine>={1 - drop:.12g}",
            "relout": lambda drop: f"relative_l2<={drop:.12g}",
            "top1": lambda drop: f"top1>={1 - drop:.12g}",
        }
        found = [terms[e.measure](e.drop) for e in self.limits if not e.is_function]
        return ",".join(found) or "cosine>=0"
