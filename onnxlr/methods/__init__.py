"""What approximates a weight: one file per method."""

from onnxlr.methods.budget import Budget
from onnxlr.methods.fitting import Fit, Recipe, fit_as_told, fit_best
from onnxlr.methods.method import Keep, Method, Options, Setting
from onnxlr.methods.quantize import Quantize, QuantizeOptions
from onnxlr.methods.registry import METHODS, find_method, options_for
from onnxlr.methods.spectrum import Spectrum
from onnxlr.methods.svd import Svd, SvdOptions

__all__ = [
    "METHODS",
    "Budget",
    "Fit",
    "Keep",
    "Method",
    "Options",
    "Quantize",
    "QuantizeOptions",
    "Recipe",
    "Setting",
    "Spectrum",
    "Svd",
    "SvdOptions",
    "find_method",
    "fit_as_told",
    "fit_best",
    "options_for",
]
