"""ONNX Runtime's own product with weights of 8, 4 or 2 bits in groups.

8 bits need ONNX Runtime 1.22, 2 bits 1.24; older ones say so when they load the model. Float data
is multiplied as it is (accuracy level 1), by 4 bits in half the time of a float weight for one row
and one and a half times that for many; by 8 and 2 bits in ten times, so that those are decoded
when the model is loaded instead. With int8 data (level 4) each group of a row is rounded
in a range of its own; ONNX Runtime falls back to float where it has no such kernel, as 1.18 does
where the last group is short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxlr.lowering.rows import multiply_rows, refuses_rows

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.model.shapes import Dim
    from onnxlr.numbers import Encoded

__all__ = ["CONTRIB_DOMAIN", "MatMulNBits"]

CONTRIB_DOMAIN = "com.microsoft"
"""Domain of the operators that only ONNX Runtime has."""

_LEVELS = {"float": 1, "dynamic_int8": 4}


class MatMulNBits:
    """Grouped integer weights, never decoded whole."""

    def __init__(self, activations: str) -> None:
        self.name = f"matmul_nbits of {activations} data"
        self.activations = activations

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse what is not one matrix of integers in groups along the sum."""
        kept = place.stage.weight.format
        if context.activations != self.activations:
            return f"{context.activations} data was asked"
        if kept.is_float:
            return f"its numbers are kept as {kept.kind}, not as integers"
        if self.activations == "float" and kept.kind != "int4":
            return f"ONNX Runtime takes ten times as long as in float for {kept.kind} numbers"
        if reason := refuses_rows(place):
            return reason
        if len(place.stage.shape) > 2:
            return "it is a stack of matrices"
        if kept.group is None:
            return "it has one scale for a whole column, not one for each group of inputs"
        if context.dtype not in (np.float32, np.float16):
            return f"ONNX Runtime has no such product in {context.dtype.name}"
        return None

    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the product."""
        weight = place.stage.weight
        inputs, outputs = weight.shape
        attributes = {
            "K": inputs,
            "N": outputs,
            "bits": weight.format.bits,
            "block_size": weight.format.group,
            "accuracy_level": _LEVELS[self.activations],
        }
        constants = [
            nodes.constant(values, place, hint) for hint, values in _packed(weight, nodes.dtype)
        ]

        def product(rows: gs.Tensor, dims: Sequence[Dim] | None, output: str | None) -> gs.Variable:
            operands = [rows, *constants]
            kind = "MatMulNBits"
            return nodes.add(kind, operands, kind, dims, attributes, output, domain=CONTRIB_DOMAIN)

        return multiply_rows(nodes, x, place, product)


def _packed(weight: Encoded, dtype: npt.DTypeLike) -> list[tuple[str, npt.NDArray[Any]]]:
    """Return the operator's constants: codes `(outputs, groups, bytes)`, scales, and zero points.

    A short last group is filled with codes that stand for 0. The operator's codes are unsigned:
    without zero points, the middle of their range stands for 0.
    """
    if weight.scales is None or weight.format.group is None:
        raise ValueError("no groups")
    inputs, outputs = weight.shape
    group, bits = weight.format.group, weight.format.bits
    missing = -inputs % group
    if weight.zero_points is None:
        middle = 1 << (bits - 1)
        codes = (weight.codes.astype(np.int16) + middle).astype(np.uint8)
        filling = np.full((missing, outputs), middle, np.uint8)
    else:
        codes = weight.codes
        filling = np.repeat(weight.zero_points[-1:], missing, axis=0)
    blocks = np.concatenate([codes, filling]).T.reshape(outputs, -1, group)
    found = [("blocks", _in_bytes(blocks, bits)), ("scales", weight.scales.T.astype(dtype))]
    if weight.zero_points is not None:
        found.append(("zero_points", _in_bytes(weight.zero_points.T, bits)))
    return found


def _in_bytes(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return codes in bytes along the last axis, the first of each byte in its lowest bits."""
    each = 8 // bits
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    grouped = padded.reshape(*padded.shape[:-1], -1, each)
    shifted = grouped << (bits * np.arange(each, dtype=np.uint8))
    return np.asarray(np.bitwise_or.reduce(shifted, axis=-1), np.uint8)
