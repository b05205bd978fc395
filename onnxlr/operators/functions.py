"""Model-local functions that let a model with ternary operators run where the op library is not.

A function has the domain and the name of its operator, and one serves all nodes of a model.
Runtimes that have a kernel of that name prefer the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import helper

from onnxlr.errors import ModelError
from onnxlr.model.scopes import scopes
from onnxlr.operators.body import LOWEST_OPSET, Body
from onnxlr.operators.conv_body import write_conv
from onnxlr.operators.matmul_body import write_matmul
from onnxlr.operators.products import Needs
from onnxlr.operators.schema import ACCURACY_LEVELS, DOMAIN, GROUP_SIZES, LAYOUT, MAX_TERMS, VERSION

__all__ = ["LOWEST_IR_VERSION", "add_functions", "function_bodies"]

LOWEST_IR_VERSION = 8
_INPUTS = ("X", "codes", "scales", "input_scale", "bias")
_ATTRIBUTES = ("K", "N", "group_size", "terms", "layout", "accuracy_level")
_WINDOW = ("kernel_shape", "strides", "pads", "dilations", "group", "channels")
_WRITERS = {"TernaryConv": write_conv, "TernaryMatMul": write_matmul}


def function_bodies(opset: int, needs: Mapping[str, Needs]) -> list[onnx.FunctionProto]:
    """Return the functions of operators.

    Parameters
    ----------
    opset
        Version of the standard operators in the model.
    needs
        By operator.

    Raises
    ------
    ModelError
        If the opset lacks operators that the functions need.
    """
    if opset < LOWEST_OPSET:
        raise ModelError(
            f"the model has opset {opset}; functions of ternary operators need opset"
            f" {LOWEST_OPSET} or later: convert the model to one."
        )
    return [_function(operator, opset, need) for operator, need in sorted(needs.items())]


def add_functions(model: onnx.ModelProto) -> None:
    """Give a model the functions that its ternary nodes need, and the import of their domain.

    Functions of these operators that the model has already are written anew. A model without such
    nodes stays as it is.

    Raises
    ------
    ModelError
        If a node is not as the specification says, or if opset or IR version are too low.
    """
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    needs = _needs_of(model)
    if not needs:
        return
    if model.ir_version < LOWEST_IR_VERSION:
        raise ModelError(
            f"the model has IR version {model.ir_version}; functions of ternary operators need IR"
            f" version {LOWEST_IR_VERSION} or later."
        )
    functions = function_bodies(opset, needs)
    others = [f for f in model.functions if not _is_own(f.domain, f.name)]
    del model.functions[:]
    model.functions.extend([*others, *functions])
    if all(o.domain != DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _function(operator: str, opset: int, needs: Needs) -> onnx.FunctionProto:
    body = Body(opset)
    _WRITERS[operator](body, needs)
    attributes = (*_ATTRIBUTES, *_WINDOW) if operator == "TernaryConv" else _ATTRIBUTES
    return helper.make_function(
        DOMAIN,
        operator,
        _INPUTS,
        ["Y"],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes,
    )


def _is_own(domain: str, name: str) -> bool:
    return domain == DOMAIN and name in _WRITERS


def _needs_of(model: onnx.ModelProto) -> dict[str, Needs]:
    needs: dict[str, Needs] = {}
    for scope in scopes(model):
        for node in scope.graph.node:
            if not _is_own(node.domain, node.op_type):
                continue
            need = _need_of(node)
            known = needs.get(node.op_type)
            needs[node.op_type] = need if known is None else known.merged(need)
    return needs


def _need_of(node: onnx.NodeProto) -> Needs:
    found: dict[str, Any] = {
        a.name: helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name
    }
    missing = [name for name in _ATTRIBUTES if not isinstance(found.get(name), int)]
    if missing or len(node.input) != len(_INPUTS) or "" in node.input:
        raise ModelError(
            f"{node.op_type} node '{node.name}' has the inputs {list(node.input)} and lacks the"
            f" attributes {missing}; expected {len(_INPUTS)} inputs and all attributes."
        )
    _check_attribute(node, found, "group_size", (*GROUP_SIZES, found["K"]))
    _check_attribute(node, found, "terms", range(1, MAX_TERMS + 1))
    _check_attribute(node, found, "accuracy_level", ACCURACY_LEVELS)
    _check_attribute(node, found, "layout", (LAYOUT,))
    grouped = found["group_size"] < found["K"]
    return Needs(frozenset({found["accuracy_level"]}), grouped, found["terms"])


def _check_attribute(
    node: onnx.NodeProto, found: Mapping[str, int], name: str, allowed: Sequence[int]
) -> None:
    if found[name] not in allowed:
        raise ModelError(
            f"{node.op_type} node '{node.name}' has {name} {found[name]}; expected one of"
            f" {', '.join(map(str, allowed))}."
        )
