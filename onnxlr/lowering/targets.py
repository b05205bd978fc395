"""Targets: ordered lists of lowerings, of which the first that accepts a stage writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxlr.errors import UsageError, check_known
from onnxlr.lowering.cast_weights import CastWeights
from onnxlr.lowering.dequantize_linear import DequantizeLinear
from onnxlr.lowering.dynamic_int8 import DynamicInt8
from onnxlr.lowering.float_weights import FloatWeights
from onnxlr.lowering.gather_rows import GatherRows
from onnxlr.lowering.matmul_nbits import MatMulNBits
from onnxlr.lowering.packed_weights import PackedWeights
from onnxlr.lowering.recombining import Recombining
from onnxlr.lowering.static_int8 import StaticInt8
from onnxlr.lowering.ternary_conv import TernaryConvLowering
from onnxlr.lowering.ternary_matmul import TernaryMatMulLowering
from onnxlr.lowering.ternary_terms import TernaryTerms, in_blocks
from onnxlr.stages import Lookup, RecombinedConvolution, RecombinedLinear

if TYPE_CHECKING:
    from onnxlr.lowering.context import Context
    from onnxlr.lowering.lowering import Lowering
    from onnxlr.lowering.place import Place

__all__ = ["TARGETS", "LoweringRefusedError", "Target", "find_target"]


class LoweringRefusedError(UsageError):
    """No lowering of the target can write a stage; the message gives each one's reason."""


@dataclass(frozen=True)
class Target:
    """What the rewritten model will run on.

    Attributes
    ----------
    name
        `onnx`: standard operators only, any runtime. `ort`: those of ONNX Runtime as well.
        `onnxlr`: those of the op library, which the model carries as functions, too.
    lowerings
        Of all numbers but ternary ones, in order of preference.
    ternary
        Of ternary numbers, in order of preference.
    """

    name: str
    lowerings: tuple[Lowering, ...]
    ternary: tuple[Lowering, ...]

    def choose(self, context: Context, place: Place) -> Lowering:
        """Return the first lowering that accepts; raises LoweringRefusedError if none does."""
        reasons = []
        possible = self._possible(place)
        for lowering in possible:
            reason = lowering.refuses(context, place)
            if reason is None:
                return lowering
            # Of several, those of other activations cannot do what was asked in any case.
            if lowering.activations == context.activations or len(possible) == 1:
                reasons.append(f"{lowering.name}: {reason}")
        raise LoweringRefusedError(
            f"target {self.name} cannot write {_numbers(place)} with "
            f"{context.activations} data here ({'; '.join(reasons)}){_advice(context, place)}"
        )

    def _possible(self, place: Place) -> tuple[Lowering, ...]:
        if isinstance(place.stage, RecombinedLinear | RecombinedConvolution):
            return _RECOMBINED
        return self.ternary if place.stage.weight.format.is_ternary else self.lowerings


def _numbers(place: Place) -> str:
    """Return what a stage's numbers are, for messages."""
    if isinstance(place.stage, RecombinedLinear | RecombinedConvolution):
        return "sums of atoms"
    return f"{place.stage.weight.format} numbers"


def _advice(context: Context, place: Place) -> str:
    """Return what to do where ternary numbers cannot be written."""
    if not place.stage.weight.format.is_ternary:
        return ""
    if isinstance(place.stage, Lookup):
        return "; tables can be int8, int4 or int2"
    return "; they can be with float data" if context.activations != "float" else ""


_RECOMBINED: tuple[Lowering, ...] = (Recombining(),)
_STANDARD: tuple[Lowering, ...] = (
    FloatWeights(),
    CastWeights(),
    PackedWeights(),
    DynamicInt8(),
    StaticInt8(),
    DequantizeLinear(),
    GatherRows(),
)
_TERNARY: tuple[Lowering, ...] = (
    PackedWeights(),
    TernaryTerms(DynamicInt8(), "int8"),
    TernaryTerms(StaticInt8(), "int8"),
    TernaryTerms(DequantizeLinear(), "int2"),
    TernaryTerms(DequantizeLinear(), "int8"),
)
_ORT: tuple[Lowering, ...] = (MatMulNBits("float"), MatMulNBits("dynamic_int8"), *_STANDARD)
_ORT_TERNARY: tuple[Lowering, ...] = (
    TernaryTerms(MatMulNBits("dynamic_int8"), "int2", in_blocks),
    *_TERNARY,
)
_OPERATORS: tuple[Lowering, ...] = tuple(
    lowering(activations)
    for lowering in (TernaryMatMulLowering, TernaryConvLowering)
    for activations in ("float", "dynamic_int8")
)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("onnx", _STANDARD, _TERNARY),
        Target("ort", _ORT, _ORT_TERNARY),
        Target("onnxlr", _ORT, (*_OPERATORS, *_ORT_TERNARY)),
    )
}
"""All targets by name."""


def find_target(name: str) -> Target:
    """Return the target of that name; raises UsageError naming the nearest."""
    check_known("target", name, TARGETS)
    return TARGETS[name]
