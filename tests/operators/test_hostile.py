"""Nodes that are wrong: a clear message, never a crash, and the process goes on."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.capi import onnxruntime_pybind11_state

from tests.operators.oplibrary import installed_library
from tests.operators.ternary_nodes import (
    Array,
    TernaryNode,
    close,
    conv_node,
    matmul_node,
    open_session,
)

HUGE = 2**62
MATMUL = matmul_node(100, 40, group_size=32, terms=2)
CONV = conv_node(6, 10, (3, 3), group=2)
NODES = {"matmul": MATMUL, "conv": CONV}
ONNX_RUNTIME_ERRORS = tuple(
    found
    for found in vars(onnxruntime_pybind11_state).values()
    if isinstance(found, type) and issubclass(found, Exception)
)


def x_of(node: TernaryNode) -> Array:
    shape = (3, 100) if node.operator == "TernaryMatMul" else (2, 6, 5, 4)
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def refused(model: bytes, *words: str) -> None:
    """Check that no session is made, and that the message has the words and the node's name."""
    with pytest.raises(ONNX_RUNTIME_ERRORS) as caught:
        open_session(model)
    for word in (*words, "the node"):
        assert word in str(caught.value)


@pytest.fixture(autouse=True)
def afterwards() -> Any:
    """Check after each test that sessions can still be made and run."""
    installed_library()
    yield
    for node in NODES.values():
        close(node.run(x_of(node)), node.expected(x_of(node)))


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("K", 0, "1 to 8388608"),
        ("K", -5, "1 to 8388608"),
        ("K", HUGE, "1 to 8388608"),
        ("N", 0, "at least 1"),
        ("N", -HUGE, "at least 1"),
        ("layout", 2, "expected 1"),
        ("layout", 0, "expected 1"),
        ("terms", 0, "1 to 8"),
        ("terms", 9, "1 to 8"),
        ("accuracy_level", 1, "0 or 4"),
        ("accuracy_level", 5, "0 to 4"),
        ("group_size", 48, "32, 64, 128 or K"),
        ("group_size", 16, "32, 64, 128 or K"),
        ("group_size", 0, "at least 1"),
    ],
)
def test_attributes_out_of_range(
    node: TernaryNode, attribute: str, value: int, expected: str
) -> None:
    wrong = node.with_attributes(**{attribute: value})
    refused(wrong.model(), f"attribute {attribute} is {value}", expected)


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_sizes_that_overflow(node: TernaryNode) -> None:
    for outputs in (HUGE, 2**63 - 1, 2**63 - 2, 2**32):
        wrong = node.with_attributes(N=outputs)
        refused(wrong.model(), "expected")
    refused(node.with_attributes(K=8388608, group_size=32, N=2**40).model(), "expected")


def test_declared_sizes_that_overflow() -> None:
    """Shape inference counts windows of whatever a model declares."""
    for size in (2**62, 2**63 - 1):
        declared = CONV.model([1, 6, size, size])
        with pytest.raises(ONNX_RUNTIME_ERRORS):
            open_session(declared).run(None, {"X": np.zeros((1, 6, 5, 4), np.float32)})


@pytest.mark.parametrize("name", MATMUL.attributes)
def test_missing_or_wrong_attributes_of_products(name: str) -> None:
    for value in (None, 1.5, "text", [1, 2]):
        refused(MATMUL.with_attributes(**{name: value}).model(), f"attribute {name}", "an int")


@pytest.mark.parametrize("name", CONV.attributes)
def test_missing_or_wrong_attributes_of_convolutions(name: str) -> None:
    is_list = isinstance(CONV.attributes[name], list)
    for value in (None, 1.5, "text", 3 if is_list else [3, 3]):
        refused(CONV.with_attributes(**{name: value}).model(), f"attribute {name}")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("kernel_shape", [], ("attribute kernel_shape", "1 or 2")),
        ("kernel_shape", [3], ("attribute strides has 2 entries",)),
        ("kernel_shape", [1, 3, 3], ("attribute kernel_shape has 3",)),
        ("kernel_shape", [9, 0], ("attribute kernel_shape holds 0",)),
        ("kernel_shape", [2**40, 2**40], ("attribute kernel_shape holds",)),
        ("kernel_shape", [2**20, 2**20], ("attribute K is 27",)),
        ("strides", [0, 1], ("attribute strides holds 0",)),
        ("strides", [1, -1], ("attribute strides holds -1",)),
        ("strides", [1, HUGE], ("attribute strides holds",)),
        ("strides", [1] * 40, ("attribute strides has 40 entries",)),
        ("pads", [0, 0], ("attribute pads has 2 entries; expected 4",)),
        ("pads", [0, 0, -1, 0], ("attribute pads holds -1",)),
        ("pads", [0, 0, 0, HUGE], ("attribute pads holds",)),
        ("dilations", [0, 1], ("attribute dilations holds 0",)),
        ("dilations", [HUGE, 1], ("attribute dilations holds",)),
        ("group", 4, ("attribute group is 4", "divisor")),
        ("group", 0, ("attribute group is 0",)),
        ("group", HUGE, ("attribute group is",)),
        ("channels", 8, ("attribute K is 27",)),
        ("channels", HUGE, ("attribute K is 27",)),
        ("channels", 0, ("attribute channels is 0",)),
    ],
)
def test_windows_that_make_no_sense(name: str, value: Any, words: tuple[str, ...]) -> None:
    refused(CONV.with_attributes(**{name: value}).model([2, 6, 5, 4]), *words)


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("name", ["scales", "input_scale", "bias"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_constants_that_are_not_finite(node: TernaryNode, name: str, bad: float) -> None:
    values = node.constants[name].copy()
    values.flat[-1] = bad
    refused(node.with_constants(**{name: values}).model(), f"input {name} holds", "finite")


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("name", ["codes", "scales", "input_scale", "bias"])
def test_constants_of_another_shape(node: TernaryNode, name: str) -> None:
    values = node.constants[name]
    for other in (values[:-1], values[..., :-1], values[None], values.ravel()[:1], values[:0]):
        if other.shape == values.shape:
            continue
        shape = f"({', '.join(map(str, other.shape))})"
        wrong = node.with_constants(**{name: np.ascontiguousarray(other)})
        refused(wrong.model(), f"input {name} has the shape {shape}", f"{values.shape[-1]})")


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("codes", np.int8), ("codes", np.float32), ("scales", np.float64), ("bias", np.float16)],
)
def test_constants_of_another_type(node: TernaryNode, name: str, dtype: Any) -> None:
    wrong = node.with_constants(**{name: node.constants[name].astype(dtype)})
    with pytest.raises(ONNX_RUNTIME_ERRORS, match=re.escape(f"({name})")):
        open_session(wrong.model())


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_codes_that_mean_nothing(node: TernaryNode) -> None:
    codes = node.constants["codes"]
    noise = np.random.default_rng(0).integers(0, 256, codes.shape).astype(np.uint8)
    refused(node.with_constants(codes=noise).model(), "the code 3")
    for place in (0, codes.size // 2, codes.size - 1):
        for shift in (0, 2, 4, 6):
            wrong = codes.copy()
            wrong.flat[place] |= 3 << shift
            refused(node.with_constants(codes=wrong).model(), "the code 3 in panel")


def test_codes_beyond_the_matrix() -> None:
    codes = MATMUL.constants["codes"]
    for place in ((1, 0, 6, 1), (0, 2, 0, 63), (1, 2, 3, 32)):  # inputs ≥ 100, columns ≥ 40
        wrong = codes.copy()
        wrong[place] ^= 1 << 6
        assert ((wrong & (wrong >> 1) & 0x55) == 0).all()
        refused(MATMUL.with_constants(codes=wrong).model(), "beyond K or N")


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("name", ["codes", "scales", "input_scale", "bias"])
def test_weights_that_are_not_constant(node: TernaryNode, name: str) -> None:
    overridable = node.model(as_inputs=(name,))
    refused(overridable, f"input {name} is not constant", "an initializer")
    fed = onnx.load_from_string(overridable)
    kept = [c for c in fed.graph.initializer if c.name != name]
    del fed.graph.initializer[:]
    fed.graph.initializer.extend(kept)
    refused(fed.SerializeToString(), f"input {name} is not constant", "an initializer")


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
@pytest.mark.parametrize("change", ["none", "empty", "one more"])
def test_wrong_numbers_of_inputs(node: TernaryNode, change: str) -> None:
    model = onnx.load_from_string(node.model())
    inputs = model.graph.node[0].input
    if change == "none":
        del inputs[-1]
    elif change == "empty":
        inputs[-1] = ""
    else:
        inputs.append("bias")
    with pytest.raises(ONNX_RUNTIME_ERRORS, match="the node"):
        open_session(model)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        (MATMUL, (3, 99)),
        (MATMUL, (100, 3)),
        (MATMUL, ()),
        (MATMUL, (0,)),
        (CONV, (2, 5, 5, 4)),
        (CONV, (2, 6, 5)),
        (CONV, (2, 6, 2, 4)),
        (CONV, (2, 6, 0, 0)),
        (CONV, (2, 0, 5, 4)),
        (CONV, ()),
    ],
)
def test_inputs_of_another_shape(node: TernaryNode, shape: tuple[int, ...]) -> None:
    session = node.session()
    for _ in range(2):
        with pytest.raises(ONNX_RUNTIME_ERRORS, match="input X has") as caught:
            session.run(None, {"X": np.zeros(shape, np.float32)})
        assert "expected" in str(caught.value)
        assert "the node" in str(caught.value)
        close(session.run(None, {"X": x_of(node)})[0], node.expected(x_of(node)))


def test_more_dimensions_than_expected() -> None:
    shape = (1,) * 32 + (100,)
    try:
        x = np.zeros(shape, np.float32)
    except ValueError:
        pytest.skip("this numpy has no more than 32 dimensions")
    session = MATMUL.session()
    with pytest.raises(ONNX_RUNTIME_ERRORS, match="33 dimensions; expected at most 32"):
        session.run(None, {"X": x})


def test_shapes_that_contradict_at_loading() -> None:
    """What shape inference cannot say is said by the run."""
    for node, shape in ((MATMUL, [3, 99]), (CONV, [2, 6, 1, 1]), (CONV, [2, 6])):
        session = open_session(node.model(shape))
        with pytest.raises(ONNX_RUNTIME_ERRORS, match="input X has"):
            session.run(None, {"X": np.zeros(shape, np.float32)})


def test_outputs_that_do_not_fit_in_memory() -> None:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("AddressSanitizer ends the process where ONNX Runtime's allocation would throw")
    padded = conv_node(1, 1, (1, 1), pads=(2**20,) * 4)
    session = padded.session()
    with pytest.raises(ONNX_RUNTIME_ERRORS):
        session.run(None, {"X": np.zeros((40, 1, 1, 1), np.float32)})
    none = session.run(None, {"X": np.zeros((0, 1, 1, 1), np.float32)})[0]
    assert none.shape == (0, 1, 2**21 + 1, 2**21 + 1)


def test_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setenv("ONNXLR_ISA", "abacus")
        refused(MATMUL.model(), "ONNXLR_ISA")


def test_registered_twice() -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for _ in range(2):
        options.register_custom_ops_library(installed_library())
    with pytest.raises(ONNX_RUNTIME_ERRORS, match="already set"):
        ort.InferenceSession(MATMUL.model(), options)


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-2, 130), st.sampled_from([2**31, 2**32, 2**62])
)


@settings(max_examples=200, deadline=None)
@given(draw=st.data())
def test_any_attributes(draw: st.DataObject) -> None:
    """Whatever attributes say, a session is refused, or computes, or refuses to."""
    node = draw.draw(st.sampled_from(list(NODES.values())))
    names = draw.draw(st.lists(st.sampled_from(list(node.attributes)), min_size=1, max_size=3))
    changes: dict[str, Any] = {}
    for name in names:
        is_list = isinstance(node.attributes[name], list)
        changes[name] = draw.draw(st.lists(NUMBERS, max_size=6) if is_list else NUMBERS)
    if "pads" in changes:  # enormous outputs are allowed, and would be computed
        changes["pads"] = [min(pad, 1000) for pad in changes["pads"]]
    with contextlib.suppress(*ONNX_RUNTIME_ERRORS):
        session = open_session(node.with_attributes(**changes).model(list(x_of(node).shape)))
        session.run(None, {"X": x_of(node)})


@settings(max_examples=60, deadline=None)
@given(codes=st.binary(min_size=64, max_size=64))
def test_any_codes(codes: bytes) -> None:
    node = matmul_node(16, 16, scaled=False)
    packed = np.frombuffer(codes, np.uint8).reshape(1, 1, 1, 64)
    changed = node.with_constants(codes=packed)
    if (packed & (packed >> 1) & 0x55).any():
        refused(changed.model(), "the code 3")
    else:
        assert changed.run(np.ones((2, 16), np.float32)).shape == (2, 16)
