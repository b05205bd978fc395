"""What verification found."""

from __future__ import annotations

from dataclasses import dataclass

from onnxlr.verification.comparison import Comparison

__all__ = ["Check", "Drift", "Report"]


@dataclass(frozen=True)
class Check:
    """One proof at one level of graph optimisation.

    Attributes
    ----------
    proof
        `emission`: against the original with the approximated weights put in as dense ones;
        `approximation`: against the original; `equivalence`: each ternary node by its function
        against the same node by its kernel, on the same data.
    optimisation
        ONNX Runtime's graph optimisation, `all` or `none`.
    tolerance
        What was asked.
    comparisons
        One for each output.
    failures
        A sentence for everything that does not hold; empty if the check passed.
    run_by
        Of a model with ternary operators, what they ran by: `kernels` of the op library, or
        `functions` of standard operators that the model carries. None for other models.
    """

    proof: str
    optimisation: str
    tolerance: str
    comparisons: tuple[Comparison, ...]
    failures: tuple[str, ...]
    run_by: str | None = None

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not self.failures


@dataclass(frozen=True)
class Drift:
    """How far the output of a rewritten layer is from the original's, inside the whole model.

    Attributes
    ----------
    layer
        Label of the site's node.
    relative_l2, cosine
        As in `Comparison`, of the site's output tensor; NaN where it has NaN or infinite entries.
    """

    layer: str
    relative_l2: float
    cosine: float


@dataclass(frozen=True)
class Report:
    """Both proofs, and where the drift arises if they fail.

    Attributes
    ----------
    data
        What the models were run on, in words.
    is_random
        Whether the inputs were made up.
    runtime
        Runtime and version.
    checks
        All checks made.
    drifts
        Worst first, those without any left out; empty if all checks passed.
    notes
        What a reader must know to judge the checks.
    """

    data: str
    is_random: bool
    runtime: str
    checks: tuple[Check, ...]
    drifts: tuple[Drift, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> list[str]:
        """A sentence for everything that does not hold, each once."""
        levels: dict[tuple[str, str], dict[str, None]] = {}
        for check in self.checks:
            proof = f"{check.proof} proof" + (f" by {check.run_by}" if check.run_by else "")
            for failure in check.failures:
                levels.setdefault((proof, failure), {})[check.optimisation] = None
        return [
            f"{proof}, graph optimisation {' and '.join(found)}: {failure}"
            for (proof, failure), found in levels.items()
        ]
