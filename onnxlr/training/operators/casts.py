"""Changes of type."""

from __future__ import annotations

from typing import Any

from onnxlr.training.operators.kinds import refuses_made, torch_type
from onnxlr.training.operators.registry import Run, operator

__all__: list[str] = []


@operator("Cast", refuses=lambda call: refuses_made(call.number("to", 0)))
def cast(run: Run, x: Any) -> Any:
    """Return the numbers in another type; no gradient flows through whole ones."""
    return x.to(torch_type(run.number("to"), run.floating))


@operator("CastLike", refuses=lambda call: refuses_made(call.kind_of(1)))
def cast_like(run: Run, x: Any, other: Any) -> Any:  # noqa: ARG001
    """Return the numbers in the type of another tensor."""
    return x.to(other.dtype)
