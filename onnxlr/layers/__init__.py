"""Finding the linear layers of a model: which weight, used where, or why it is left alone."""

from onnxlr.layers.discovery import find_layers
from onnxlr.layers.layer import Layer, Layout, Site
from onnxlr.layers.weights import Weight, read_weight, store_weight

__all__ = ["Layer", "Layout", "Site", "Weight", "find_layers", "read_weight", "store_weight"]
