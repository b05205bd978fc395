"""Conv: a 1×1 kernel without groups is a matrix applied at every position."""

from __future__ import annotations

from dataclasses import replace

from onnxlr.layers.examination import Candidate, Found, Skipped, attribute, refuse_weight
from onnxlr.layers.layer import Layout, Site
from onnxlr.layers.weights import Weight

__all__ = ["examine"]


def examine(candidate: Candidate) -> Found | Skipped:
    """Say whether a Conv is a matrix, or why the node is left alone."""
    weight = candidate.input(1)
    if not isinstance(weight, Weight):
        return Skipped(weight or "its kernel is computed, not constant")
    if len(weight.dims) < 3:
        raise candidate.disagreement(weight, f"{len(weight.dims)} dimensions", "at least 3")
    if reason := refuse_weight(weight) or _refuse_kernel(candidate, weight):
        return Skipped(reason, weight)
    weight = replace(weight, kernel=True)
    site = Site(
        candidate.index,
        candidate.node,
        Layout.CHANNELS,
        swapped=True,
        data=candidate.node.input[0],
        output_dims=candidate.dims(candidate.node.output[0]),
        kernel_axes=len(weight.dims) - 2,
    )
    candidate.expect_inputs(site, weight, weight.dims[1])
    return Found(weight, site)


def _refuse_kernel(candidate: Candidate, weight: Weight) -> str | None:
    groups = int(attribute(candidate.node, "group", 1))
    if groups > 1 and weight.dims[1] == 1:
        return "depthwise: no factorization is smaller"
    if groups > 1:
        return f"a convolution in {groups} groups, not handled yet"
    if any(size != 1 for size in weight.dims[2:]):
        window = "×".join(map(str, weight.dims[2:]))
        return f"a {window} convolution: only 1×1 ones are handled yet"
    return None
