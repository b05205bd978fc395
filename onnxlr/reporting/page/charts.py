"""Where the marks of a chart lie: shares of its width and height in percent, the text beside them.

Charts stretch with the page while their text keeps its size: so only marks and lines are placed
here, and the template writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

__all__ = ["Axis", "Tick", "decades", "share", "steps", "thinned"]

_MOST_TICKS = 6


@dataclass(frozen=True)
class Tick:
    """A line of an axis: how far along it is in percent, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis of whole powers of ten, from the bottom up.

    Attributes
    ----------
    low, high
        The powers at its ends.
    """

    low: int
    high: int

    def at(self, value: float) -> float:
        """Return how far from the top a value is, in percent; what is below the axis is on it."""
        if value <= 0:
            return 100.0
        part = (log10(value) - self.low) / (self.high - self.low)
        return round(100 * (1 - min(max(part, 0.0), 1.0)), 3)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Lines at powers of ten, not more than a reader takes in."""
        step = ceil((self.high - self.low) / _MOST_TICKS)
        powers = range(self.high, self.low - 1, -step)
        return tuple(Tick(self.at(10.0**power), f"{10.0**power:g}") for power in powers)


def decades(values: Sequence[float], floor_at: float = 0.0) -> Axis:
    """Return the axis that holds all values above 0 and `floor_at`."""
    positive = [value for value in values if isfinite(value) and value > max(floor_at, 0.0)]
    if not positive:
        return Axis(-1, 0)
    low, high = floor(log10(min(positive))), ceil(log10(max(positive)))
    return Axis(low, max(high, low + 1))


def share(value: float | None, most: float) -> float | None:
    """Return a bar's length in percent of the longest; None where there is none."""
    if value is None or not isfinite(value) or value < 0:
        return None
    return round(100 * min(value / most, 1.0), 3) if most > 0 else 0.0


def steps(count: int, most: int = 12) -> list[int]:
    """Return some of the numbers 1 … count to write under an axis."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if count <= s * most)
    return [1, *range(step if step > 1 else 2, count + 1, step)]


def thinned(values: Sequence[float], most: int = 160) -> list[int]:
    """Return positions of values to draw, first and last among them."""
    if len(values) <= most:
        return list(range(len(values)))
    scale = (len(values) - 1) / (most - 1)
    return sorted({round(position * scale) for position in range(most)})
