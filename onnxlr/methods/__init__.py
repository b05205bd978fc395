"""What approximates a weight: one file per method."""

from onnxlr.methods.budget import Budget
from onnxlr.methods.method import Keep, Method, Options, Setting
from onnxlr.methods.quantize import Quantize
from onnxlr.methods.registry import METHODS, find_method
from onnxlr.methods.svd import Svd, SvdOptions

__all__ = [
    "METHODS",
    "Budget",
    "Keep",
    "Method",
    "Options",
    "Quantize",
    "Setting",
    "Svd",
    "SvdOptions",
    "find_method",
]
