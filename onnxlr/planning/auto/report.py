"""What the planner found, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Contender", "Findings", "RoundRecord"]


@dataclass(frozen=True)
class Contender:
    """A model that was compared with the others, in one run.

    Attributes
    ----------
    name
        What it is.
    bytes, size
        Of its files, and as a fraction of the original's.
    milliseconds, latency, latency_low, latency_high
        Time of one run on one thread, its ratio to the original's and the quartiles of that.
    drops
        By measure, against the original.
    meets
        Whether it meets the goal's limits.
    is_stock
        Whether ONNX Runtime's own tools made it.
    chosen
        Whether it is what is handed out.
    problem
        Why there is no such model, or why it cannot be used.
    """

    name: str
    bytes: int | None = None
    size: float | None = None
    milliseconds: float | None = None
    latency: float | None = None
    latency_low: float | None = None
    latency_high: float | None = None
    drops: Mapping[str, float] = field(default_factory=dict)
    meets: bool = False
    is_stock: bool = False
    chosen: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class RoundRecord:
    """A model that was built on the way.

    Attributes
    ----------
    rewritten
        Layers that were not kept.
    predicted_size, predicted_latency, predicted_damage
        Fractions of the original, and the squared relative error of the outputs.
    size, latency, drops
        The same, measured.
    meets
        Whether it meets the goal's limits.
    problem
        Why it could not be used.
    """

    rewritten: int
    predicted_size: float
    predicted_latency: float
    predicted_damage: float
    size: float | None
    latency: float | None
    drops: Mapping[str, float]
    meets: bool
    problem: str | None = None


@dataclass(frozen=True)
class Findings:
    """What the planner did.

    Attributes
    ----------
    goal
        In words.
    contenders
        The original, what ONNX Runtime's tools make, and the plan's model.
    rounds
        What was built, in order.
    candidates
        Numbers of candidates that were measured.
    from_cache
        Of these, how many came from the cache.
    """

    goal: str
    contenders: tuple[Contender, ...]
    rounds: tuple[RoundRecord, ...]
    candidates: int
    from_cache: int = 0
