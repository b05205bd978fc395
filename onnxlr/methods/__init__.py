"""What approximates a weight: one file per method."""

from onnxlr.methods.budget import Budget
from onnxlr.methods.fitting import Fit, Recipe, fit_as_told, fit_best
from onnxlr.methods.method import (
    Keep,
    Method,
    Options,
    Ordered,
    Rounding,
    Setting,
    format_of,
    option_names,
)
from onnxlr.methods.quantize import Quantize, QuantizeOptions
from onnxlr.methods.registry import METHODS, find_method, options_for
from onnxlr.methods.sparse_quantized import SparseQuantized, SparseQuantizedOptions
from onnxlr.methods.spectrum import Spectrum
from onnxlr.methods.svd import Svd, SvdOptions
from onnxlr.methods.ternary import Ternary, TernaryOptions
from onnxlr.methods.ternary_svd import TernarySvd, TernarySvdOptions

__all__ = [
    "METHODS",
    "Budget",
    "Fit",
    "Keep",
    "Method",
    "Options",
    "Ordered",
    "Quantize",
    "QuantizeOptions",
    "Recipe",
    "Rounding",
    "Setting",
    "SparseQuantized",
    "SparseQuantizedOptions",
    "Spectrum",
    "Svd",
    "SvdOptions",
    "Ternary",
    "TernaryOptions",
    "TernarySvd",
    "TernarySvdOptions",
    "find_method",
    "fit_as_told",
    "fit_best",
    "format_of",
    "option_names",
    "options_for",
]
