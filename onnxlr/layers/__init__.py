"""Finding the linear layers of a model: which weight, used where, or why it is left alone."""

from onnxlr.layers.discovery import find_layers
from onnxlr.layers.layer import Layer, Layout, Site, exchange_channels
from onnxlr.layers.operands import Operand, Weight
from onnxlr.layers.weights import read_weight

__all__ = [
    "Layer",
    "Layout",
    "Operand",
    "Site",
    "Weight",
    "exchange_channels",
    "find_layers",
    "read_weight",
]
