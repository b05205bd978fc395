"""What outputs must hold: `cosine>=0.99`, `logits:top1>=0.98, max_abs<=0.1`."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf, log10

from onnxlr.errors import UsageError, expected_one_of
from onnxlr.verification.comparison import METRICS, Comparison

__all__ = ["DEFAULT_TOLERANCE", "Tolerance"]

DEFAULT_TOLERANCE = "cosine>=0.99"

_TERM = re.compile(
    r"(?:(?P<output>.+):)?\s*(?P<metric>\w+)\s*(?P<sign><=|>=|<|>)\s*(?P<limit>[-+.\w]+)"
)
_ERRORS = ("relative_l2", "max_abs", "sqnr")
_SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class _Term:
    output: str | None
    metric: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.limit:g}"


@dataclass(frozen=True)
class Tolerance:
    """Conditions that must all hold.

    A condition without an output's name is about every float output; `agreement` is about every
    output. Where a model has no float output at all, such conditions are judged by the share of
    entries that are equal, or that differ where the measure is one of error. A condition with the
    name of a sequence is about all its parts.
    """

    text: str
    terms: tuple[_Term, ...]

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Read `[output:]metric>=limit`, several separated by commas.

        Raises
        ------
        UsageError
            If it cannot be understood; the message says what was expected.
        """
        terms = tuple(_parse_term(part.strip(), text) for part in text.split(","))
        return cls(text, terms)

    def failures(self, comparisons: Sequence[Comparison]) -> list[str]:
        """Return a sentence for each condition that does not hold."""
        failed = []
        for term in self.terms:
            for comparison in _subjects(term, comparisons):
                value = _value(term, comparison)
                if value is None:
                    failed.append(f"output '{comparison.output}' has no {term.metric}")
                elif not _SIGNS[term.sign](value, term.limit):
                    metric = _metric(term, comparison)
                    failed.append(
                        f"output '{comparison.output}': {metric} is {value:.6g}, "
                        f"expected {term.sign}{term.limit:g}"
                    )
        return failed

    def check_outputs(self, outputs: Sequence[str]) -> None:
        """Refuse conditions on outputs that the model has not; raises UsageError."""
        for term in self.terms:
            if term.output is not None and term.output not in outputs:
                near = get_close_matches(term.output, outputs, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(outputs)}"
                raise UsageError(
                    f"tolerance '{self.text}': the model has no output '{term.output}'; {hint}"
                )


def _parse_term(part: str, text: str) -> _Term:
    match = _TERM.fullmatch(part)
    if not match:
        raise UsageError(
            f"tolerance '{text}' cannot be understood, expected for instance 'cosine>=0.99' or "
            "'logits:max_abs<=0.1'"
        )
    metric = match["metric"]
    if metric not in METRICS:
        hint = expected_one_of(METRICS, metric)
        raise UsageError(f"tolerance '{text}': unknown measure '{metric}'; {hint}")
    try:
        limit = float(match["limit"])
    except ValueError:
        limit = float("nan")
    if limit != limit:
        raise UsageError(f"tolerance '{text}': '{match['limit']}' is not a number")
    output = match["output"]
    return _Term(output.strip() if output else None, metric, match["sign"], limit)


def _metric(term: _Term, comparison: Comparison) -> str:
    """Return what is judged, in words."""
    if comparison.is_float or term.metric == "agreement":
        return term.metric
    return f"{term.metric} of what differs" if term.metric in _ERRORS else "agreement"


def _subjects(term: _Term, comparisons: Sequence[Comparison]) -> list[Comparison]:
    if term.output is not None:
        exact = [c for c in comparisons if c.output == term.output]
        return exact or [c for c in comparisons if c.output.startswith(f"{term.output}[")]
    if term.metric == "agreement":
        return list(comparisons)
    floats = [c for c in comparisons if c.is_float]
    if term.metric == "top1":
        floats = [c for c in floats if c.top1 is not None] or floats
    return floats or list(comparisons)


def _value(term: _Term, comparison: Comparison) -> float | None:
    if not comparison.is_float:
        differing = 1 - comparison.agreement
        if term.metric == "sqnr":
            return -20 * log10(differing) if differing > 0 else inf
        return differing if term.metric in _ERRORS else comparison.agreement
    value: float | None = getattr(comparison, term.metric)
    return value
