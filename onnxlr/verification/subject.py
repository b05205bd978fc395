"""What is to be proved, and what makes it useless whatever is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxlr.model import Model
from onnxlr.rewriting import Piece
from onnxlr.verification.comparison import Comparison
from onnxlr.verification.ternary import TernaryNodes

__all__ = ["Subject", "faults", "rewritten_name"]


@dataclass(frozen=True)
class Subject:
    """What is to be proved.

    Attributes
    ----------
    original
        The opened original model.
    original_file, rewritten_file, reference_file
        The files to run; the reference is the original with dense approximations for weights, None
        if it cannot be had.
    pieces
        Sites that were rewritten, and where their results are to be looked at.
    dtypes
        Names of the float types of the rewritten weights.
    int8_data
        Whether the plan lets the runtime round data to int8.
    missing
        Why there is no reference, where there is none.
    ternary
        The rewritten model's ternary nodes.
    """

    original: Model
    original_file: Path
    rewritten_file: Path
    reference_file: Path | None
    pieces: Sequence[Piece] = ()
    dtypes: frozenset[str] = frozenset()
    int8_data: bool = False
    missing: str = ""
    ternary: TernaryNodes = field(default_factory=TernaryNodes)


def rewritten_name(subject: Subject) -> str:
    """Return what messages call it; its folder may be a temporary one."""
    return f"the rewritten model ({subject.rewritten_file.name})"


def faults(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what makes outputs useless whatever the tolerance."""
    faults = [c.fault for c in comparisons if c.fault]
    if not faults and not any(c.entries for c in comparisons):
        faults.append("all outputs are empty on these inputs: there is nothing to compare")
    return faults
