"""Weights as sums of few atoms of a dictionary: what is fitted, and how."""

from onnxlr.methods.atoms.candidates import Asked, candidates
from onnxlr.methods.atoms.form import Form
from onnxlr.methods.atoms.rounds import Fitted, fit
from onnxlr.methods.atoms.search import promising, search
from onnxlr.methods.atoms.sizes import BIT, Sizes
from onnxlr.methods.atoms.tiles import Tiles
from onnxlr.methods.atoms.weight import Weight

__all__ = [
    "BIT",
    "Asked",
    "Fitted",
    "Form",
    "Sizes",
    "Tiles",
    "Weight",
    "candidates",
    "fit",
    "promising",
    "search",
]
