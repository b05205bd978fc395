"""The ternary operators of the domain `onnxlr`: packed codes, nodes, and what they mean.

docs/operators.md is their specification. Nothing here runs a model or needs the op library.
"""

from onnxlr.operators.conv import TernaryConv
from onnxlr.operators.functions import add_functions
from onnxlr.operators.matmul import TernaryMatMul
from onnxlr.operators.packing import pack, pack_kernel, unpack, unpack_kernel
from onnxlr.operators.schema import TernaryOperator, make_node

__all__ = [
    "TernaryConv",
    "TernaryMatMul",
    "TernaryOperator",
    "add_functions",
    "make_node",
    "pack",
    "pack_kernel",
    "unpack",
    "unpack_kernel",
]
