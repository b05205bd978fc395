"""The steps a weight is replaced by: pure mathematics on numpy arrays."""

from onnxlr.stages.chain import Chain, Cost, Stage
from onnxlr.stages.convolution import Convolution
from onnxlr.stages.linear import Linear
from onnxlr.stages.lookup import Lookup

__all__ = ["Chain", "Convolution", "Cost", "Linear", "Lookup", "Stage"]
