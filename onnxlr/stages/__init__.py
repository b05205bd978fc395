"""The steps a weight is replaced by: pure mathematics on numpy arrays."""

from onnxlr.stages.adjustment import Adjustment, Range
from onnxlr.stages.chain import Chain, Stage
from onnxlr.stages.convolution import Convolution
from onnxlr.stages.cost import Cost
from onnxlr.stages.fold import Fold
from onnxlr.stages.khatri_rao import KhatriRao
from onnxlr.stages.linear import Linear
from onnxlr.stages.lookup import Lookup
from onnxlr.stages.mode_product import ModeProduct, along
from onnxlr.stages.recombined import (
    Recombined,
    RecombinedConvolution,
    RecombinedLinear,
    recombined,
)
from onnxlr.stages.scale import Scale
from onnxlr.stages.stored import Stored
from onnxlr.stages.sum import Sum

__all__ = [
    "Adjustment",
    "Chain",
    "Convolution",
    "Cost",
    "Fold",
    "KhatriRao",
    "Linear",
    "Lookup",
    "ModeProduct",
    "Range",
    "Recombined",
    "RecombinedConvolution",
    "RecombinedLinear",
    "Scale",
    "Stage",
    "Stored",
    "Sum",
    "along",
    "recombined",
]
