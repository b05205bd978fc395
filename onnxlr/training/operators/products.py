"""Matrix products."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.torch_import import torch

__all__: list[str] = []


@operator("MatMul")
def matmul(run: Run, one: Any, other: Any) -> Any:  # noqa: ARG001
    """Multiply matrices as numpy does."""
    return torch.matmul(one, other)


@operator("Gemm")
def gemm(run: Run, one: Any, other: Any, added: Any = None) -> Any:
    """Return `alpha · A B + beta · C`."""
    left = one.mT if run.number("transA", 0) else one
    right = other.mT if run.number("transB", 0) else other
    alpha, beta = run.number("alpha", 1.0), run.number("beta", 1.0)
    if added is not None and added.is_floating_point():
        return torch.addmm(added, left, right, beta=beta, alpha=alpha)
    product = left @ right
    product = product if alpha == 1 else (alpha * product).to(product.dtype)
    return product if added is None else product + (added if beta == 1 else beta * added)


@operator("Einsum")
def einsum(run: Run, *values: Any) -> Any:
    """Sum products as an equation says."""
    return torch.einsum(run.number("equation").replace(" ", ""), *values)


@operator("FusedMatMul", domain="com.microsoft")
def fused_matmul(run: Run, one: Any, other: Any) -> Any:
    """Multiply matrices, their last two axes exchanged where that is said, and scale."""
    left, right = (
        _turned(x, run.number(f"trans{name}", 0), run.number(f"transBatch{name}", 0))
        for x, name in ((one, "A"), (other, "B"))
    )
    return run.number("alpha", 1.0) * torch.matmul(left, right)


def _turned(x: Any, swapped: int, batched: int) -> Any:
    if batched:  # the first axis is moved in front of the last, before anything else
        x = x.movedim(0, -2)
    return x.mT if swapped and x.dim() > 1 else x
