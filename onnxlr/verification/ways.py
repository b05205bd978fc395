"""The ways to run a rewritten model: by kernels of the op library, and by its own functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxlr.verification.runs import Runs
from onnxlr.verification.subject import Subject, rewritten_name

__all__ = ["FUNCTIONS", "KERNELS", "Way", "Ways", "run_rewritten"]

KERNELS, FUNCTIONS = "kernels", "functions"


@dataclass(frozen=True)
class Way:
    """One way, and where its outputs are.

    Attributes
    ----------
    run_by
        `KERNELS`, `FUNCTIONS`, or None for a model without ternary operators.
    is_second
        Whether the model ran by kernels before.
    """

    run_by: str | None = None
    is_second: bool = False

    @property
    def key(self) -> str:
        """What its outputs are stored under."""
        return "functions" if self.is_second else "rewritten"


@dataclass(frozen=True)
class Ways:
    """The ways that a model was run in, and a note on one that it was not."""

    made: tuple[Way, ...]
    note: str | None = None


def run_rewritten(run: Runs, subject: Subject, feeds: Sequence[str]) -> Ways:
    """Run the rewritten model, twice if it has ternary operators and there are kernels of them."""
    file, name = subject.rewritten_file, rewritten_name(subject)
    outcome = run.model(file, name, Way().key, feeds)
    if not subject.ternary:
        return Ways((Way(),))
    if outcome.no_kernels is not None:
        note = (
            "the rewritten model ran by its functions of standard operators only, and not by "
            f"kernels of the op library: {outcome.no_kernels}"
        )
        return Ways((Way(FUNCTIONS),), note)
    first = Way(KERNELS)
    if subject.ternary.lacking:
        note = (
            "the rewritten model ran by kernels of the op library only: it has no functions for "
            f"{', '.join(subject.ternary.lacking)}, and runs nowhere without that library"
        )
        return Ways((first,), note)
    second = Way(FUNCTIONS, is_second=True)
    run.model(file, f"{name}, run by its functions", second.key, feeds, kernels=False)
    return Ways((first, second))
