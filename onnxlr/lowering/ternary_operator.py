"""What the lowerings to ternary operators have in common.

Their nodes need functions in the model (`functions`), and their constants in their own graph
(`constants`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxlr.layers import Layout
from onnxlr.operators.body import LOWEST_OPSET
from onnxlr.operators.schema import ACCURACY_LEVELS, MAX_INPUTS

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnxlr.lowering.context import Context
    from onnxlr.lowering.nodes import Nodes
    from onnxlr.lowering.place import Place
    from onnxlr.operators import TernaryOperator

__all__ = [
    "TernaryOperatorLowering",
    "constants_of",
    "floats",
    "input_factors",
    "inputs_of",
    "with_own_bias",
]

_OLDEST_IR_VERSION = 4
_LEVELS = dict(zip(("float", "dynamic_int8"), ACCURACY_LEVELS, strict=True))


class TernaryOperatorLowering(ABC):
    """Writes a ternary stage as one node, with the factors of its inputs and a constant bias."""

    operator: str

    def __init__(self, activations: str) -> None:
        """Take data as `float` (accuracy level 0), or `dynamic_int8` (level 4)."""
        self.name = f"{self.operator} of {activations} data"
        self.activations = activations
        self.level = _LEVELS[activations]

    def refuses(self, context: Context, place: Place) -> str | None:
        """Refuse what the operator, or a function of standard operators for it, cannot be."""
        kept = place.stage.weight.format
        if context.activations != self.activations:
            return f"{context.activations} data was asked"
        if not kept.is_ternary:
            return f"its numbers are kept as {kept.kind}, not as ternary ones"
        if context.dtype != np.float32:
            return f"the operator computes in float32, the model in {context.dtype.name}"
        if context.opset < LOWEST_OPSET:
            return f"its function needs opset {LOWEST_OPSET}, the model has {context.opset}"
        if context.ir_version < _OLDEST_IR_VERSION:
            return (
                f"a model with functions has initializers that are no inputs, which IR version "
                f"{context.ir_version} has not (convert the model to IR version 8)"
            )
        return self._refuses_stage(place) or _refuses_numbers(place)

    @abstractmethod
    def _refuses_stage(self, place: Place) -> str | None:
        """Return why this operator cannot be the stage at its site."""

    @abstractmethod
    def emit(self, nodes: Nodes, x: gs.Tensor, place: Place) -> gs.Variable:
        """Write the node."""


def _refuses_numbers(place: Place) -> str | None:
    weight = place.stage.weight
    if weight.scales is None or not np.isfinite(weight.scales).all():
        return "its scales are not finite"
    if place.input_scale is not None and not np.isfinite(floats(place.input_scale)).all():
        return "the factors of its inputs are not finite"
    inputs = inputs_of(place)
    if inputs > MAX_INPUTS:
        return f"the operator adds at most {MAX_INPUTS} products, the weight has {inputs} inputs"
    return None


def inputs_of(place: Place) -> int:
    """Return the products that make one output."""
    shape = place.stage.weight.shape
    return prod(shape[1:]) if place.stage.weight.kernel else shape[-2]


def floats(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return values as the operators take them."""
    return np.ascontiguousarray(values, np.float32)


def input_factors(place: Place, count: int) -> npt.NDArray[np.float32]:
    """Return what each of so many inputs or channels is multiplied by."""
    if place.input_scale is None:
        return np.ones(count, np.float32)
    return floats(place.input_scale)


def with_own_bias(place: Place) -> tuple[Place, npt.NDArray[np.float32]]:
    """Return the place without the bias that the operator adds itself, and that bias.

    That is a constant one, a number for each feature. Any other stays at the place.
    """
    own = np.zeros(place.features, np.float32)
    numbers = place.bias_numbers
    if place.bias is None or numbers is None or place.alpha != 1:
        return place, own
    *_, rows, columns = (1, 1, *numbers.shape)
    last = place.site.is_convolution or place.site.layout is Layout.LAST
    entries = columns if last else rows
    if numbers.size != entries or entries not in (1, place.features):
        return place, own  # one for each row of the data
    added = floats(place.beta * numbers.astype(np.float64).reshape(-1))
    if not np.isfinite(added).all():
        return place, own
    return replace(place, bias=None), own + added


def constants_of(nodes: Nodes, place: Place, weights: TernaryOperator) -> list[gs.Constant]:
    """Return the node's inputs after the data."""
    return [nodes.constant(values, place, hint) for hint, values in weights.constants.items()]
