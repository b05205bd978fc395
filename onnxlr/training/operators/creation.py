"""Operators that make tensors of sizes and numbers."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.kinds import refuses_made, torch_type
from onnxlr.training.operators.registry import Run, operator
from onnxlr.training.torch_import import torch

__all__: list[str] = []


@operator("ConstantOfShape", lists=[0])
def constant_of_shape(run: Run, sizes: list[int]) -> Any:
    """Return one number, repeated."""
    value = run.number("value")
    if value is None:
        return torch.zeros(sizes, dtype=run.floating)
    kind = run.floating if value.dtype == "float32" else getattr(torch, str(value.dtype))
    return torch.full(sizes, value.reshape(-1)[0].item(), dtype=kind)


@operator("Range")
def numbers(run: Run, start: Any, limit: Any, step: Any) -> Any:  # noqa: ARG001
    """Return evenly spaced numbers."""
    first, last, by = (value.item() for value in (start, limit, step))
    return torch.arange(first, last, by, dtype=start.dtype, device=start.device)


@operator("EyeLike", refuses=lambda call: refuses_made(call.number("dtype", None)))
def eye_like(run: Run, x: Any) -> Any:
    """Return ones on a diagonal, in the shape of a matrix."""
    kind = run.number("dtype")
    found = torch.ones(x.shape, dtype=torch.int8, device=x.device)
    place = run.number("k", 0)
    diagonal = torch.triu(torch.tril(found, place), place)
    return diagonal.to(x.dtype if kind is None else torch_type(kind, run.floating))
