"""What a whole model needs, beside the nodes, to run with ternary operators."""

from __future__ import annotations

import warnings

import onnx

from onnxlr.errors import OnnxlrWarning
from onnxlr.model.scopes import scopes
from onnxlr.operators import add_functions
from onnxlr.operators.functions import LOWEST_IR_VERSION
from onnxlr.operators.schema import DOMAIN

__all__ = ["carry_functions"]


def carry_functions(model: onnx.ModelProto) -> None:
    """Give a model the functions of its ternary nodes, and the IR version that knows functions.

    A model without such nodes stays as it is. Nothing else of a model changes its meaning from IR
    version 4 to 8, so that raising the version is enough.

    Warns
    -----
    OnnxlrWarning
        If the IR version is raised.

    Raises
    ------
    ModelError
        If a node is not as the specification says, or if the opset is too low.
    """
    if not any(node.domain == DOMAIN for scope in scopes(model) for node in scope.graph.node):
        return
    if model.ir_version < LOWEST_IR_VERSION:
        warnings.warn(
            f"the model had IR version {model.ir_version} and has {LOWEST_IR_VERSION} now, which "
            "functions of ternary operators need (ONNX Runtime runs them from 1.16 on)",
            OnnxlrWarning,
            stacklevel=2,
        )
        model.ir_version = LOWEST_IR_VERSION
    add_functions(model)
