"""Weights as tensors of higher order: their modes, networks of cores, ranks, and how they fit."""

from onnxlr.methods.tensors.method import NetworkChain, Structure, TensorMethod, Tensors
from onnxlr.methods.tensors.modes import Modes, check_kernel, factor_sizes
from onnxlr.methods.tensors.network import Network
from onnxlr.methods.tensors.options import TensorOptions
from onnxlr.methods.tensors.ranks import nested_ranks, ranks_asked, spectrum_of
from onnxlr.methods.tensors.steps import Steps

__all__ = [
    "Modes",
    "Network",
    "NetworkChain",
    "Steps",
    "Structure",
    "TensorMethod",
    "TensorOptions",
    "Tensors",
    "check_kernel",
    "factor_sizes",
    "nested_ranks",
    "ranks_asked",
    "spectrum_of",
]
