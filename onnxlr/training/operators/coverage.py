"""Says, before any work, which nodes cannot be run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onnxlr.errors import ModelError
from onnxlr.training.operators.registry import refusal
from onnxlr.training.program import Program

__all__ = ["check_covered"]

_MOST_NAMED = 5
"""Nodes that a message names of each operator."""


def check_covered(name: str, program: Program) -> None:
    """Raise ModelError that names all nodes of a model that are not covered, if there are any."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for call in program.all_calls():
        reason = None if call.operator == "If" and not call.domain else refusal(call)
        if reason is not None:
            reasons.setdefault((call.kind, reason), []).append(call.label)
    if not reasons:
        return
    lines = [f"{kind} ({reason}): {_named(labels)}" for (kind, reason), labels in reasons.items()]
    count = sum(len(labels) for labels in reasons.values())
    raise ModelError(
        f"{name}: {count} node{'s' if count > 1 else ''} cannot be run in torch: {'; '.join(lines)}"
    )


def _named(labels: Iterable[str]) -> str:
    known = list(Counter(labels))
    more = f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
    return ", ".join(f"'{label}'" for label in known[:_MOST_NAMED]) + more
