"""Chains of steps that take features apart, with the dense weight they are by numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxlr.numbers import Format
from onnxlr.stages import Convolution, Fold, Linear, ModeProduct, Stage
from tests.onelayer import LEVELS, Array, distance, ir_version_of, newest_opset, run

ALL_OPSETS = sorted({7, 9, 10, 11, 13, 17, 21, newest_opset()})
OPSETS = st.sampled_from(ALL_OPSETS)
APART = ("mode", "fold")
MOST = 120
"""Features of drawn chains."""


def normal(seed: int, *shape: int, dtype: str = "float32") -> Array:
    """Return random numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def kronecker(before: int, matrix: Array, behind: int) -> Array:
    """Return `I ⊗ F ⊗ I`."""
    return np.kron(np.kron(np.eye(before), matrix.astype(np.float64)), np.eye(behind))


def permutation(dims: Sequence[int], order: Sequence[int]) -> Array:
    """Return the matrix that puts a tensor's axes in another order, `(inputs, outputs)`."""
    sources = np.arange(prod(dims)).reshape(dims).transpose(order).reshape(-1)
    return np.eye(len(sources))[:, sources]


def linear(matrix: Array, format: str | None = None) -> Linear:
    """Return the stage of a matrix, in its own type or in a format."""
    return Linear.of(matrix).encoded(Format.parse(format or matrix.dtype.name), matrix.dtype)


def convolution(
    kernel: Array, window: Sequence[int], groups: int = 1, format: str | None = None
) -> Convolution:
    """Return the stage of a kernel, in its own type or in a format."""
    kept = Format.parse(format or kernel.dtype.name)
    return Convolution.of(kernel, groups, tuple(window)).encoded(kept, kernel.dtype)


def along_channels(before: int, kernel: Array, behind: int, groups: int = 1) -> Array:
    """Return the whole kernel of a convolution in groups along one mode, of one group."""
    outputs, inputs, *extent = kernel.shape
    whole = np.zeros((outputs, inputs * groups, *extent))
    for group in range(groups):
        rows, columns = (slice(group * n, (group + 1) * n) for n in (outputs // groups, inputs))
        whole[rows, columns] = kernel[rows]
    eyes = np.eye(before), np.eye(behind)
    spread = np.einsum("ab,oi...,st->aosbit...", eyes[0], whole, eyes[1])
    return spread.reshape(before * outputs * behind, -1, *extent)


def in_order(kernel: Array, later: Array) -> Array:
    """Return the kernel of a convolution and a later one, if no axis is wide in both."""
    return np.einsum("or...,ri...->oi...", later.astype(np.float64), kernel)


@dataclass
class Steps:
    """Stages, and the dense weight that they are together."""

    stages: list[Stage] = field(default_factory=list)
    dense: Array = field(default_factory=lambda: np.zeros(0))


def _parts(draw: st.DrawFn, count: int, parts: int) -> list[int]:
    """Return so many factors of a number."""
    found = []
    for _ in range(parts - 1):
        divisors = [d for d in range(1, count + 1) if count % d == 0]
        found.append(draw(st.sampled_from(divisors)))
        count //= found[-1]
    return [*found, count]


def _fold(draw: st.DrawFn, count: int) -> tuple[list[int], list[int]]:
    dims = _parts(draw, count, draw(st.integers(1, 4)))
    return dims, draw(st.permutations(range(len(dims))))


@st.composite
def row_chains(
    draw: st.DrawFn, kinds: Sequence[str] = (*APART, "linear"), dtype: str = "float32"
) -> Steps:
    """Return a chain of matrices, at least one of them with features apart."""
    count = prod(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    seed = draw(st.integers(0, 2**16))
    steps = Steps(dense=np.eye(count))
    names = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    if not set(names) & set(APART):
        names.insert(draw(st.integers(0, len(names))), draw(st.sampled_from(kinds[:1])))
    for number, name in enumerate(names):
        count = steps.dense.shape[1]
        if name == "fold":
            dims, order = _fold(draw, count)
            steps.stages.append(Fold(tuple(dims), tuple(order)))
            steps.dense = steps.dense @ permutation(dims, order)
            continue
        before, inputs, behind = _parts(draw, count, 3) if name == "mode" else (1, count, 1)
        outputs = draw(st.integers(1, max(1, min(5, MOST // (before * behind)))))
        matrix = normal(seed + number, inputs, outputs, dtype=dtype)
        stage = linear(matrix)
        is_mode = name == "mode" and before * behind > 1
        steps.stages.append(ModeProduct(stage, before, behind) if is_mode else stage)
        steps.dense = steps.dense @ kronecker(before, matrix, behind)
    return steps


@st.composite
def channel_chains(draw: st.DrawFn, extent: Sequence[int]) -> Steps:
    """Return a chain of convolutions of which each axis is the window of exactly one."""
    axes, ones = len(extent), [1] * len(extent)
    count = prod(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    seed = draw(st.integers(0, 2**16))
    steps = Steps(dense=np.eye(count).reshape(count, count, *ones))
    names = draw(st.lists(st.sampled_from([*APART, "plain"]), max_size=3))
    names.insert(draw(st.integers(0, len(names))), "mode")
    moving = [number for number, name in enumerate(names) if name != "fold"]
    windows = {axis: draw(st.sampled_from(moving)) for axis in range(axes)}
    for number, name in enumerate(names):
        count = len(steps.dense)
        if name == "fold":
            dims, order = _fold(draw, count)
            steps.stages.append(Fold(tuple(dims), tuple(order), axes))
            matrix = permutation(dims, order).T
            steps.dense = in_order(steps.dense, matrix.reshape(count, count, *ones))
            continue
        before, inputs, behind = _parts(draw, count, 3) if name == "mode" else (1, count, 1)
        groups = _parts(draw, inputs, 2)[0]
        most = max(1, min(3, MOST // (before * behind * groups)))
        outputs = groups * draw(st.integers(1, most))
        window = [axis for axis in range(axes) if windows[axis] == number]
        sizes = [extent[axis] if axis in window else 1 for axis in range(axes)]
        kernel = normal(seed + number, outputs, inputs // groups, *sizes)
        stage = convolution(kernel, window, groups)
        is_mode = before * behind > 1
        steps.stages.append(ModeProduct(stage, before, behind) if is_mode else stage)
        steps.dense = in_order(steps.dense, along_channels(before, kernel, behind, groups))
    return steps


def one_model(
    node: onnx.NodeProto,
    data: tuple[str, Sequence[Any]],
    constants: Mapping[str, Array],
    opset: int,
    rank: int | None = None,
) -> onnx.ModelProto:
    """Return a model of one node; of its output the rank is stated, that of the data if None."""
    kind = helper.np_dtype_to_tensor_dtype(next(iter(constants.values())).dtype)
    dims = [None] * (len(data[1]) if rank is None else rank)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(data[0], kind, data[1])],
        [helper.make_tensor_value_info(node.output[0], kind, dims)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version_of(opset))


def expect_dims(
    changed: onnx.ModelProto, feeds: Mapping[str, Array], own: Sequence[str] = ()
) -> None:
    """Compare what is stated of each tensor that the model did not own with what is computed.

    Nothing is stated of a bias times beta, which may be a scalar or a matrix.
    """
    stated = {value.name: value for value in changed.graph.value_info}
    made = [name for node in changed.graph.node[:-1] for name in node.output]
    assert sorted(stated) == sorted(n for n in made if n not in own and ".Beta" not in n)
    symbols: dict[str, int] = {}
    for value in changed.graph.input:
        if value.name in feeds:
            sizes = feeds[value.name].shape
            symbols |= {
                d: s for d, s in zip(_dims(value), sizes, strict=True) if isinstance(d, str)
            }
    probed = onnx.ModelProto()
    probed.CopyFrom(changed)
    probed.graph.output.extend(changed.graph.value_info)
    for name, result in zip(stated, run(probed, feeds, LEVELS[0])[1:], strict=True):
        tensor = stated[name].type.tensor_type
        assert helper.tensor_dtype_to_np_dtype(tensor.elem_type) == result.dtype
        assert len(_dims(stated[name])) == result.ndim
        for dim, size in zip(_dims(stated[name]), result.shape, strict=True):
            assert dim is None or symbols.get(dim, dim) == size, (
                name,
                _dims(stated[name]),
                result.shape,
            )


def _dims(value: onnx.ValueInfoProto) -> list[Any]:
    return [
        d.dim_value if d.HasField("dim_value") else d.dim_param or None
        for d in value.type.tensor_type.shape.dim
    ]


def expect_output(
    changed: onnx.ModelProto, feeds: Mapping[str, Array], expected: Array, limit: float = 1e-5
) -> None:
    """Run with graph optimisation off and on, and compare."""
    for level in LEVELS:
        found = run(changed, feeds, level)[0]
        assert found.shape == expected.shape
        assert distance(found, expected) <= limit, (level, distance(found, expected))


def kinds(changed: onnx.ModelProto) -> list[str]:
    """Return the operators of a model's nodes in order."""
    return [node.op_type for node in changed.graph.node]


def symbolic(shape: tuple[int, ...], features: int, known: list[bool]) -> list[Any]:
    """Return dimensions some of which are symbols; never that of the features."""
    return [
        size if axis == features or known[axis % len(known)] else f"D{axis}"
        for axis, size in enumerate(shape)
    ]


def larger(dims: list[Any], x: Array) -> tuple[int, ...]:
    """Return a shape with the symbols standing for more."""
    return tuple(s + 1 if isinstance(d, str) else s for d, s in zip(dims, x.shape, strict=True))


def unranked(node: onnx.NodeProto, constants: dict[str, Array], rank: int) -> onnx.ModelProto:
    """Return a model of a node whose data has a shape that is an input as well."""
    kinds_of = {"x": onnx.TensorProto.FLOAT, "s": onnx.TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "s"], ["h"]), node],
        "g",
        [helper.make_tensor_value_info(name, kind, ["N"]) for name, kind in kinds_of.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
