"""The steps a weight is replaced by: pure mathematics on numpy arrays."""

from onnxlr.stages.chain import Chain, Cost, simplify
from onnxlr.stages.linear import Linear
from onnxlr.stages.scale import Scale

__all__ = ["Chain", "Cost", "Linear", "Scale", "simplify"]
