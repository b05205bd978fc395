"""Finding the linear layers of a model: which weight, used where, or why it is left alone."""

from onnxlr.layers.discovery import find_layers
from onnxlr.layers.layer import Layer, Layout, Site, exchange_channels
from onnxlr.layers.operands import Operand, Weight
from onnxlr.layers.weights import layer_keys, read_weight, weight_key

__all__ = [
    "Layer",
    "Layout",
    "Operand",
    "Site",
    "Weight",
    "exchange_channels",
    "find_layers",
    "layer_keys",
    "read_weight",
    "weight_key",
]
