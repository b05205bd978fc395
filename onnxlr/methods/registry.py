"""The methods by name."""

from __future__ import annotations

from typing import Any

from onnxlr.errors import UsageError, check_known
from onnxlr.methods.cp import Cp
from onnxlr.methods.kronecker import Kronecker
from onnxlr.methods.method import Keep, Method, Options, option_names
from onnxlr.methods.quantize import Quantize
from onnxlr.methods.semi_tensor_ring import SemiTensorRing
from onnxlr.methods.semi_tensor_train import SemiTensorTrain
from onnxlr.methods.semi_tucker import SemiTucker
from onnxlr.methods.sparse_quantized import SparseQuantized
from onnxlr.methods.svd import Svd
from onnxlr.methods.tensor_ring import TensorRing
from onnxlr.methods.tensor_train import TensorTrain
from onnxlr.methods.ternary import Ternary
from onnxlr.methods.ternary_svd import TernarySvd
from onnxlr.methods.tucker import Tucker

__all__ = ["METHODS", "find_method", "options_for"]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Keep(),
        Quantize(),
        Svd(),
        Tucker(),
        Cp(),
        TensorTrain(),
        TensorRing(),
        SemiTucker(),
        SemiTensorTrain(),
        SemiTensorRing(),
        Kronecker(),
        Ternary(),
        TernarySvd(),
        SparseQuantized(),
    )
}
"""Every method, by the name that the command line and plans use."""


def find_method(name: str) -> Method:
    """Return the method of that name; raises UsageError naming the nearest."""
    check_known("method", name, METHODS)
    return METHODS[name]


def options_for(method: str, values: dict[str, Any]) -> Options:
    """Return a method's options; raises UsageError for one that it has not."""
    kind = find_method(method).options
    for name in values:
        if name not in option_names(kind):
            known = ", ".join(option_names(kind)) or "none"
            raise UsageError(f"method '{method}' has no option '{name}'; it has {known}")
    return kind(**values)
