"""Operators that multiply by weights and are left alone: listed, so that nothing is hidden."""

from __future__ import annotations

from onnxlr.operators import TernaryConv, TernaryMatMul
from onnxlr.operators.schema import DOMAIN

__all__ = ["LEFT_ALONE", "is_ternary"]

_QUANTISED = "already quantised: left alone"
_TERNARY = "ternary already: left alone"
_RECURRENT = "a recurrent operator: its weights are not handled"

LEFT_ALONE = {
    ("", "MatMulInteger"): _QUANTISED,
    ("", "QLinearMatMul"): _QUANTISED,
    ("", "ConvInteger"): _QUANTISED,
    ("", "QLinearConv"): _QUANTISED,
    ("", "LSTM"): _RECURRENT,
    ("", "GRU"): _RECURRENT,
    ("", "RNN"): _RECURRENT,
    ("com.microsoft", "MatMulNBits"): _QUANTISED,
    ("com.microsoft", "DynamicQuantizeMatMul"): _QUANTISED,
    ("com.microsoft", "MatMulIntegerToFloat"): _QUANTISED,
    ("com.microsoft", "QGemm"): _QUANTISED,
    (DOMAIN, TernaryMatMul.operator): _TERNARY,
    (DOMAIN, TernaryConv.operator): _TERNARY,
    ("com.microsoft", "FusedMatMul"): "a fused operator of ONNX Runtime: rewrite before fusing",
    ("com.microsoft", "FusedGemm"): "a fused operator of ONNX Runtime: rewrite before fusing",
    ("com.microsoft", "FusedConv"): "a fused operator of ONNX Runtime: rewrite before fusing",
    ("com.microsoft", "Attention"): "a fused operator of ONNX Runtime: rewrite before fusing",
}
"""Reason by domain and operator type."""


def is_ternary(domain: str, name: str) -> bool:
    """Return whether an operator, or the function of one, is a ternary one of the op library."""
    return LEFT_ALONE.get((domain, name)) is _TERNARY
