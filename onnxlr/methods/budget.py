"""How much of a weight to keep, said in one of several ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from onnxlr.errors import UsageError
from onnxlr.methods.method import check_choices

__all__ = ["DEFAULT_MAX_ERROR", "MOST_BITS", "Budget", "RankBudget", "check_size"]

DEFAULT_MAX_ERROR = 0.05
"""Relative error allowed for each layer where nothing else is asked."""

MOST_BITS = 64
"""Of an entry of any weight."""


@dataclass(frozen=True)
class Budget:
    """At most one of the fields is given; none means `max_error` at its default.

    Attributes
    ----------
    ratio
        Parameters of the factors as a fraction of the weight's, 0 < ratio ≤ 1; of ternary_svd trits
        for each entry of the weight, which may be more.
    bits
        Stored bits for each entry of the original weight, scales included, 0 < bits ≤ 64.
    energy
        Share of the squared singular values to keep, 0 < energy ≤ 1.
    max_error
        Largest relative error `‖W − Ŵ‖/‖W‖` in the metric, 0 ≤ max_error < 1.
    """

    ratio: float | None = None
    bits: float | None = None
    energy: float | None = None
    max_error: float | None = None

    budgets: ClassVar[tuple[str, ...]] = ("ratio", "bits", "energy", "max_error")
    """Names of the fields of which one may be given, those of subclasses as well."""

    most: ClassVar[Mapping[str, float]] = {"ratio": 1.0, "bits": MOST_BITS}
    """What budgets of a size may be at most: no weight takes more as it is."""

    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Options of a fixed set of values, and these."""

    def __post_init__(self) -> None:
        check_choices(self)
        given = [name for name in self.budgets if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} are both given, expected one budget")
        for name in ("ratio", "bits"):
            value = getattr(self, name)
            if value is not None:
                check_size(name, value, self.most[name])
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"energy {self.energy} is not above 0 and at most 1")
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise UsageError(f"max_error {self.max_error} is not at least 0 and below 1")

    @property
    def limits_error(self) -> bool:
        """Whether the budget is `max_error`, given or the default."""
        others = [name for name in self.budgets if name != "max_error"]
        return all(getattr(self, name) is None for name in others)

    @property
    def limits_bytes(self) -> bool:
        """Whether the budget is a size, so that the best fit is the one of least error."""
        return self.ratio is not None or self.bits is not None

    @property
    def error_limit(self) -> float:
        """The largest relative error allowed, where the budget is an error."""
        return DEFAULT_MAX_ERROR if self.max_error is None else self.max_error

    def __str__(self) -> str:
        for name in self.budgets:
            value = getattr(self, name)
            if value is not None:
                return f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
        return f"max_error {DEFAULT_MAX_ERROR:g}"


@dataclass(frozen=True)
class RankBudget(Budget):
    """A budget, or the rank itself.

    Attributes
    ----------
    rank
        The rank; never more than the weight's smaller side.
    """

    rank: int | None = None

    budgets: ClassVar[tuple[str, ...]] = ("rank", *Budget.budgets)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            several = isinstance(self.rank, str) and "x" in self.rank
            hint = ": several ranks are for tensor decompositions" if several else ""
            raise UsageError(f"rank {self.rank} is not a whole number of at least 1{hint}")


def check_size(name: str, value: float, most: float) -> None:
    """Refuse a budget of a size that is none, or larger than what a weight takes as it is.

    Raises
    ------
    UsageError
        Naming the budget.
    """
    if not 0 < value < inf:
        raise UsageError(f"{name} {value} is not a finite number above 0")
    if value > most:
        raise UsageError(
            f"{name} {value:g} is more than weights take as they are, expected above 0 and at most "
            f"{most:g}"
        )
