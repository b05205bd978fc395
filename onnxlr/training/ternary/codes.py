"""A weight that is a sum of scaled −1, 0 and 1 where it is used, and a real number where trained.

Straight-through (Bengio et al. 2013): the constant is `Σ_t α_t T_t`, and the gradient of it goes to
the latent weight unchanged. After each step of the optimizer T takes the nearest of the `3ᵗ` values
that the scales make (for one term: zero up to half the scale), and each group's scales are those of
least squared error for that T, as Ternary Weight Networks (Li and Liu 2016) have them for one term;
or the scales are trained themselves, with `Σ T ∂L/∂W` for a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.training.placement import Placement
from onnxlr.training.torch_import import torch

__all__ = ["SCALES", "TernaryCodes"]

Tensor = Any

SCALES = ("solved", "trained")
"""Where scales come from."""

_RIDGE = 1e-6
"""Part of the trace added to the normal equations, where two terms may be equal everywhere."""


class TernaryCodes(torch.nn.Module):
    """Gives a constant as a sum of ternary terms.

    `weight` and, where they are trained, `scales` are parameters, float `(parts, inputs, outputs)`
    and `(terms, parts, groups, outputs)`.

    Parameters
    ----------
    stack
        The weight, float `(parts, inputs, outputs)`: the latent values at the start.
    trits
        Its terms, −1, 0 and 1, `(terms, parts, inputs, outputs)`.
    scales
        `(parts, terms, groups, outputs)`.
    group
        Inputs that share a scale; None for all.
    placement
        Where the entries lie in the constant.
    trained
        Whether the scales are trained; solved otherwise.
    dtype
        Of the constant.
    """

    def __init__(
        self,
        stack: npt.NDArray[Any],
        trits: npt.NDArray[np.int8],
        scales: npt.NDArray[Any],
        group: int | None,
        placement: Placement,
        trained: bool = False,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.trained, self._dims = trained, placement.dims
        self._dtype = torch.float32 if dtype is None else dtype
        self.group, self._size = group, group or stack.shape[1]
        order = torch.from_numpy(placement.order)
        self.register_buffer("order", order, persistent=False)
        patterns = torch.from_numpy(_patterns(len(trits)))
        self.register_buffer("patterns", patterns, persistent=False)
        self.weight = torch.nn.Parameter(_tensor(stack))
        self.register_buffer("trits", _tensor(trits))
        found = _tensor(scales).movedim(1, 0)
        self.scales = torch.nn.Parameter(found.contiguous(), requires_grad=trained)

    def forward(self) -> Tensor:
        """Return the constant."""
        value = self._sum()
        if self.trained:
            value = value + (self.weight - self.weight.detach())
        else:
            value = self.weight + (value - self.weight).detach()
        return value.reshape(-1)[self.order].reshape(self._dims).to(self._dtype)

    @torch.no_grad()
    def settle(self) -> None:
        """Take the nearest trits, and where scales are solved, those of least error for them."""
        if self.trained:
            self.scales.abs_()  # a negative scale is a positive one of the opposite trits
        self.trits.copy_(self._nearest())
        if not self.trained:
            self._solve()

    def state(self) -> dict[str, Any]:
        """Return all that it consists of, tensors by name."""
        return {
            "weight": self.weight.detach(),
            "trits": self.trits.to(torch.int8),
            "scales": self.scales.detach(),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.weight.copy_(state["weight"])
        self.trits.copy_(state["trits"])
        self.scales.copy_(state["scales"])

    def numbers(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """Return trits and scales, shaped as the parameters are; scales are not negative."""
        scales = self.scales.detach()
        signs = torch.where(scales < 0, -1.0, 1.0)
        trits = self.trits * self._each(signs)
        kept = scales.abs().movedim(0, 1).contiguous()
        return trits.to(torch.int8).cpu().numpy(), kept.cpu().numpy()

    def _each(self, scales: Tensor) -> Tensor:
        """Return scales `(…, groups, outputs)` for each input, `(…, inputs, outputs)`."""
        spread = scales.repeat_interleave(self._size, dim=-2)
        return spread[..., : self.weight.shape[1], :]

    def _sum(self) -> Tensor:
        return (self._each(self.scales) * self.trits).sum(dim=0)

    def _nearest(self) -> Tensor:
        """Return the trits of the nearest values, `(terms, parts, inputs, outputs)`."""
        values = torch.einsum("pt,t...->p...", self.patterns, self.scales)
        levels, order = values.abs().sort(dim=0, stable=True)
        middles = (levels[1:] + levels[:-1]) / 2
        sizes = self.weight.abs()
        rank = torch.zeros_like(sizes, dtype=torch.int64)
        for middle in middles:
            rank += sizes > self._each(middle)
        taken = torch.gather(self._each(order), 0, rank[None])[0]
        signs = torch.gather(self._each(values), 0, taken[None])[0]
        flip = torch.where((signs < 0) != (self.weight < 0), -1.0, 1.0)
        return self.patterns[taken].movedim(-1, 0) * flip

    def _solve(self) -> None:
        """Set the scales of least squared error; those of terms that are zero everywhere stay."""
        left = torch.stack([self._in_groups(trits) for trits in self.trits], dim=-1)
        wanted = self._in_groups(self.weight)
        normal = torch.einsum("bgios,bgiot->bgost", left, left)
        right = torch.einsum("bgios,bgio->bgos", left, wanted)
        trace = normal.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
        eye = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
        empty = (trace == 0).to(normal.dtype)
        solved = torch.linalg.solve(normal + (_RIDGE * trace + empty) * eye, right[..., None])
        found = solved[..., 0].movedim(-1, 0)
        used = normal.diagonal(dim1=-2, dim2=-1).movedim(-1, 0) > 0
        negative = found < 0
        self.trits.copy_(self.trits * self._each(torch.where(negative, -1.0, 1.0)))
        self.scales.copy_(torch.where(used, found.abs(), self.scales))

    def _in_groups(self, matrix: Tensor) -> Tensor:
        """Return `(parts, inputs, outputs)` as `(parts, groups, group, outputs)`, with zeros."""
        parts, inputs, outputs = matrix.shape
        missing = -inputs % self._size
        padded = torch.nn.functional.pad(matrix, (0, 0, 0, missing))
        return padded.reshape(parts, -1, self._size, outputs)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _patterns(terms: int) -> npt.NDArray[np.float32]:
    """Return the trits of every value up to sign, zeros first, `((3ᵗ + 1) / 2, terms)`."""
    every = list(product((0.0, 1.0, -1.0), repeat=terms))
    leading = [next((trit for trit in row if trit), 1.0) for row in every]
    return np.array([row for row, first in zip(every, leading, strict=True) if first > 0], "f4")
