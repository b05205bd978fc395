"""Weights that are trained as factors `U diag(s) Vᵀ`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxlr.errors import check_known
from onnxlr.training.placement import Placement
from onnxlr.training.torch_import import torch

__all__ = ["SPARSITIES", "FactoredWeight", "Factors"]

Tensor = Any
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Factors:
    """Singular value decompositions of a stack, float64.

    Attributes
    ----------
    left
        `U`, `(batch, rows, rank)`, columns orthonormal.
    values
        Singular values `s`, descending, `(batch, rank)`.
    right
        `V`, `(batch, columns, rank)`, columns orthonormal.
    """

    left: Matrix
    values: Matrix
    right: Matrix

    @classmethod
    def of(cls, stack: Matrix) -> Factors:
        """Decompose each matrix of a stack `(batch, rows, columns)`."""
        left, values, right = np.linalg.svd(stack, full_matrices=False)
        return cls(left, values, right.swapaxes(1, 2))

    @classmethod
    def of_product(cls, left: Matrix, values: Matrix, right: Matrix) -> Factors:
        """Decompose `L diag(d) Rᵀ` of any factors: QR of both, and the SVD of the small core."""
        if left.shape[-1] > min(left.shape[-2], right.shape[-2]):
            return cls.of(left * values[:, None, :] @ right.swapaxes(1, 2))
        one, first = np.linalg.qr(left)
        other, second = np.linalg.qr(right)
        core = cls.of(first * values[:, None, :] @ second.swapaxes(1, 2))
        return cls(one @ core.left, core.values, other @ core.right)

    @property
    def rank(self) -> int:
        """Number of singular values that are kept of each matrix."""
        return int(self.values.shape[1])

    def energies(self) -> npt.NDArray[np.float64]:
        """Return the share of the squared singular values in the first 1, 2, … of them.

        The matrices of a stack share the rank, so they count together. Zeros have all their energy
        in any rank.
        """
        squares = np.square(self.values).sum(axis=0)
        total = squares.sum()
        return np.cumsum(squares) / total if total > 0 else np.ones(self.rank)

    def first(self, rank: int) -> Factors:
        """Return the first `rank` singular values and vectors."""
        return Factors(self.left[..., :rank], self.values[:, :rank], self.right[..., :rank])


class FactoredWeight(torch.nn.Module):
    """A weight as `U diag(s) Vᵀ` of a placement; gives the stored tensor.

    `left` `(batch, rows, rank)`, `values` `(batch, rank)` and `right` `(batch, columns, rank)` are
    parameters.
    """

    def __init__(self, placement: Placement, factors: Factors, like: Tensor) -> None:
        """Take the factors in the type and on the device of a tensor, at least float32."""
        super().__init__()
        self.placement, self.dtype = placement, like.dtype
        floating = torch.promote_types(like.dtype, torch.float32)

        def kept(array: npt.NDArray[Any]) -> Tensor:
            return torch.tensor(array, dtype=floating, device=like.device)

        self.left = torch.nn.Parameter(kept(factors.left))
        self.values = torch.nn.Parameter(kept(factors.values))
        self.right = torch.nn.Parameter(kept(factors.right))
        order = torch.from_numpy(placement.order).to(like.device)
        self.register_buffer("order", order, persistent=False)

    def forward(self) -> Tensor:
        """Return the stored tensor."""
        # under autocast the product would be rounded before anything multiplies with it
        with torch.autocast(self.left.device.type, enabled=False):
            stack = (self.left * self.values[:, None, :]) @ self.right.mT
        return stack.reshape(-1)[self.order].reshape(self.placement.dims).to(self.dtype)

    def factors(self) -> Factors:
        """Return the factors as they are now, made orthonormal."""
        parts = (self.left, self.values, self.right)
        return Factors.of_product(*(part.detach().cpu().double().numpy() for part in parts))

    def orthogonality(self) -> Tensor:
        """Return `‖UᵀU − I‖²/r² + ‖VᵀV − I‖²/r²`, added up over the stack."""
        rank = self.values.shape[1]
        with torch.autocast(self.left.device.type, enabled=False):
            identity = torch.eye(rank, dtype=self.left.dtype, device=self.left.device)
            total = sum((x.mT @ x - identity).square().sum() for x in (self.left, self.right))
        return total / rank**2

    def sparsity(self, kind: str) -> Tensor:
        """Return how far the singular values are from being few, see `SPARSITIES`.

        The matrices of a stack share the rank: what counts is the norm of each k-th value over all
        of them, for one matrix its absolute value.

        Raises
        ------
        UsageError
            If the kind is unknown.
        """
        sizes = torch.linalg.vector_norm(self.values, dim=0)
        if kind == "l1":
            return sizes.sum()
        check_known("sparsity", kind, SPARSITIES)
        norm = torch.linalg.vector_norm(sizes)
        return sizes.sum() / norm.clamp_min(torch.finfo(norm.dtype).tiny) - 1


SPARSITIES = ("l1", "hoyer")
"""`l1` is `‖s‖₁`; `hoyer` is `‖s‖₁/‖s‖₂ − 1`, which knows no scale (Yang et al. 2020)."""
