"""A weight that stays a product of ternary factors while it is trained.

The scheme is that of *Ternary Singular Value Decomposition as a Better Parameterized Form in Linear
Mapping*: what is trained is the dense product `W = U diag(s) Vᵀ`, and what a change of it cannot
keep is fed back. After each step of the optimizer

- `W' = W + E`, with `E` what was left before;
- `s` solves `(G + εI) s = b` for `W'` on the old U and V, with `G = (UᵀU) ∘ (VᵀV)`,
  `b_k = u_kᵀ W' v_k`, `ε = 1e-5 · √(Σ G² / K)`;
- `W ← U diag(s) Vᵀ`, `E ← W' − W`.

Every so many steps the terms are renewed as well: the k-th survives if `|s_k| · √(nnz u_k · nnz
v_k)`, its norm, is at least η times that of the best ternary term of the residual; the others make
way for new ones, found greedily, until the tolerance or the number of terms holds.

Where terms are not renewed at each step, the part of a step that the old ones cannot follow is not
seen by the loss, which asks for it again and again; it would come into effect all at once. Of that
part only a fraction is fed back then; a fraction of 1 is the scheme as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.methods.semidiscrete import Alternating, Goal, Published, Terms, spectral_norm
from onnxlr.methods.semidiscrete.descent import descend
from onnxlr.methods.semidiscrete.terms import Fitted
from onnxlr.training.placement import Placement
from onnxlr.training.torch_import import torch

__all__ = ["Renewal", "TernaryFactors", "renewed", "survivors"]

Tensor = Any
Floats = npt.NDArray[np.float32]

_RIDGE = 1e-5
"""Of the published normal equations, a part of the root mean square of G's rows."""

_STEPS = 20
"""New terms come in so many steps for each trit a weight, as in the published transition."""


@dataclass(frozen=True)
class Renewal:
    """What terms are renewed by.

    Attributes
    ----------
    eta
        How many times the best term of the residual a term must be to survive.
    tolerance
        Largest `‖W' − W‖₂ / ‖W'‖₂`; None where the number of terms stays what it is.
    fit
        `published` or `alternating`, as of method `ternary_svd`.
    most
        Most terms.
    seed
        Of random starts.
    feedback
        Part of a step of the optimizer that is fed back where the old terms cannot follow it.
    """

    eta: float
    tolerance: float | None
    fit: str
    most: int
    seed: int = 0
    feedback: float = 1.0

    def found(self, residual: Floats, count: int) -> Terms:
        """Return that many terms for a residual, fewer if they are exact before."""
        if self.fit == "published":
            return Published(residual, self.seed).of_count(count)
        return Alternating(Goal(residual), 0, self.seed).of_count(count)


def survivors(terms: Terms, best: Terms, eta: float) -> npt.NDArray[np.bool_]:
    """Return which terms are at least η times as strong as the strongest of others."""
    least = eta * float(_norms(best).max(initial=0.0))
    return np.asarray(_norms(terms) >= least)


def _norms(terms: Terms) -> npt.NDArray[np.float64]:
    """Return `|s_k| · √(nnz u_k · nnz v_k)`, the Frobenius norms of the terms."""
    entries = np.count_nonzero(terms.left, axis=1) * np.count_nonzero(terms.right, axis=1)
    return np.asarray(np.abs(terms.strengths) * np.sqrt(entries))


def renewed(matrix: Floats, terms: Terms, rule: Renewal) -> Terms:
    """Return the terms of a matrix after those that are too weak were found anew.

    Parameters
    ----------
    matrix
        What is to be approximated, `(inputs, outputs)`.
    terms
        Those that approximated what the matrix was before.
    rule
        What survives, and what is enough.
    """
    goal, wanted = Goal(matrix), min(terms.count, rule.most)
    whole = spectral_norm(matrix)
    terms = _solved(terms, goal)
    alive = survivors(terms, rule.found(terms.residual(matrix), 1), rule.eta)
    if not alive.all():
        kept = Terms(terms.left[alive], terms.right[alive], terms.strengths[alive])
        terms = _solved(kept, goal)
    stride = max(1, matrix.size // sum(matrix.shape) // _STEPS)
    limit = rule.most if rule.tolerance is not None else wanted
    while terms.count < limit:
        residual = terms.residual(matrix)
        if rule.tolerance is not None and spectral_norm(residual) <= rule.tolerance * whole:
            break
        new = rule.found(residual, min(stride, limit - terms.count))
        if not new.count:
            break
        terms = _solved(terms.joined(new), goal)
        if rule.fit != "published":
            terms = descend(Fitted.of(terms, goal)).terms.present()
    return terms


def _solved(terms: Terms, goal: Goal) -> Terms:
    """Return the terms with the strengths that the published normal equations give."""
    if not terms.count:
        return terms
    fitted = Fitted.of(terms, goal)
    gram = (fitted.common_left * fitted.common_right).astype(np.float64)
    ridge = _RIDGE * np.sqrt(np.square(gram).sum() / len(gram))
    return fitted.solved(ridge / np.diagonal(gram)).terms


class TernaryFactors(torch.nn.Module):
    """Gives a constant as the sum of the terms of each of its matrices.

    `weight` is what the optimizer moves: the stack of products, float `(parts, rows, columns)`; the
    gradient goes straight to it. `settle` and `renew` make it a product of ternary factors again.

    Parameters
    ----------
    stack
        The matrices that the terms approximate.
    parts
        Terms of each.
    placement
        Where the entries lie in the constant.
    rule
        How terms are renewed.
    dtype
        Of the constant.
    """

    def __init__(
        self,
        stack: Floats,
        parts: list[Terms],
        placement: Placement,
        rule: Renewal,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.rule, self._dims = rule, placement.dims
        self._dtype = torch.float32 if dtype is None else dtype
        order = torch.from_numpy(placement.order)
        self.register_buffer("order", order, persistent=False)
        latent = torch.from_numpy(np.ascontiguousarray(stack, np.float32))
        self.weight = torch.nn.Parameter(torch.zeros_like(latent))
        self.register_buffer("error", latent.clone())
        self._factors = [_Factors.of(terms, latent.device) for terms in parts]
        with torch.no_grad():
            self._feed_back()

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        """Move the factors along with the parameters."""
        for factors in self._factors:
            factors.move(function)
        return super()._apply(function, recurse)

    def forward(self) -> Tensor:
        """Return the constant."""
        return self.weight.reshape(-1)[self.order].reshape(self._dims).to(self._dtype)

    @property
    def parts(self) -> list[Terms]:
        """The terms of each matrix."""
        return [factors.terms() for factors in self._factors]

    @torch.no_grad()
    def settle(self) -> None:
        """Solve the strengths on the old factors, and feed back what they do not give."""
        before = self.error.clone()
        for part, factors in enumerate(self._factors):
            factors.solve(self.weight[part] + self.error[part])
        self._feed_back()
        if self.rule.feedback < 1:
            self.error.lerp_(before, 1 - self.rule.feedback)

    @torch.no_grad()
    def renew(self) -> None:
        """Find terms that are too weak anew."""
        for part, factors in enumerate(self._factors):
            latent = (self.weight[part] + self.error[part]).cpu().numpy()
            terms = renewed(latent, factors.terms(), self.rule)
            self._factors[part] = _Factors.of(terms, self.weight.device)
        self._feed_back()

    def _feed_back(self) -> None:
        """Set the product of the factors, and what is left of the sum of both."""
        for part, factors in enumerate(self._factors):
            product = factors.product()
            self.error[part] += self.weight[part] - product
            self.weight[part] = product

    def state(self) -> dict[str, Any]:
        """Return all that it consists of, tensors by name."""
        found = {"weight": self.weight.detach(), "error": self.error}
        for part, factors in enumerate(self._factors):
            found |= {
                f"left.{part}": factors.left.to(torch.int8),
                f"right.{part}": factors.right.to(torch.int8),
                f"strengths.{part}": factors.strengths,
            }
        return found

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        self.weight.copy_(state["weight"])
        self.error.copy_(state["error"])
        for part in range(len(self._factors)):
            left, right = (state[f"{side}.{part}"].float() for side in ("left", "right"))
            device = self.weight.device
            strengths = state[f"strengths.{part}"].to(device)
            self._factors[part] = _Factors(left.to(device), right.to(device), strengths)


class _Factors:
    """The factors of one matrix on the device that trains, with the normal equations solved once.

    Attributes
    ----------
    left, right
        −1, 0 and 1 as float32, `(terms, rows)` and `(terms, columns)`.
    strengths
        float64 `(terms,)`.
    """

    def __init__(self, left: Tensor, right: Tensor, strengths: Tensor) -> None:
        self.left, self.right, self.strengths = left, right, strengths.clone()
        self._triangle: Tensor = None

    @classmethod
    def of(cls, terms: Terms, device: Any) -> _Factors:
        """Return terms on a device."""
        left, right, strengths = (
            torch.from_numpy(np.array(side)).to(device)
            for side in (terms.left, terms.right, terms.strengths)
        )
        return cls(left, right, strengths)

    def move(self, function: Any) -> None:
        """Apply what moves a module's tensors."""
        self.left, self.right = function(self.left), function(self.right)
        self.strengths, self._triangle = function(self.strengths), None

    def terms(self) -> Terms:
        """Return the terms in numpy."""
        left, right, strengths = (
            side.detach().cpu().numpy() for side in (self.left, self.right, self.strengths)
        )
        return Terms(left.copy(), right.copy(), strengths.copy())

    def product(self) -> Tensor:
        """Return the sum of the terms."""
        return (self.left * self.strengths.to(self.left.dtype)[:, None]).mT @ self.right

    def solve(self, latent: Tensor) -> None:
        """Solve the strengths for a matrix; the Cholesky factor lasts as long as the terms do."""
        if not len(self.strengths):
            return
        if self._triangle is None:
            left, right = self.left.double(), self.right.double()
            gram = (left @ left.mT) * (right @ right.mT)
            ridge = _RIDGE * torch.sqrt(gram.square().sum() / len(gram))
            eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            self._triangle = torch.linalg.cholesky(gram + ridge * eye)
        wanted = ((self.left @ latent) * self.right).double().sum(dim=1, keepdim=True)
        self.strengths = torch.cholesky_solve(wanted, self._triangle)[:, 0]
