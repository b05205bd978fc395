"""What the float constants of a model are for, by the operators and inputs that read them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxlr.operators.schema import DOMAIN
from onnxlr.training.flow import Flow, Use, is_move
from onnxlr.training.program import Call

__all__ = ["KINDS", "role_of"]

KINDS = ("weights", "factors", "normalisations", "biases", "scales")
"""Roles, the first of which counts where a constant has several."""

_Places = dict[str, tuple[int, ...]]

_CONTRIB = "com.microsoft"
_RECURRENT: _Places = {"weights": (1, 2), "biases": (3,)}
_AFFINE: _Places = {"normalisations": (1, 2)}
_KERNEL: _Places = {"weights": (1,), "biases": (2,)}
_TERNARY: _Places = {"scales": (2,), "factors": (3,), "biases": (4,)}
_PLACES: dict[tuple[str, str], _Places] = {
    ("", "MatMul"): {"weights": (0, 1)},
    ("", "Gemm"): {"weights": (0, 1), "biases": (2,)},
    ("", "Conv"): _KERNEL,
    ("", "ConvTranspose"): _KERNEL,
    ("", "Gather"): {"weights": (0,)},
    ("", "LSTM"): _RECURRENT,
    ("", "GRU"): _RECURRENT,
    ("", "RNN"): _RECURRENT,
    ("", "LayerNormalization"): _AFFINE,
    ("", "BatchNormalization"): _AFFINE,
    ("", "InstanceNormalization"): _AFFINE,
    ("", "GroupNormalization"): _AFFINE,
    ("", "RMSNormalization"): {"normalisations": (1,)},
    (_CONTRIB, "FusedMatMul"): {"weights": (0, 1)},
    (_CONTRIB, "MatMulNBits"): {"scales": (2,), "biases": (5,)},
    (_CONTRIB, "SkipLayerNormalization"): {"normalisations": (2, 3), "biases": (4,)},
    (_CONTRIB, "BiasGelu"): {"biases": (1,)},
    (_CONTRIB, "FastGelu"): {"biases": (1,)},
    (DOMAIN, "TernaryMatMul"): _TERNARY,
    (DOMAIN, "TernaryConv"): _TERNARY,
}
"""Inputs by operator, and what is read there."""

_PRODUCTS = frozenset(
    (
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "MatMulInteger", "ConvInteger", "Einsum"),
        *("FusedMatMul", "MatMulNBits", "TernaryMatMul", "TernaryConv"),
    )
)
_NORMALISED = frozenset(("LayerNormalization", "InstanceNormalization", "GroupNormalization"))
_LINEAR = frozenset(("Cast", "Mul", "Add", "MatMul", "ReduceSum", "Neg", "Concat"))
_DEPTH = 6
"""Nodes between a product and what is added to it, at most."""


def role_of(flow: Flow, name: str, is_new: bool) -> str | None:
    """Return what a float constant is for.

    Parameters
    ----------
    flow
        Of the model.
    name
        A float constant of the main graph.
    is_new
        Whether it came with a rewrite: then it may also be a factor of data, feature by feature.

    Returns
    -------
    str or None
        One of `KINDS`; None where a reader is not known to use trained numbers there: all readers
        must. So it is with epsilons, roots of sizes, masks, bounds, and what is added or multiplied
        to data that is neither a product nor normalised.
    """
    array = flow.model.constants[name]
    if flow.is_open(name) or not array.size:
        return None
    found = set()
    only_ones = bool((array.astype(np.float64) == 1).all())
    for use, scales_codes in _readers(flow, name):
        role = _role(flow, use, np.shape(array), is_new)
        if role is None or (scales_codes and only_ones):  # what repeats scales for each code
            return None
        found.add("scales" if scales_codes and role == "weights" else role)
    return next((kind for kind in KINDS if kind in found), None)


def _readers(flow: Flow, name: str) -> Iterator[tuple[Use, bool]]:
    """Yield who reads, with data, a constant or what is made of it, and whether it scales codes.

    What is made of it by steps that are not linear has no reader, and is no parameter: it yields
    the step itself.
    """
    left, seen = [(name, False)], {name}
    while left:
        current, scaling = left.pop()
        for use in flow.uses(current):
            if not flow.fixed.issuperset(use.call.outputs):
                yield use, scaling
                continue
            linear = is_move(use) or use.at("Gather", 0) or use.call.operator in _LINEAR
            if not linear or use.call.domain:
                yield use, scaling
                continue
            scales = scaling or (use.at("Mul") and not _is_float(flow, use.other))
            for output in use.call.outputs:
                if output not in seen:
                    seen.add(output)
                    left.append((output, scales))


def _is_float(flow: Flow, name: str) -> bool:
    """Whether a fixed tensor is made of float constants, and of no codes."""
    left, seen = [name], {name}
    while left:
        current = left.pop()
        if current in flow.model.constants:
            if not flow.model.constant(current).is_floating_point():
                return False
            continue
        call = flow.makers[current]
        operands = call.inputs[:1] if is_move(Use(call, 0)) else call.inputs
        fresh = [name for name in operands if name and name not in seen]
        seen.update(fresh)
        left += fresh
    return True


def _role(flow: Flow, use: Use, shape: tuple[int, ...], is_new: bool) -> str | None:
    call = use.call
    known = _PLACES.get((call.domain, call.operator), {})
    for role, places in known.items():
        if use.place in places:
            return _checked(role, call, shape)
    if flow.fixed.issuperset(call.outputs) or call.domain or not _is_vector(shape):
        return None
    if call.operator == "Add":
        return _added(flow, use, shape)
    if call.operator == "Mul" and np.prod(shape) > 1 and not _is_code(flow, use.other):
        if _is_normalised(flow, use.other) or _is_product(flow, use.other, strict=True):
            return "normalisations"
        return "factors" if is_new else None
    return None


def _is_code(flow: Flow, name: str) -> bool:
    """Whether a tensor is rows of a table of codes, or of their scales."""
    call = _source(flow, name)
    return call is not None and call.operator == "Gather" and call.inputs[0] in flow.fixed


def _checked(role: str, call: Call, shape: tuple[int, ...]) -> str | None:
    """Return a role; numbers without axes and vectors are no weights, but of a MatMul."""
    if role == "weights" and len(shape) < 2 and call.operator != "MatMul":
        return None
    return role


def _is_vector(shape: tuple[int, ...]) -> bool:
    return sum(size != 1 for size in shape) <= 1


def _added(flow: Flow, use: Use, shape: tuple[int, ...]) -> str | None:
    """Return what is added: a single number is a bias only right behind a product."""
    single = np.prod(shape) == 1
    if _is_product(flow, use.other, strict=single):
        return "biases"
    source = _source(flow, use.other)
    if source is None or source.operator != "Mul" or single:
        return None
    scaled = any(_is_normalised(flow, name) for name in source.inputs)
    return "normalisations" if scaled else None


def _source(flow: Flow, name: str) -> Call | None:
    """Return the node that made a tensor's numbers, before they were moved, cast or rounded."""
    return flow.makers.get(flow.behind(name, _keeps))


def _keeps(use: Use) -> bool:
    rounds = use.at("QuantizeLinear", 0) or use.at("DequantizeLinear", 0)
    return rounds or is_move(use) or use.at("Cast")


def _is_product(flow: Flow, name: str, strict: bool = False, depth: int = _DEPTH) -> bool:
    """Whether a tensor is a product, unless `strict` with something added or scaled."""
    call = _source(flow, name)
    if call is None or depth == 0:
        return False
    if call.operator in _PRODUCTS:
        return not flow.fixed.issuperset(call.outputs)
    if strict or call.domain or call.operator not in ("Add", "Mul"):
        return False
    return any(_is_product(flow, operand, strict, depth - 1) for operand in call.inputs)


def _is_normalised(flow: Flow, name: str) -> bool:
    """Whether a tensor is data divided by its deviation."""
    call = _source(flow, name)
    if call is None or flow.fixed.issuperset(call.outputs):
        return False
    if call.operator in _NORMALISED:
        return True
    if call.operator == "Div":
        divisor = _source(flow, call.inputs[1])
        return divisor is not None and divisor.operator in ("Sqrt", "Pow")
    if call.operator == "Mul":
        makers = [_source(flow, operand) for operand in call.inputs]
        return any(made is not None and _is_inverse(flow, made) for made in makers)
    return False


def _is_inverse(flow: Flow, call: Call) -> bool:
    """Whether a node divides 1 by a root."""
    if call.operator == "Reciprocal":
        root = _source(flow, call.inputs[0])
    elif call.operator == "Div" and call.inputs[0] in flow.fixed:
        root = _source(flow, call.inputs[1])
    else:
        return False
    return root is not None and root.operator == "Sqrt"
