"""Runs models on the same inputs, compares their outputs, judges."""

from onnxlr.verification.comparison import Comparison
from onnxlr.verification.proof import Subject, prove
from onnxlr.verification.report import Check, Drift, Report
from onnxlr.verification.ternary import TernaryNodes
from onnxlr.verification.tolerance import DEFAULT_TOLERANCE, Tolerance

__all__ = [
    "DEFAULT_TOLERANCE",
    "Check",
    "Comparison",
    "Drift",
    "Report",
    "Subject",
    "TernaryNodes",
    "Tolerance",
    "prove",
]
