"""Ternary factors of one matrix: `W ≈ U diag(s) Vᵀ` with −1, 0 and 1 in U and V."""

from onnxlr.methods.semidiscrete.alternating import Alternating, ErrorOf
from onnxlr.methods.semidiscrete.published import Published
from onnxlr.methods.semidiscrete.spectral import spectral_norm
from onnxlr.methods.semidiscrete.terms import Goal, Terms

__all__ = ["Alternating", "ErrorOf", "Goal", "Published", "Terms", "spectral_norm"]
