"""Learning rates: the usual ones, and what each kind of number multiplies them by.

A step of Adam moves each number by about the rate, whatever its gradient. So the rate that is
asked for, or the usual one, is always multiplied by a factor for each kind of number: `--rate 1e-3`
moves low-rank factors by 3e-4 and scales by .3 % when a rewritten model is tuned. Both were chosen
together on held-out data (docs/results/tuning.md).
"""

from __future__ import annotations

from collections.abc import Mapping

from onnxlr.errors import UsageError

__all__ = ["BESIDE", "BY_KIND", "ternary_rate", "tuning_rate"]

BY_KIND: Mapping[str, float] = {
    "scales": 3.0,
    "biases": 1.0,
    "normalisations": 1.0,
    "factors": 0.3,
    "codes": 1.0,
    "weights": 0.3,
}
"""Factors where a rewritten model is tuned. Scales are trained by the logarithm of what they are
multiplied by, so that theirs is the relative change of a step."""

BESIDE: Mapping[str, float] = {**BY_KIND, "weights": 1.0, "factors": 1.0}
"""Factors beside layers that are trained as factors or as ternary sums, which have factor 1: other
weights are trained as fast as these."""

_TUNING = {"scales": 3e-3, "factors": 1e-3, "all": 1e-3}
"""By what is trained, before the factors of `BY_KIND`."""


def tuning_rate(train: str) -> float:
    """Return the usual rate of `tune` for what is trained.

    Raises
    ------
    UsageError
        If nothing is called so.
    """
    if train not in _TUNING:
        raise UsageError(f"train is '{train}', expected one of {', '.join(_TUNING)}")
    return _TUNING[train]


def ternary_rate(method: str) -> float:
    """Return the usual rate of `train-ternary` for a method.

    Factors are near the weight and are to stay there: what their terms cannot follow gathers, and
    comes back at once. Codes of few terms are far from it.
    """
    return 5e-5 if method == "ternary_svd" else 3e-4
