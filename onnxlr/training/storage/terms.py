"""Ternary terms that are added, as the digits of one trained value each."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.training.storage.straight import Storage, StoredCodes, as_unit
from onnxlr.training.torch_import import torch

__all__ = ["MOST_TERMS", "SumOfTerms", "TermCodes"]

Tensor = Any
Array = npt.NDArray[Any]

MOST_TERMS = 4
"""Of a sum whose nearest value is looked for: there are 3 to that many sums."""

_PIECE = 1 << 17
"""Values whose sums are compared at a time."""


class SumOfTerms(torch.nn.Module):
    """Ternary terms that are added: the digits of the value nearest to one trained value each.

    What is trained is `Σ_t α_t T_t`; forward finds the trits whose sum is nearest to it. With a
    value for each term, rounded by itself, distillation ended at errors 15 % (two terms) and 17 %
    (three) larger (set-up as for `StoredCodes`), as a term's step can be undone by another's.

    The scales `α` are those of the start: trained ones change what codes stand for, not which are
    nearest. Gradients reach the value as if it were the weight itself: `T_t` has the derivative
    `α_t / Σ α²`, by which `Σ α_t ∂T_t` is 1.

    Parameters
    ----------
    trits
        −1, 0 and 1, terms first.
    scales
        What each is multiplied by, of the same shape; signs do not count.
    dtype
        Float type that values are trained in; float32 if not given.
    """

    values: torch.nn.Parameter
    scales: Tensor
    trits: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, trits: Array, scales: Array, dtype: Any = None) -> None:
        super().__init__()
        held = torch.stack([as_unit(scale, dtype or torch.float32) for scale in scales])
        start = torch.from_numpy(trits.astype(np.int8))
        self.values = torch.nn.Parameter((start * held).sum(0))
        # Trits are those of the last run, and hold for values between the bounds: few leave them.
        low, high = torch.empty_like(self.values.data), torch.empty_like(self.values.data)
        for name, buffer in (("scales", held), ("trits", start), ("low", low), ("high", high)):
            self.register_buffer(name, buffer, persistent=False)
        for piece in torch.arange(low.numel()).split(_PIECE):
            self._place(piece, move=False)

    def forward(self) -> Tensor:
        """Return the trits as floats, terms first."""
        held, values = self.scales, self.values
        with torch.no_grad():
            left = (values < self.low) | (values > self.high)
            for piece in left.reshape(-1).nonzero()[:, 0].split(_PIECE):
                self._place(piece, move=True)
        passed = values * (held / held.square().sum(0))
        return self.trits.to(values.dtype) + (passed - passed.detach())

    def _place(self, places: Tensor, *, move: bool) -> None:
        """Find the bounds of the sums at some places, and the sums nearest to values if asked."""
        terms = len(self.scales)
        patterns = torch.tensor(list(product((0, 1, -1), repeat=terms)), device=places.device)
        scales = self.scales.reshape(terms, -1)[:, places]
        every = patterns.to(scales.dtype) @ scales
        levels, order = every.sort(dim=0, stable=True)
        middles = (levels[1:] + levels[:-1]) / 2
        if move:
            values = self.values.reshape(-1)[places]
            nearest = (values > middles).sum(0, keepdim=True)
            trits = patterns[order.gather(0, nearest)[0]].T.to(torch.int8)
            self.trits.view(terms, -1)[:, places] = trits
            level = levels.gather(0, nearest)
        else:
            level = (self.trits.reshape(terms, -1)[:, places] * scales).sum(0, keepdim=True)
        below = middles.masked_fill(middles >= level, -torch.inf).amax(0)
        above = middles.masked_fill(middles <= level, torch.inf).amin(0)
        self.low.view(-1)[places], self.high.view(-1)[places] = below, above


class TermCodes(StoredCodes):
    """Codes of one term, or of all terms, of a sum; the trained values are the sum's.

    Parameters
    ----------
    storage
        Where the codes are.
    shared
        What all terms of the sum share.
    term
        Which one it is; None for all of them in one tensor, terms first.
    """

    def __init__(self, storage: Storage, shared: SumOfTerms, term: int | None = None) -> None:
        torch.nn.Module.__init__(self)
        self.storage, self.sum, self._term = storage, shared, term
        self.values = shared.values

    def forward(self, indices: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return the codes, as floats; no table is such a sum."""
        trits = self.sum()
        return (trits if self._term is None else trits[self._term]) + self.storage.zero

    def settle(self) -> None:
        """Take values beyond the sum of all scales back to it."""
        largest = self.sum.scales.sum(0)
        with torch.no_grad():
            self.values.copy_(torch.minimum(torch.maximum(self.values, -largest), largest))
