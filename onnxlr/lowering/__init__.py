"""Writing a stage as ONNX nodes: one file per way of writing, and targets that order them."""

from onnxlr.lowering.constants import as_constants
from onnxlr.lowering.context import ACTIVATIONS, Context
from onnxlr.lowering.functions import carry_functions
from onnxlr.lowering.layers import lower_layer, released_by
from onnxlr.lowering.targets import TARGETS, LoweringRefusedError, Target, find_target

__all__ = [
    "ACTIVATIONS",
    "TARGETS",
    "Context",
    "LoweringRefusedError",
    "Target",
    "as_constants",
    "carry_functions",
    "find_target",
    "lower_layer",
    "released_by",
]
