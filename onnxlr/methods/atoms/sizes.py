"""How many bits an error takes, as far as can be told before anything is fitted."""

from __future__ import annotations

from math import ceil, inf, log

from onnxlr.methods.atoms.candidates import Asked, candidates
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.search import promising
from onnxlr.methods.atoms.weight import Weight

__all__ = ["BIT", "Sizes"]

BIT = 0.25
"""What a bit more for each entry leaves of a squared error."""

_STEP = 0.25
"""Bits for each entry that sizes are apart."""

_NOTHING = 1e-30
"""A squared error that no form reaches."""


class Sizes:
    """What is expected of the forms of so many bits, counted in steps, each looked at once."""

    def __init__(self, weight: Weight, asked: Asked, most_bits: float) -> None:
        """Take the most bits for each entry of a weight that are looked at."""
        self.weight, self.asked, self.most = weight, asked, round(most_bits / _STEP)
        self.known: dict[int, tuple[Form, float] | None] = {}

    def best(self, size: int) -> tuple[Form, float]:
        """Return the form that promises most, and the squared error expected."""
        found = self._look(size)
        if found is None:
            raise ValueError(f"no form has {size} steps of bits")
        return found

    def fewest(self, first: int, wanted: float, bits: float = 0.0) -> int | None:
        """Return the fewest steps from `first` on that promise a squared error of `wanted`.

        Errors are expected to fall with bits, by `BIT` for each: where to look next follows from
        the last look, between what was too little and what was enough. The first look is at `bits`
        for each entry.
        """
        low, high, size = first - 1, self.most + 1, min(max(round(bits / _STEP), first), self.most)
        while high - low > 1:
            error = self._expected(size)
            low, high = (low, size) if error <= wanted else (size, high)
            further = 1
            if error < inf:
                lacking = log(max(error, _NOTHING) / max(wanted, _NOTHING), 1 / BIT)
                further = ceil(lacking / _STEP)
            size = min(max(size + further, low + 1), high - 1)
        return high if high <= self.most else None

    def last(self, first: int, wanted: float) -> int | None:
        """Return the most steps, if they are at least `first` and promise such an error."""
        return self.most if first <= self.most and self._expected(self.most) <= wanted else None

    def _expected(self, size: int) -> float:
        found = self._look(size)
        return inf if found is None else found[1]

    def _look(self, size: int) -> tuple[Form, float] | None:
        if size not in self.known:
            limit = size * _STEP * self.weight.numbers.size / 8
            best = promising(self.weight, candidates(self.weight, limit, self.asked))
            self.known[size] = best[0] if best else None
        return self.known[size]
