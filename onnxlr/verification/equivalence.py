"""The proof that functions compute what kernels do, one ternary node at a time."""

from __future__ import annotations

from collections.abc import Sequence

from onnxlr.runtime import LEVELS
from onnxlr.verification.comparison import compare
from onnxlr.verification.local import check_locally
from onnxlr.verification.report import Check
from onnxlr.verification.runs import Runs
from onnxlr.verification.subject import Subject, rewritten_name

__all__ = ["EQUIVALENCE_LIMIT", "equivalence"]

EQUIVALENCE_LIMIT = 1e-4
"""Relative L2 distance allowed between a node's function and its kernel on the same data. Both
round data in the same way and differ in the order of float additions: by 5e-7 at most in MiniLM,
PP-OCRv4 recognition and open-nsfw. The rest is room for results that nearly cancel; one wrong sign
among the trits of a 4096×4096 matrix already makes 7e-4."""


def equivalence(run: Runs, subject: Subject, feeds: Sequence[str]) -> list[Check]:
    """Compare every ternary node's function with its kernel, on the data the kernels give it.

    Not over the whole model: where one of them rounds a tie the other way, differences grow from
    layer to layer, and a wrong function could hide behind them.
    """
    nodes = subject.ternary.alone
    if not nodes:
        return []
    name = rewritten_name(subject)
    taps = list(dict.fromkeys(tensor for node in nodes for tensor in (node.data, node.output)))
    inputs = {node.own_data: node.data for node in nodes}
    checks = []
    for level in LEVELS:
        kernels = run.tap(subject.rewritten_file, name, level, feeds, taps)
        functions = run.ternary_nodes(subject.rewritten_file, name, kernels, inputs, level)
        comparisons = [
            compare(
                node.label,
                (
                    (one[node.output], other[position])
                    for one, other in zip(kernels, functions, strict=True)
                ),
            )
            for position, node in enumerate(nodes)
        ]
        check = check_locally("equivalence", level, comparisons, EQUIVALENCE_LIMIT, "ternary node")
        checks.append(check)
    return checks
