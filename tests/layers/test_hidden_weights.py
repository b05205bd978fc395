"""Weights behind other nodes: found, rewritten through them, or left alone for the right reason."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.methods import SvdOptions
from onnxlr.model import open_model
from onnxlr.plan import Choice, Plan
from tests.fixtures import save_external, svd_plan
from tests.onelayer import (
    LEVELS,
    Array,
    distance,
    model_of,
    newest_opset,
    rewritten,
    run,
    svd,
    truncated,
)

ANY = "cosine>=-1"
NEWEST = 21
RANK = 2
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def only(model: onnx.ModelProto) -> Any:
    """Return the one layer of a model."""
    (layer,) = find_layers(open_model(model))
    return layer


# -- Chains ------------------------------------------------------------------------------------


@dataclass
class Way:
    """Moves between a stored tensor and what a node takes, drawn from the node's end."""

    opset: int
    as_constant: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    settings: dict[str, Array] = field(default_factory=dict)
    replay: list[Any] = field(default_factory=list)

    def prepend(self, before: str, after: str, move: tuple[Any, ...]) -> None:
        """Put a move in front: its node, and what numpy does in its place."""
        kind, *rest = move
        aside = f"{after}.aside"
        if kind == "Identity":
            node = helper.make_node("Identity", [before], [after])
            act: Callable[[Array], Array] = np.copy
        elif kind == "Transpose":
            (perm,) = rest
            node = helper.make_node("Transpose", [before], [after], perm=perm)
            act = partial(np.transpose, axes=perm)
        elif kind == "Reshape":
            shape, spelled = rest
            self.settings[aside] = np.array(spelled, np.int64)
            node = helper.make_node("Reshape", [before, aside], [after])
            act = methodcaller("reshape", shape)
        elif kind == "Flatten":
            shape, axis = rest
            node = helper.make_node("Flatten", [before], [after], axis=axis)
            act = methodcaller("reshape", shape)
        elif kind == "Cast":
            (dtype,) = rest
            node = helper.make_node(
                "Cast", [before], [after], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            )
            act = methodcaller("astype", dtype)
        else:
            shape, axes = rest
            if self.opset < 13:
                node = helper.make_node(kind, [before], [after], axes=axes)
            else:
                self.settings[aside] = np.array(axes, np.int64)
                node = helper.make_node(kind, [before, aside], [after])
            act = methodcaller("reshape", shape)
        self.nodes.insert(0, node)
        self.replay.insert(0, act)


def _move(draw: Any, shape: tuple[int, ...], dtype: str) -> tuple[tuple[Any, ...], Any, str]:
    """Draw a move that ends in a shape and type: the move, the shape and the type before it."""
    kinds = ["Identity", "Transpose", "Reshape", "Cast", "Squeeze"]
    kinds += ["Unsqueeze"] * (1 in shape) + ["Flatten"] * (2 * (len(shape) == 2))
    kind = draw(st.sampled_from(kinds))
    if kind == "Transpose":
        perm = draw(st.permutations(range(len(shape))))
        before = [0] * len(shape)
        for to, source in enumerate(perm):
            before[source] = shape[to]
        return (kind, perm), tuple(before), dtype
    if kind == "Reshape":
        return (*_reshape(draw, shape), dtype)
    if kind == "Cast":
        return (kind, dtype), shape, draw(st.sampled_from(["float16", "float32", "float64"]))
    if kind == "Flatten":
        axis = draw(st.integers(0, 2))
        before = {0: shape, 1: (shape[0], 1, shape[1]), 2: (1, shape[0], shape[1])}[axis]
        if axis == 0 and shape[0] != 1:
            axis = 1
        return (kind, shape, axis), before, dtype
    if kind == "Squeeze":
        axis = draw(st.integers(0, len(shape)))
        return (kind, shape, [axis]), (*shape[:axis], 1, *shape[axis:]), dtype
    if kind == "Unsqueeze":
        axis = draw(st.sampled_from([a for a, size in enumerate(shape) if size == 1]))
        return (kind, shape, [axis]), (*shape[:axis], *shape[axis + 1 :]), dtype
    return (kind,), shape, dtype


def _reshape(draw: Any, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    size = math.prod(shape)
    before = draw(st.sampled_from(_factorings(size)))
    spelled = list(shape)
    for axis in range(min(len(shape), len(before))):
        if shape[axis] == before[axis] and draw(st.booleans()):
            spelled[axis] = 0
    if draw(st.booleans()):
        spelled[draw(st.integers(0, len(shape) - 1))] = -1
    return ("Reshape", shape, spelled), before


def _factorings(size: int) -> list[tuple[int, ...]]:
    pairs = [(a, size // a) for a in range(1, size + 1) if size % a == 0]
    triples = [(a, b, c // b) for a, c in pairs for b in range(1, c + 1) if c % b == 0]
    return [(size,), *pairs, *triples]


def _well_separated(shape: tuple[int, ...], seed: int) -> Array:
    """Return numbers whose every matrix view of two axes has well separated singular values."""
    random = np.random.default_rng(seed)
    rows, columns = shape[0], math.prod(shape[1:])
    u, _, vt = np.linalg.svd(random.standard_normal((rows, columns)), full_matrices=False)
    return np.asarray(u * 2.0 ** -np.arange(u.shape[1]) @ vt).reshape(shape)


# What the nodes compute, in numpy alone.


def _conv(x: Array, w: Array) -> Array:
    windows = sliding_window_view(x, w.shape[2:], axis=(2, 3))
    return np.asarray(np.einsum("bihwkl,oikl->bohw", windows, w))


def _conv_transpose(x: Array, w: Array) -> Array:
    *_, high, wide = w.shape
    y = np.zeros((x.shape[0], w.shape[1], x.shape[2] + high - 1, x.shape[3] + wide - 1))
    for k, m in itertools.product(range(high), range(wide)):
        part = np.einsum("bihw,io->bohw", x, w[:, :, k, m])
        y[:, :, k : k + x.shape[2], m : m + x.shape[3]] += part
    return y


def _kernel_truncated(w: Array, rank: int) -> Array:
    return truncated(w.reshape(len(w), -1), rank).reshape(w.shape)


def _spread_kernel_truncated(w: Array, rank: int) -> Array:
    swapped = w.swapaxes(0, 1)
    return _kernel_truncated(swapped, rank).swapaxes(0, 1)


@dataclass(frozen=True)
class Use:
    """A node that takes a weight: of what shape, beside what data, and what it computes."""

    operator: str
    shape: tuple[int, ...]
    data: tuple[int, ...]
    compute: Any
    left: bool = False
    attributes: tuple[tuple[str, Any], ...] = ()
    approximate: Any = truncated
    form: str | None = None

    def node(self, data: str, weight: str, result: str, name: str) -> onnx.NodeProto:
        inputs = [weight, data] if self.left else [data, weight]
        if self.operator == "Gemm":
            inputs.append("bias")
        return helper.make_node(self.operator, inputs, [result], name, **dict(self.attributes))


BIAS = np.full((1,), 0.5, np.float32)
USES = {
    "MatMul right": Use("MatMul", (12, 10), (3, 12), lambda x, w: x @ w),
    "MatMul left": Use("MatMul", (10, 12), (12, 3), lambda x, w: w @ x, left=True),
    "Gemm": Use("Gemm", (12, 10), (3, 12), lambda x, w: x @ w + 0.5),
    "Gemm transB": Use(
        "Gemm", (10, 12), (3, 12), lambda x, w: x @ w.T + 0.5, attributes=(("transB", 1),)
    ),
    "Gemm left": Use("Gemm", (10, 12), (12, 3), lambda x, w: w @ x + 0.5, left=True),
    "Conv": Use(
        "Conv", (6, 4, 3, 1), (2, 4, 5, 4), _conv, approximate=_kernel_truncated, form="channel"
    ),
    "ConvTranspose": Use(
        "ConvTranspose",
        (4, 6, 1, 3),
        (2, 4, 4, 5),
        _conv_transpose,
        approximate=_spread_kernel_truncated,
        form="channel",
    ),
}


@MANY
@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
@given(draws=st.data())
def test_a_weight_behind_any_chain_of_moves(use: Use, draws: Any) -> None:
    """The layer is found behind the chain, the result is numpy's, and only the way disappears."""
    draw = draws.draw
    opset = draw(st.sampled_from([7, 9, 11, 12, 13, 17, NEWEST]))
    way = Way(opset, draw(st.booleans()))
    shape, dtype, length = use.shape, "float32", draw(st.integers(1, 5))
    for position in range(length, 0, -1):
        move, shape, dtype = _move(draw, shape, dtype)
        way.prepend(f"t{position - 1}", f"t{position}", move)
    # backwards through the moves by their positions, so that the node sees separated values
    places = np.arange(math.prod(shape)).reshape(shape)
    for node, act in zip(way.nodes, way.replay, strict=True):
        places = places if node.op_type == "Cast" else act(places)
    stored = np.empty(math.prod(shape))
    stored[places.ravel()] = _well_separated(use.shape, draw(st.integers(0, 99))).ravel()
    stored = stored.reshape(shape).astype(dtype)
    # a fork: something else takes what there is after so many moves
    fork = draw(st.one_of(st.none(), st.integers(0, length)))

    weight = helper.make_node("Constant", [], ["t0"], value=numpy_helper.from_array(stored))
    constants = {"bias": BIAS, "stray": np.ones((2, 2), np.float32)}
    nodes = [] if not way.as_constant else [weight]
    if not way.as_constant:
        constants["t0"] = stored
    made, given = _settings(draw, way)
    nodes += made
    constants |= given
    nodes += way.nodes
    nodes += [
        helper.make_node("Transpose", ["stray"], ["turned"], perm=[1, 0]),
        helper.make_node("Identity", ["stray"], ["unused"]),
        helper.make_node("Identity", ["turned"], ["kept"]),
    ]
    outputs = ["y", "kept"]
    if fork is not None:
        nodes.append(helper.make_node("Cast", [f"t{fork}"], ["fork"], to=TensorProto.FLOAT))
        outputs.append("fork")
    nodes.append(use.node("x", f"t{length}", "y", "it"))
    x = np.random.default_rng(1).standard_normal(use.data).astype(np.float32)
    ir_version = 3 if opset == 7 else None
    model = model_of(nodes, {"x": x}, outputs, constants, opset, ir_version)

    layer = only(model)
    assert layer.skip is None
    assert layer.weight.name == "t0"
    assert bool(layer.other_uses) == (fork is not None)
    changed, reference = rewritten(
        model, Choice("svd", SvdOptions(rank=RANK, form=use.form), format=None)
    )

    operand, forked = stored, stored
    for position, act in enumerate(way.replay, 1):
        operand = act(operand)
        forked = operand if position == fork else forked
    expected = use.compute(x.astype(np.float64), use.approximate(operand, RANK))
    bound = 3e-3 if stored.dtype == np.float16 else 1e-5
    for level in LEVELS:
        result, kept, *rest = run(changed, {"x": x}, level)
        assert distance(result, expected) < bound
        assert np.array_equal(kept, np.ones((2, 2)))
        if fork is not None:
            np.testing.assert_array_equal(rest[0], forked.astype(np.float32))
    assert distance(run(reference, {"x": x})[0], expected) < max(bound, 1e-5)

    alive = 0 if fork is None else fork
    for result in (changed, reference):
        _only_the_way_is_gone(model, result, way, alive, stays=fork is not None, op=use.operator)


def _settings(draw: Any, way: Way) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Draw where each shape and axis is stored: in a Constant node or an initializer."""
    nodes, constants = [], {}
    for name, value in way.settings.items():
        if way.opset < 9 or draw(st.booleans()):  # Constant made floats only before opset 9
            constants[name] = value
        else:
            tensor = numpy_helper.from_array(value)
            nodes.append(helper.make_node("Constant", [], [name], value=tensor))
    return nodes, constants


def _only_the_way_is_gone(
    model: onnx.ModelProto, changed: onnx.ModelProto, way: Way, alive: int, stays: bool, op: str
) -> None:
    dead = {f"t{position}" for position in range(alive + 1, len(way.nodes) + 1)}
    dead |= {f"{name}.aside" for name in dead}
    dead |= set() if stays else {"t0"}
    expected = {n.output[0] for n in model.graph.node} | {t.name for t in model.graph.initializer}
    expected -= dead
    found = {n.output[0] for n in changed.graph.node} | {t.name for t in changed.graph.initializer}
    assert expected <= found
    assert not dead & found
    inputs = {v.name for v in model.graph.input} - dead
    assert inputs <= {v.name for v in changed.graph.input}
    assert not dead & {v.name for v in changed.graph.input}
    # every old node that stays is as it was, but for the layer's own
    before = {n.output[0]: n for n in model.graph.node if n.op_type != op}
    after = {n.output[0]: n for n in changed.graph.node}
    assert all(after[name] == node for name, node in before.items() if name not in dead)


# -- One weight, several ways ------------------------------------------------------------------

M, N = 12, 10
ROUNDS: dict[str, list[tuple[Any, ...]]] = {
    "plain": [],
    "identities": [("Identity",), ("Identity",)],
    "there and back": [("Transpose", [1, 0]), ("Transpose", [1, 0])],
    "flat": [("Reshape", (M * N,), [-1]), ("Reshape", (M, N), [M, -1])],
    "regrouped": [("Reshape", (M, 2, 5), [0, 2, 5]), ("Reshape", (M, N), [0, N])],
    "padded": [("Unsqueeze", (1, M, N), [0]), ("Squeeze", (M, N), [0])],
    "flattened": [("Unsqueeze", (M, 1, N), [1]), ("Flatten", (M, N), 1)],
    "via float64": [("Cast", "float64"), ("Cast", "float32")],
}
"""Ways from an (M, N) matrix back to itself."""

SHARED: dict[str, tuple[str, str, str, Any]] = {
    "x @ W": ("MatMul", "x W", "x", lambda x, w: x @ w),
    "turned: z @ Wt": ("MatMul", "z W", "z", lambda z, w: z @ w.T),
    "Wt @ x": ("MatMul", "W t", "x", lambda x, w: w.T @ x.T),
    "turned: W @ z": ("MatMul", "W t", "z", lambda z, w: w @ z.T),
    "Gemm transB": ("Gemm", "x W C", "x", lambda x, w: x @ w),
}
"""Nodes on one matrix: operator, inputs (`t` the data turned), what is turned, the result."""


@settings(parent=MANY, max_examples=40)
@given(
    ways=st.lists(
        st.tuples(
            st.sampled_from(sorted(ROUNDS)),
            st.sampled_from(sorted(SHARED)),
        ),
        min_size=2,
        max_size=5,
    ),
    opset=st.sampled_from([9, 13, NEWEST]),
)
def test_one_weight_behind_several_chains_is_one_layer(
    ways: list[tuple[str, str]], opset: int
) -> None:
    random = np.random.default_rng(3)
    weight = _well_separated((M, N), 5).astype(np.float32)
    x = random.standard_normal((3, M)).astype(np.float32)
    z = random.standard_normal((3, N)).astype(np.float32)
    approximation = truncated(weight, RANK)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {"W": weight, "C": np.zeros(1, np.float32)}
    expected = []
    for number, (round_name, use) in enumerate(ways):
        way = Way(opset, as_constant=False)
        moves = list(ROUNDS[round_name])
        if "Wt" in use or use == "Gemm transB":  # these take the transpose
            moves.append(("Transpose", [1, 0]))
        names = ["W", *(f"{number}.{position}" for position in range(1, len(moves) + 1))]
        for position in range(len(moves), 0, -1):
            way.prepend(names[position - 1], names[position], moves[position - 1])
        constants |= way.settings
        nodes += way.nodes
        last, result = names[-1], f"y{number}"
        operator, operands, turned, compute = SHARED[use]
        nodes.append(helper.make_node("Transpose", [turned], [f"{result}.t"], perm=[1, 0]))
        inputs = [{"W": last, "t": f"{result}.t"}.get(name, name) for name in operands.split()]
        attributes = {"transB": 1} if operator == "Gemm" else {}
        nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        expected.append(compute({"x": x, "z": z}[turned], approximation))
    outputs = [f"y{number}" for number in range(len(ways))]
    model = model_of(nodes, {"x": x, "z": z}, outputs, constants, opset)
    layer = only(model)
    assert layer.skip is None
    assert len(layer.sites) == len(ways)
    assert not layer.other_uses
    changed, reference = rewritten(model, svd(RANK))
    stored = [t for t in changed.graph.initializer if t.data_type == TensorProto.FLOAT]
    assert {math.prod(t.dims) for t in stored} - {1} == {M * RANK, N * RANK}
    assert len(stored) - 1 == 2  # the factors, once
    for level in LEVELS:
        for result, wanted in zip(run(changed, {"x": x, "z": z}, level), expected, strict=True):
            assert distance(result, wanted) < 1e-5
    for result, wanted in zip(run(reference, {"x": x, "z": z}), expected, strict=True):
        assert distance(result, wanted) < 1e-5


def test_kernels_behind_two_ways_are_one_layer() -> None:
    kernel = _well_separated((6, 4, 3, 3), 2).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "W"], ["a"], "one", pads=[1, 1, 1, 1]),
        helper.make_node("Identity", ["W"], ["V"]),
        helper.make_node("Reshape", ["V", "shape"], ["U"]),
        helper.make_node("Conv", ["x", "U"], ["b"], "two"),
    ]
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)
    constants = {"W": kernel, "shape": np.array([6, 0, 3, -1], np.int64)}
    model = model_of(nodes, {"x": x}, ["a", "b"], constants)
    assert only(model).nodes == ("one", "two")
    changed, _ = rewritten(model, Choice("svd", SvdOptions(rank=RANK, form="channel")))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    approximation = _kernel_truncated(kernel, RANK)
    for level in LEVELS:
        a, b = run(changed, {"x": x}, level)
        assert distance(a, _conv(padded, approximation)) < 1e-5
        assert distance(b, _conv(x, approximation)) < 1e-5
    assert {n.op_type for n in changed.graph.node} == {"Conv"}


MISFITS = {
    "another grouping of the entries": [
        helper.make_node("Reshape", ["W", "shape"], ["V"]),
        helper.make_node("MatMul", ["z", "V"], ["b"], "two"),
    ],
    "the same shape in another order": [
        helper.make_node("Transpose", ["W"], ["T"], perm=[1, 0]),
        helper.make_node("Reshape", ["T", "square"], ["V"]),
        helper.make_node("MatMul", ["x", "V"], ["b"], "two"),
    ],
    "another operator": [
        helper.make_node("Reshape", ["W", "kernel"], ["V"]),
        helper.make_node("Conv", ["image", "V"], ["b"], "two"),
    ],
    "another type": [
        helper.make_node("Cast", ["W"], ["V"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["double", "V"], ["c"], "two"),
        helper.make_node("Cast", ["c"], ["b"], to=TensorProto.FLOAT),
    ],
    "rows of a table": [helper.make_node("Gather", ["W", "ids"], ["b"], "two")],
}


@pytest.mark.parametrize("case", MISFITS)
def test_uses_that_do_not_fit_together(case: str) -> None:
    """The first use is rewritten, the other one is skipped, and the weight stays for it."""
    random = np.random.default_rng(0)
    weight = _well_separated((12, 10), 4).astype(np.float32)
    feeds: dict[str, Array] = {
        "x": random.standard_normal((3, 12)).astype(np.float32),
        "z": random.standard_normal((3, 20)).astype(np.float32),
        "image": random.standard_normal((1, 10, 4, 4)).astype(np.float32),
        "double": random.standard_normal((3, 12)),
        "ids": np.array([3, 0, 11]),
    }
    constants = {
        "W": weight,
        "shape": np.array([20, 6]),
        "square": np.array([12, 10]),
        "kernel": np.array([12, 10, 1, 1]),
    }
    taken = {name for node in MISFITS[case] for name in node.input}
    feeds = {name: value for name, value in feeds.items() if name in taken | {"x"}}
    constants = {name: value for name, value in constants.items() if name in taken | {"W"}}
    nodes = [helper.make_node("MatMul", ["x", "W"], ["a"], "one"), *MISFITS[case]]
    model = model_of(nodes, feeds, ["a", "b"], constants)
    one, two = find_layers(open_model(model))
    assert one.skip is None
    assert (
        two.skip == "it uses a weight another way than the node before: both cannot share factors"
    )
    assert any("W" in n.input for n in MISFITS[case])
    assert len(one.other_uses) == 1
    changed, _ = rewritten(model, svd(RANK))
    assert "W" in {tensor.name for tensor in changed.graph.initializer}
    assert list(changed.graph.node)[-len(MISFITS[case]) :] == MISFITS[case]
    for level in LEVELS:
        a, b = run(changed, feeds, level)
        assert distance(a, feeds["x"] @ truncated(weight, RANK)) < 1e-5
        assert np.array_equal(b, run(model, feeds, level)[1])


def test_sixty_uses_save_once(tmp_path: Path) -> None:
    """The file shrinks by the weight and grows by one pair of factors, not by sixty."""
    weight = _well_separated((256, 192), 1).astype(np.float32)
    nodes, outputs = [], []
    for number in range(60):
        nodes.append(helper.make_node("Identity", ["W"], [f"w{number}"]))
        nodes.append(helper.make_node("MatMul", ["x", f"w{number}"], [f"y{number}"], f"fc{number}"))
        outputs.append(f"y{number}")
    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    model = model_of(nodes, {"x": x}, outputs, {"W": weight})
    layer = only(model)
    assert len(layer.sites) == 60
    assert not layer.other_uses

    source, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    result = onnxlr.rewrite(source, output, rank=4, isolate=False, tolerance=ANY)
    (record,) = result.layers
    assert not record.choice.keeps
    changed = onnx.load(output)
    entries = [math.prod(tensor.dims) for tensor in changed.graph.initializer]
    assert sorted(entries) == [4 * 192, 4 * 256]
    assert [node.op_type for node in changed.graph.node] == ["MatMul"] * 120

    def other(proto: onnx.ModelProto) -> int:
        """Return what is not a weight: nodes, value infos, the plan, the framing."""
        return proto.ByteSize() - sum(len(tensor.raw_data) for tensor in proto.graph.initializer)

    saved = model.ByteSize() - changed.ByteSize()
    expected = 4 * (256 * 192 - 4 * (256 + 192)) - (other(changed) - other(model))
    assert saved == expected == result.bytes_before - result.bytes_after
    # what the planner counted beforehand is what the file says, but for the plan's own entry
    plan = changed.metadata_props[-1].ByteSize() + 16
    assert abs(record.bytes_before - record.bytes_after - saved) <= plan + 60 * 16
    assert saved > 0.9 * weight.nbytes
    found = run(changed, {"x": x})
    assert all(distance(y, x @ truncated(weight, 4)) < 1e-5 for y in found)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Two nodes of one layer with the same data: a caller's output stays clean."""
    x = np.zeros((3, 16), np.float32)
    nodes = [node("MatMul", "x W", "a"), node("MatMul", "x W", "b")]
    rewritten(model_of(nodes, {"x": x}, ["a", "b"], {"W": FLOATS}), svd(RANK))
    assert capsys.readouterr() == ("", "")


# -- Types -------------------------------------------------------------------------------------


def _typed(use: Use, dtype: Any, opset: int = 17) -> tuple[onnx.ModelProto, Array, Array]:
    weight = _well_separated(use.shape, 8).astype(dtype)
    x = np.random.default_rng(2).standard_normal(use.data).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = use.node("x", "W", "y", "it")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [
            numpy_helper.from_array(weight, "W"),
            *([numpy_helper.from_array(BIAS.astype(dtype), "bias")] * (use.operator == "Gemm")),
        ],
    )
    version = 22 if dtype is ml_dtypes.bfloat16 and "Conv" in use.operator else opset
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10
    )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    onnx.checker.check_model(model, full_check=True)
    return model, weight, x


EPSILON = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


@pytest.mark.filterwarnings("ignore:.*written because the plan says so")  # it is a small layer
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_float_type(dtype: Any, name: str, tmp_path: Path) -> None:
    """Factors have the weight's type, and the result is numpy's at that type's precision."""
    use = USES[name]
    if dtype is ml_dtypes.bfloat16 and "Conv" in use.operator and newest_opset() < 22:
        pytest.skip("Conv takes bfloat16 from opset 22 on, which this ONNX Runtime does not know")
    model, weight, x = _typed(use, dtype)
    kind = np.dtype(dtype).name
    plan = Plan(
        {"it": Choice("svd", SvdOptions(rank=RANK, form=use.form))}, None, "onnx", 0, "test"
    )
    result = onnxlr.rewrite(
        model, tmp_path / "out.onnx", plan=plan, isolate=False, tolerance=ANY, data={"x": x}
    )
    assert result.report is not None
    assert result.report.passed
    # ONNX Runtime has no bfloat16 kernels for the processor: ONNX's own evaluator steps in
    assert kind != "bfloat16" or result.report.runtime.startswith("ONNX's reference evaluator")
    changed = onnx.load(tmp_path / "out.onnx")
    assert {t.data_type for t in changed.graph.initializer} == {
        helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    }
    assert len(changed.graph.node) == 2
    (found,) = ReferenceEvaluator(changed).run(None, {"x": x})
    expected = use.compute(x.astype(np.float64), use.approximate(weight, RANK))
    assert found.dtype == np.dtype(dtype)
    assert distance(found, expected) < EPSILON[kind]
    report = onnxlr.verify(
        model, tmp_path / "out.onnx", tolerance=ANY, isolate=False, data={"x": x}
    )
    assert {check.proof for check in report.checks} == {"emission", "approximation"}
    assert report.passed


def test_bfloat16_that_is_wrong_is_noticed(tmp_path: Path) -> None:
    """The fallback compares numbers, it does not wave bytes through."""
    model, weight, x = _typed(USES["MatMul right"], ml_dtypes.bfloat16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(-weight, "W"))
    onnx.save(model, tmp_path / "other.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "W"))
    for isolate in (False, True):
        report = onnxlr.verify(model, tmp_path / "other.onnx", isolate=isolate, data={"x": x})
        assert not report.passed
        assert {c.cosine for check in report.checks for c in check.comparisons} == {-1.0}


def test_bfloat16_is_run_on_random_inputs_too(tmp_path: Path) -> None:
    model, *_ = _typed(USES["Gemm transB"], ml_dtypes.bfloat16)
    result = onnxlr.rewrite(
        model, tmp_path / "out.onnx", plan=svd_plan(["it"], RANK), isolate=False, tolerance=ANY
    )
    assert result.report is not None
    assert result.report.is_random
    assert all(c.relative_l2 > 0 for c in result.report.checks[-1].comparisons)


@pytest.mark.parametrize(
    ("stored", "seen"),
    [
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.float32, np.float64),
        (np.float64, np.float32),
    ],
)
def test_a_cast_weight_keeps_the_type_it_is_stored_in(stored: Any, seen: Any) -> None:
    weight = _well_separated((16, 12), 3).astype(stored)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(seen))
    nodes = [
        helper.make_node("Cast", ["W"], ["V"], to=kind),
        helper.make_node("MatMul", ["x", "V"], ["y"], "it"),
    ]
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(seen)
    model = model_of(nodes, {"x": x}, ["y"], {"W": weight})
    layer = only(model)
    assert (layer.stored, layer.dtype) == (np.dtype(stored).name, np.dtype(seen))
    changed, reference = rewritten(model, svd(RANK))
    assert [t.data_type for t in changed.graph.initializer] == [
        helper.np_dtype_to_tensor_dtype(np.dtype(stored))
    ] * 2
    expected = x.astype(np.float64) @ truncated(weight, RANK)
    bound = max(EPSILON[np.dtype(stored).name], EPSILON[np.dtype(seen).name])
    for level in LEVELS:
        assert distance(run(changed, {"x": x}, level)[0], expected) < bound
    assert distance(run(reference, {"x": x})[0], expected) < bound


def test_casts_round_on_the_way() -> None:
    """A weight that passes through float16 is what it is after that."""
    weight = (_well_separated((16, 12), 3) + 1000).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["W"], ["H"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["H"], ["V"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "V"], ["y"], "it"),
    ]
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    x -= x.mean(axis=1, keepdims=True)  # the 1000 cancels, what is left is the rounding
    model = model_of(nodes, {"x": x}, ["y"], {"W": weight})
    rounded = weight.astype(np.float16).astype(np.float64)
    expected = x.astype(np.float64) @ rounded
    assert distance(x @ weight, expected) > 0.1
    changed, _ = rewritten(model, svd(12))
    assert distance(run(changed, {"x": x})[0], expected) < 0.02


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.INT32, TensorProto.BOOL])
def test_a_weight_that_passes_through_integers_is_left_alone(kind: int) -> None:
    weight = 3 * np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["W"], ["I"], to=kind),
        helper.make_node("Cast", ["I"], ["V"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "V"], ["y"], "it"),
    ]
    x = np.zeros((3, 16), np.float32)
    name = {TensorProto.INT8: "int8", TensorProto.INT32: "int32", TensorProto.BOOL: "bool"}[kind]
    model = model_of(nodes, {"x": x}, ["y"], {"W": weight})
    assert only(model).skip == f"its weight is cast to {name} on the way"


# -- Where it is stored ------------------------------------------------------------------------


def _plain(ir_version: int | None = None, opset: int = 17) -> tuple[onnx.ModelProto, Array, Array]:
    weight = _well_separated((16, 12), 6).astype(np.float32)
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["W"], ["T"], perm=[1, 0]),
        helper.make_node("Reshape", ["T", "shape"], ["V"]),
        helper.make_node("MatMul", ["V", "xT"], ["y"], "it"),
        helper.make_node("Transpose", ["x"], ["xT"], perm=[1, 0]),
    ]
    nodes.insert(0, nodes.pop())
    constants = {"W": weight, "shape": np.array([12, 16], np.int64)}
    return model_of(nodes, {"x": x}, ["y"], constants, opset, ir_version), weight, x


@pytest.mark.parametrize("ir_version", [4, 7, 10])
def test_a_weight_that_can_be_overridden_is_skipped(ir_version: int) -> None:
    model, *_ = _plain(ir_version, 9)
    assert only(model).skip is None
    model.graph.input.add().CopyFrom(helper.make_tensor_value_info("W", 1, [16, 12]))
    assert only(model).skip == (
        "its weight 'W' is also an input of the graph: whoever runs the model can override it"
    )


def test_a_shape_that_can_be_overridden_makes_it_data() -> None:
    model, *_ = _plain(8)
    model.graph.input.add().CopyFrom(helper.make_tensor_value_info("shape", 7, [2]))
    assert only(model).skip == "neither operand is constant: it multiplies two computed tensors"


def test_ir_version_3_lists_constants_as_inputs(tmp_path: Path) -> None:
    model, weight, x = _plain(3, 8)
    assert {v.name for v in model.graph.input} == {"x", "W", "shape"}
    assert only(model).skip is None
    result = onnxlr.rewrite(
        model, tmp_path / "out.onnx", plan=svd_plan(["it"], RANK), isolate=False, tolerance=ANY
    )
    assert result.report is not None
    assert result.report.passed
    changed = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(changed, full_check=True)
    stored = [t.name for t in changed.graph.initializer]
    assert [v.name for v in changed.graph.input] == ["x", *stored]
    assert len(stored) == 2
    expected = truncated(weight.T, RANK) @ x.T
    for level in LEVELS:
        assert distance(run(changed, {"x": x}, level)[0], expected) < 1e-5


def test_external_data(tmp_path: Path) -> None:
    model, weight, x = _plain()
    source = tmp_path / "in" / "m.onnx"
    source.parent.mkdir()
    save_external(model, source)
    stored = onnx.load(source, load_external_data=False)
    assert [t.data_location for t in stored.graph.initializer] == [TensorProto.EXTERNAL] * 2
    assert [layer.skip for layer in find_layers(open_model(source))] == [None]
    # ONNX Runtime does not take a shape out of another file
    shape = next(t for t in stored.graph.initializer if t.name == "shape")
    shape.CopyFrom(next(t for t in model.graph.initializer if t.name == "shape"))
    onnx.save(stored, source)
    (tmp_path / "out").mkdir()
    result = onnxlr.rewrite(
        source,
        tmp_path / "out" / "m.onnx",
        plan=svd_plan(["it"], RANK),
        isolate=False,
        tolerance=ANY,
    )
    assert result.report is not None
    assert result.report.passed
    changed = onnx.load(tmp_path / "out" / "m.onnx")  # loads the external data, too
    assert not {"W", "shape"} & {t.name for t in changed.graph.initializer}
    assert distance(run(changed, {"x": x})[0], truncated(weight.T, RANK) @ x.T) < 1e-5


# -- What is left alone ------------------------------------------------------------------------


def _operand(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], x: Array | None = None
) -> onnx.ModelProto:
    """Return `x @ V` with V made by some nodes out of some constants."""
    x = np.zeros((3, 16), np.float32) if x is None else x
    last = helper.make_node("MatMul", ["x", "V"], ["y"], "it")
    return model_of([*nodes, last], {"x": x}, ["y"], constants)


CODES = np.random.default_rng(0).integers(-127, 128, (16, 12)).astype(np.int8)
FLOATS = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
SCALE = np.full((), 0.01, np.float32)
ZERO = np.full((), 3, np.int8)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


FLOAT = {"to": TensorProto.FLOAT}
QDQ = "its weight is already quantised (DequantizeLinear)"
SCALED = "its weight is already quantised (an integer weight with {})"
COMPUTED = "its weight is computed by {} of constants: fold constants first"
TWO_COMPUTED = "neither operand is constant: it multiplies two computed tensors"
CASES: dict[str, tuple[str, list[onnx.NodeProto], dict[str, Array]]] = {
    "DequantizeLinear": (
        QDQ,
        [node("DequantizeLinear", "q s z", "V")],
        {"q": CODES, "s": SCALE, "z": ZERO},
    ),
    "DequantizeLinear and moves on both sides": (
        QDQ,
        [
            node("Identity", "q", "p"),
            node("Transpose", "p", "pt", perm=[1, 0]),
            node("DequantizeLinear", "pt s", "d"),
            node("Transpose", "d", "V", perm=[1, 0]),
        ],
        {"q": CODES, "s": SCALE},
    ),
    "float weight, QuantizeLinear and DequantizeLinear": (
        QDQ,
        [node("QuantizeLinear", "w s z", "q"), node("DequantizeLinear", "q s z", "V")],
        {"w": FLOATS, "s": SCALE, "z": ZERO},
    ),
    "Cast": (
        "its weight is already quantised (int8 with Cast)",
        [node("Cast", "q", "V", **FLOAT)],
        {"q": CODES},
    ),
    "Cast and Mul": (
        SCALED.format("Mul"),
        [node("Cast", "q", "c", **FLOAT), node("Mul", "c s", "V")],
        {"q": CODES, "s": SCALE},
    ),
    "Mul by the scale first": (
        SCALED.format("Mul"),
        [node("Cast", "q", "c", **FLOAT), node("Mul", "s c", "V")],
        {"q": CODES, "s": SCALE},
    ),
    "Cast, Sub, Mul, Transpose": (
        SCALED.format("Mul"),
        [
            node("Cast", "q", "c", **FLOAT),
            node("Cast", "z", "zf", **FLOAT),
            node("Sub", "c zf", "d"),
            node("Mul", "d s", "m"),
            node("Transpose", "m", "t", perm=[1, 0]),
            node("Transpose", "t", "V", perm=[1, 0]),
        ],
        {"q": CODES, "s": SCALE, "z": ZERO},
    ),
    "Mul of two scales before the codes": (
        SCALED.format("Mul"),
        [
            node("Cast", "q", "c", **FLOAT),
            node("Mul", "s c", "d"),
            node("Mul", "s d", "V"),
        ],
        {"q": CODES, "s": SCALE},
    ),
    "Div": (
        SCALED.format("Div"),
        [node("Cast", "q", "c", **FLOAT), node("Div", "c s", "V")],
        {"q": CODES, "s": SCALE},
    ),
    "Mul of floats": (COMPUTED.format("Mul"), [node("Mul", "w s", "V")], {"w": FLOATS, "s": SCALE}),
    "Add of floats": (COMPUTED.format("Add"), [node("Add", "w w", "V")], {"w": FLOATS}),
}


@pytest.mark.parametrize("case", CASES)
def test_computed_and_quantised_weights_are_left_alone(case: str, tmp_path: Path) -> None:
    reason, nodes, constants = CASES[case]
    model = _operand(nodes, constants)
    assert only(model).skip == reason
    onnxlr.rewrite(model, tmp_path / "out.onnx", rank=1)
    assert (tmp_path / "out.onnx").read_bytes() == model.SerializeToString()


DATA: dict[str, list[onnx.NodeProto]] = {
    # GELU as exporters write it: constants on either side of every product, and yet it is data
    "activation": [
        node("Add", "bias x", "h"),
        node("Div", "h s", "d"),
        node("Erf", "d", "e"),
        node("Add", "e one", "f"),
        node("Mul", "h f", "g"),
        node("Mul", "g s", "a"),
    ],
    "scaled": [node("Mul", "s x", "b"), node("Sub", "bias b", "a")],
    "fake quantised": [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "a")],
    "shifted": [
        node("Add", "bias x", "h"),
        node("Transpose", "h", "t", perm=[1, 0]),
        node("Transpose", "t", "a", perm=[1, 0]),
    ],
}


@pytest.mark.parametrize("case", DATA)
def test_data_made_with_constants_is_data(case: str) -> None:
    """What a product's data is made with does not make it a weight."""
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    constants = {"bias": np.ones(16, np.float32), "s": SCALE, "one": np.ones(1, np.float32)}
    taken = {name for n in DATA[case] for name in n.input}
    constants = {k: v for k, v in constants.items() if k in taken} | {"W": FLOATS}
    nodes = [*DATA[case], helper.make_node("MatMul", ["a", "W"], ["y"], "it")]
    model = model_of(nodes, {"x": x}, ["y"], constants)
    assert only(model).skip is None
    changed, reference = rewritten(model, svd(RANK))
    assert distance(run(changed, {"x": x})[0], run(reference, {"x": x})[0]) < 1e-5


def test_two_computed_operands() -> None:
    x = np.zeros((4, 4), np.float32)
    nodes = [node("Mul", "x x", "a"), node("MatMul", "x a", "y")]
    assert only(model_of(nodes, {"x": x}, ["y"], {})).skip == TWO_COMPUTED


def test_two_constant_operands() -> None:
    nodes = [node("MatMul", "V W", "c"), node("Add", "x c", "y")]
    model = model_of(nodes, {"x": np.zeros(1, np.float32)}, ["y"], {"V": FLOATS.T, "W": FLOATS})
    assert only(model).skip == "both its operands are constant: constant folding removes the node"


def test_a_sparse_initializer() -> None:
    """ONNX Runtime makes it dense as it loads; its values are few already."""
    model = _operand([node("Identity", "W", "V")], {"W": FLOATS})
    del model.graph.initializer[:]
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "W")
    places = numpy_helper.from_array(np.array([[0, 1], [3, 2]], np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [16, 12]))
    assert only(model).skip == "its weight is a sparse initializer"


@pytest.mark.parametrize("steps", [0, 1])
def test_a_sparse_constant(steps: int) -> None:
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "v")
    places = numpy_helper.from_array(np.array([1, 38], np.int64), "p")
    sparse = helper.make_sparse_tensor(values, places, [16, 12])
    nodes = [helper.make_node("Constant", [], ["W" if steps else "V"], sparse_value=sparse)]
    nodes += [node("Identity", "W", "V")] * steps
    x = np.zeros((3, 16), np.float32)
    graph = helper.make_graph(
        [*nodes, node("MatMul", "x V", "y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 12])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    reason = "its weight is a Constant node with sparse_value, not a dense tensor"
    assert only(model).skip == reason


# -- Operators of other domains ----------------------------------------------------------------

OWN = "org.example"


def _with_domain(model: onnx.ModelProto) -> onnx.ModelProto:
    model.opset_import.add(domain=OWN, version=1)
    return model


def _own(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], domain=OWN, **attributes)


def _unchecked(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 12])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(OWN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv", "ConvTranspose", "Gather", "LSTM"])
def test_a_custom_operator_of_a_known_name_is_no_layer(operator: str, tmp_path: Path) -> None:
    model = _unchecked([_own(operator, ["x", "W"], "y")], {"W": FLOATS})
    assert find_layers(open_model(model)) == []
    onnxlr.rewrite(model, tmp_path / "out.onnx", rank=1)
    assert (tmp_path / "out.onnx").read_bytes() == model.SerializeToString()


@pytest.mark.parametrize(
    "nodes",
    [
        [_own("Transpose", ["W"], "V", perm=[1, 0])],
        [_own("Identity", ["W"], "V")],
        [_own("Constant", [], "V")],
        [_own("Mul", ["W", "W"], "V")],
        [_own("DequantizeLinear", ["W", "W"], "V")],
        [_own("Cast", ["W"], "U"), node("Mul", "U W", "V")],
        [_own("Cast", ["W"], "U"), node("Transpose", "U", "V", perm=[1, 0])],
    ],
    ids=lambda nodes: " ".join(f"{n.domain or 'onnx'}:{n.op_type}" for n in nodes),
)
def test_custom_operators_of_known_names_make_data(nodes: list[onnx.NodeProto]) -> None:
    """Nobody knows what they compute, so that nothing is said about a weight."""
    model = _unchecked([*nodes, node("MatMul", "x V", "y")], {"W": FLOATS})
    assert only(model).skip == TWO_COMPUTED
