"""Random ternary nodes, right and wrong, in random sessions; nothing may crash or be wrong.

A seed makes one node. A right node is run on several inputs and compared with the arithmetic of
docs/operators.md; a wrong one is refused, or computes something, or refuses to.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state

import onnxlr
from tests.operators import reference
from tests.operators.ternary_nodes import (
    Array,
    TernaryNode,
    conv_node,
    matmul_node,
    open_session,
)

EDGES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 97, 127, 128, 129, 200)
"""Sizes around those of blocks, panels, groups and vectors."""
HUGE = (2**20, 2**20 + 1, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
EXTREMES = (0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-30, 3e-31, 1e30, 3.4e38, -3.4e38)
NOT_FINITE = (np.nan, np.inf, -np.inf)
ONNX_RUNTIME_ERRORS = tuple(
    found
    for found in vars(onnxruntime_pybind11_state).values()
    if isinstance(found, type) and issubclass(found, Exception)
)


@dataclass(frozen=True)
class Tried:
    """How often what happened."""

    right: int = 0
    refused: int = 0
    computed: int = 0

    def __add__(self, other: Tried) -> Tried:
        return Tried(
            self.right + other.right, self.refused + other.refused, self.computed + other.computed
        )


def try_seed(seed: int) -> Tried:
    """Make a node of a seed and try it; raises AssertionError if its result is wrong."""
    rng = np.random.default_rng(seed)
    node = _node(rng)
    with _instruction_set(rng):
        if rng.random() < 0.5:
            return _try_right(rng, node)
        return _try_wrong(rng, node)


@contextlib.contextmanager
def _instruction_set(rng: np.random.Generator) -> Iterator[None]:
    """Sessions of one process may differ in their instruction sets."""
    before = os.environ.get("ONNXLR_ISA")
    os.environ["ONNXLR_ISA"] = str(rng.choice(onnxlr.describe_ops().available))
    try:
        yield
    finally:
        os.environ.pop("ONNXLR_ISA")
        if before is not None:
            os.environ["ONNXLR_ISA"] = before


def _size(rng: np.random.Generator, most: int = 200) -> int:
    size = rng.choice(EDGES) if rng.random() < 0.7 else rng.integers(1, 201)
    return min(int(size), most)


def _node(rng: np.random.Generator) -> TernaryNode:
    common: dict[str, Any] = {
        "terms": int(rng.choice([1, 1, 2, 3, 8])),
        "level": int(rng.choice([0, 4])),
        "scaled": bool(rng.random() < 0.5),
        "group_size": rng.choice([None, 32, 64, 128]),
        "seed": int(rng.integers(1000)),
    }
    if common["group_size"] is not None:
        common["group_size"] = int(common["group_size"])
    if rng.random() < 0.5:
        return matmul_node(_size(rng), _size(rng), **common)
    axes = int(rng.integers(1, 3))

    def each(most: int, least: int = 1, count: int = axes) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(least, most + 1, count))

    group = int(rng.choice([1, 1, 2, 3, 7]))
    pointwise = rng.random() < 0.3
    return conv_node(
        _size(rng, 40) * group,
        _size(rng, 70) * group,
        (1,) * axes if pointwise else each(4),
        strides=each(1 if pointwise and rng.random() < 0.7 else 3),
        pads=each(0 if pointwise and rng.random() < 0.7 else 4, 0, 2 * axes),
        dilations=each(3),
        group=group,
        **common,
    )


def _shape(rng: np.random.Generator, node: TernaryNode) -> tuple[int, ...]:
    """Draw a shape of X that suits the node, often without rows."""
    rows = [int(n) for n in rng.choice([0, 1, 1, 2, 3, 4, 7, 9], 3)]
    if node.operator == "TernaryMatMul":
        if rng.random() < 0.1:
            rows[0] = int(rng.integers(30, 300))
        return (*rows[: rng.integers(0, 4)], node.attributes["K"])
    space = []
    for i, kernel in enumerate(node.attributes["kernel_shape"]):
        pads = node.window["pads"]
        extent = node.window["dilations"][i] * (kernel - 1) + 1
        least = max(0, extent - pads[i] - pads[i + node.rank - 2])
        space.append(least + int(rng.integers(0, 12)))
    return (rows[0], node.attributes["channels"], *space)


def _input(rng: np.random.Generator, shape: tuple[int, ...], finite: bool) -> Array:
    x = rng.normal(size=shape).astype(np.float32)
    x *= np.float32(10.0 ** rng.integers(-6, 7))
    values = EXTREMES if finite else EXTREMES + NOT_FINITE
    if rng.random() < (0.3 if finite else 1) and x.size:
        places = rng.integers(0, x.size, 1 + rng.integers(0, 4))
        x.flat[places] = rng.choice(values, len(places)).astype(np.float32)
    return x


def _assert_close(node: TernaryNode, x: Array, found: Array) -> None:
    """Compare with float64; rows as large as float32 lets them be are compared with their size."""
    with np.errstate(all="ignore"):
        expected = node.expected(x)
        size = _sizes(node, x)
    assert found.shape == expected.shape
    with np.errstate(all="ignore"):
        sane = np.isfinite(expected) & (size < 1e38)
        if node.attributes["accuracy_level"] == 0 and x.size:  # sums come before scales
            sane &= np.abs(x).max() < 1e37 / node.attributes["K"]
        right = np.abs(found - expected) <= 3e-5 * size + 1e-35
    assert right[sane].all(), node


def _sizes(node: TernaryNode, x: Array) -> Array:
    """Return how large each output's terms are: |x| · |scaled ternary| + |bias|."""
    sizes = dict(node.constants)
    for name in ("scales", "input_scale", "bias"):
        sizes[name] = np.abs(sizes[name])
    absolute = TernaryNode(
        node.operator,
        {**node.attributes, "accuracy_level": 0},
        sizes,
        np.abs(node.ternary) if node.attributes["accuracy_level"] == 0 else node.ternary**0,
        node.rank,
        node.window,
    )
    return absolute.expected(np.abs(x))


def _try_right(rng: np.random.Generator, node: TernaryNode) -> Tried:
    session = open_session(node.model(), int(rng.integers(1, 4)))
    for _ in range(3):
        x = _input(rng, _shape(rng, node), finite=True)
        _assert_close(node, x, session.run(None, {"X": x})[0])
    x = _input(rng, _shape(rng, node), finite=False)
    found = session.run(None, {"X": x})[0]
    if node.attributes["accuracy_level"] == 4:
        _assert_same_rows_finite(node, x, found)
    else:
        _assert_not_finite(node, x, found)
    return Tried(right=1)


def _assert_not_finite(node: TernaryNode, x: Array, found: Array) -> None:
    """At level 0 what is not finite spoils each output that has it with a weight of −1 or 1."""
    scale = node.constants["input_scale"]
    with np.errstate(all="ignore"):
        scaled = x * scale.reshape(-1, *[1] * (node.rank - 2)) if node.window else x * scale
    constants = {name: np.ones_like(value) for name, value in node.constants.items()}
    constants["bias"] = np.zeros_like(constants["bias"])
    counted = TernaryNode(
        node.operator, node.attributes, constants, np.abs(node.ternary), node.rank, node.window
    ).expected((~np.isfinite(scaled)).astype(np.float32))
    assert not np.isfinite(found[counted > 0]).any(), node


def _assert_same_rows_finite(node: TernaryNode, x: Array, found: Array) -> None:
    """At level 4 a row with an entry that is not finite is NaN; others know nothing of it."""
    if not x.size or not found.size:
        return
    with np.errstate(all="ignore"):
        scale = node.constants["input_scale"]
        if node.operator == "TernaryMatMul":
            broken = ~np.isfinite(x * scale).all(axis=-1)
            assert (np.isnan(found).all(axis=-1) == broken).all()
            return
        scaled = x * scale.reshape(-1, *[1] * (node.rank - 2))
    kernel = tuple(node.attributes["kernel_shape"])
    rows, space = reference.patches(scaled, kernel, node.window)
    groups = node.window["group"]
    rows = rows.reshape(*rows.shape[:3], groups, -1)
    broken = ~np.isfinite(rows).all(axis=(2, 4))  # batch, place, group
    nan = np.isnan(found).reshape(len(x), groups, -1, int(np.prod(space))).all(axis=2)
    assert (nan.transpose(0, 2, 1) == broken).all()


def _number(rng: np.random.Generator) -> int:
    kind = rng.integers(4)
    if kind == 0:
        return int(rng.choice(HUGE))
    if kind == 1:
        return -int(rng.choice([1, 2, *HUGE]))
    return int(rng.integers(0, 140))


def _wrong_attributes(rng: np.random.Generator, node: TernaryNode) -> TernaryNode:
    changes: dict[str, Any] = {}
    for name in rng.choice(list(node.attributes), rng.integers(1, 4)):
        old = node.attributes[name]
        if not isinstance(old, list):
            changes[name] = _number(rng)
            continue
        new = [_number(rng) if rng.random() < 0.5 else int(n) for n in old]
        length = int(rng.integers(0, 6)) if rng.random() < 0.2 else len(new)
        changes[str(name)] = (new + [_number(rng) for _ in range(length)])[:length]
    # Padding may make an output of any size, which would be computed.
    if "pads" in changes:
        changes["pads"] = [min(pad, 300) if pad < 2**21 else pad for pad in changes["pads"]]
    return node.with_attributes(**changes)


def _wrong_constants(rng: np.random.Generator, node: TernaryNode) -> TernaryNode:
    name = str(rng.choice(list(node.constants)))
    values = node.constants[name].copy()
    kind = rng.integers(5)
    if kind == 0:
        raw = rng.integers(0, 256, values.nbytes).astype(np.uint8)
        values = raw.view(values.dtype).reshape(values.shape)
    elif kind == 1:
        axis = int(rng.integers(max(1, values.ndim)))
        values = np.take(values, range(int(rng.integers(0, max(1, values.shape[axis])))), axis)
    elif kind == 2:
        values = np.repeat(values, 2, int(rng.integers(max(1, values.ndim))))
    elif kind == 3:
        values = values.reshape(rng.permutation(values.shape))
    else:
        with np.errstate(invalid="ignore"):
            values = values.astype(rng.choice(["int8", "float16", "float64", "uint8", "float32"]))
    return node.with_constants(**{name: np.ascontiguousarray(values)})


def _wrong_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """Change some bytes of a model's file; ONNX Runtime reads most of what comes out."""
    changed = np.frombuffer(content, np.uint8).copy()
    changed[rng.integers(0, changed.size, rng.integers(1, 4))] = rng.integers(0, 256)
    return changed.tobytes()


def _wrong_shape(rng: np.random.Generator, node: TernaryNode) -> tuple[int, ...]:
    shape = list(_shape(rng, node))
    kind = rng.integers(4)
    if kind == 0 and shape:
        shape[int(rng.integers(len(shape)))] = int(rng.choice([0, 1, 2, 33]))
    elif kind == 1:
        shape = shape[1:]
    elif kind == 2:
        shape = [1, *shape]
    return tuple(shape)


def _try_wrong(rng: np.random.Generator, node: TernaryNode) -> Tried:
    for _ in range(int(rng.integers(0, 3))):
        node = (_wrong_attributes if rng.random() < 0.5 else _wrong_constants)(rng, node)
    right = _node(rng)  # for the shapes; a node that is wrong may have no right one
    declared = [_number(rng) for _ in range(rng.integers(1, 5))] if rng.random() < 0.2 else None
    if declared is not None:
        declared = [max(0, n) for n in declared]
    content = node.model(declared)
    if rng.random() < 0.1:
        content = _wrong_bytes(rng, content)
    computed = 0
    try:
        session = open_session(content)
    except (*ONNX_RUNTIME_ERRORS, ValueError):  # a message may hold what is not UTF-8
        return Tried(refused=1)
    for shape in (_wrong_shape(rng, right), _any_shape(rng, node)):
        with contextlib.suppress(*ONNX_RUNTIME_ERRORS, ValueError):
            session.run(None, {"X": _input(rng, shape, finite=False)})
            computed += 1
    return Tried(computed=computed, refused=2 - computed)


def _any_shape(rng: np.random.Generator, node: TernaryNode) -> tuple[int, ...]:
    """Draw a shape for a node that may be wrong."""
    a = node.attributes
    if node.operator == "TernaryMatMul":
        return (int(rng.integers(0, 4)), a["K"] if 0 < a["K"] < 10**5 else 3)
    channels = a["channels"] if 0 < a["channels"] < 1000 else 3
    return (
        int(rng.integers(0, 3)),
        channels,
        *(int(n) for n in rng.integers(0, 20, node.rank - 2)),
    )
