"""What there is to choose for each layer, as numbers, and what choices add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxlr.planning.auto.solving import Item

__all__ = ["Menu"]


@dataclass(frozen=True)
class Menu:
    """What each layer can be, and what the whole is made of beside its layers.

    Attributes
    ----------
    layers
        For each layer what its candidates take, in bytes, seconds and squared relative error of
        the model's outputs; the first is the layer as it is.
    size, seconds
        Of the original model.
    """

    layers: Sequence[Sequence[Item]]
    size: float
    seconds: float

    @property
    def rest(self) -> Item:
        """What the model takes beside its layers."""
        kept = self.total([0] * len(self.layers))
        return Item(max(self.size - kept.size, 0.0), self.seconds - kept.seconds, 0.0)

    def total(self, chosen: Sequence[int]) -> Item:
        """Return the sums over the layers."""
        items = [row[place] for row, place in zip(self.layers, chosen, strict=True)]
        return Item(
            sum(item.size for item in items),
            sum(item.seconds for item in items),
            sum(item.damage for item in items),
        )

    def predicted(self, chosen: Sequence[int]) -> Item:
        """Return what the whole model should take: fractions of the original, and the damage."""
        total, rest = self.total(chosen), self.rest
        return Item(
            (total.size + rest.size) / self.size,
            max(total.seconds + rest.seconds, 0.0) / self.seconds,
            total.damage,
        )
