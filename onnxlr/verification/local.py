"""The emission proof of layers whose data may be rounded to int8, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import onnx

from onnxlr.runtime import LEVELS
from onnxlr.verification.comparison import Comparison, compare
from onnxlr.verification.cutting import cut_out, declare_inputs
from onnxlr.verification.report import Check
from onnxlr.verification.runs import Runs
from onnxlr.verification.subject import Subject, faults, rewritten_name
from onnxlr.verification.tolerance import Tolerance

__all__ = ["INT8_DATA_LIMIT", "check_locally", "inside_others", "local_emission"]

INT8_DATA_LIMIT = 0.5
"""Relative L2 distance allowed to a single layer whose data may be rounded to int8. What rounding
costs depends on how far the largest entries of the data stand out; a layer that is wired wrongly is
off by its whole size."""

_LOCAL_SHOWN = 5
"""Layers listed where they are compared one by one, the worst first."""


def inside_others(subject: Subject) -> list[str]:
    """Return the labels of sites in subgraphs and functions, which cannot be run by themselves."""
    return [piece.site.label for piece in subject.pieces if piece.site.scope != 0]


def local_emission(run: Runs, subject: Subject, feeds: Sequence[str]) -> list[Check]:
    """Compare every rewritten layer by itself, on the data it has in the rewritten model.

    Rounding data to int8 is no float noise: in the whole model it adds up to distances that a wrong
    layer could hide behind.
    """
    pieces = [piece for piece in subject.pieces if piece.site.scope == 0]
    if subject.reference_file is None or not pieces:
        return []
    reference = onnx.load(subject.reference_file, load_external_data=False)
    known = {name for node in subject.original.proto.graph.node for name in node.output}
    known |= {value.name for value in subject.original.proto.graph.input}
    model, inputs = cut_out(reference, known, pieces)
    file = subject.reference_file.with_name("pieces.onnx")  # where its external data is
    taps = list(dict.fromkeys([*inputs.values(), *(piece.output for piece in pieces)]))
    checks = []
    for level in LEVELS:
        found = run.tap(subject.rewritten_file, rewritten_name(subject), level, feeds, taps)
        if not file.exists():
            declare_inputs(model, {own: found[0][name] for own, name in inputs.items()})
            file.write_bytes(model.SerializeToString())
        expected = run.pieces(file, found, inputs, level)
        comparisons = [
            compare(
                piece.site.label,
                (
                    (one[position], other[piece.output])
                    for one, other in zip(expected, found, strict=True)
                ),
            )
            for position, piece in enumerate(pieces)
        ]
        checks.append(check_locally("emission", level, comparisons, INT8_DATA_LIMIT, "layer"))
    return checks


def check_locally(
    proof: str, level: str, comparisons: Sequence[Comparison], limit: float, what: str
) -> Check:
    """Return the check that each of `what` is within a relative L2 distance, worst first."""
    failures = faults(comparisons)
    sound = [comparison for comparison in comparisons if not comparison.fault]
    failures += Tolerance.parse(f"relative_l2<={limit:g}").failures(sound)
    worst = sorted(comparisons, key=lambda c: -inf if c.fault else -c.relative_l2)
    text = f"relative_l2<={limit:g} of each {what}"
    return Check(proof, level, text, tuple(worst[:_LOCAL_SHOWN]), tuple(failures))
