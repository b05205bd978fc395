"""Patches of convolutions: against loops over windows, and against ONNX Runtime's own product."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxlr.calibration import geometry
from onnxlr.calibration.geometry import Geometry, row_blocks, window_blocks
from onnxlr.layers import find_layers
from onnxlr.model import open_model
from tests.onelayer import model_of, run

Array = np.ndarray[Any, Any]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Array, Array, dict[str, Any]]:
    """Draw data, a kernel and attributes."""
    axes = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    numbers = st.integers(1, 3)
    kernel = [draw(numbers) for _ in range(axes)]
    attributes: dict[str, Any] = {"group": groups}
    if draw(st.booleans()):
        attributes["strides"] = [draw(numbers) for _ in range(axes)]
    padding = draw(st.sampled_from(["none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    # SAME with dilations is left out: ONNX Runtime refuses some of them
    if not padding.startswith("SAME") and draw(st.booleans()):
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(axes)]
    if padding == "pads":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
    elif padding != "none":
        attributes["auto_pad"] = padding
    sizes = [draw(st.integers(5, 7)) for _ in range(axes)]
    if padding.startswith("SAME"):
        # Where strides leave out the last entries, padding would be negative: versions of ONNX
        # Runtime differ in whether it is (1.18: 6 entries in strides of 3 begin at the second).
        strides = attributes.get("strides", [1] * axes)
        ends = [-(-n // s) * s - s + k for n, s, k in zip(sizes, strides, kernel, strict=True)]
        assume(all(end >= n for end, n in zip(ends, sizes, strict=True)))
    # not depthwise: those are no layers
    data = (draw(st.integers(1, 2)), groups * draw(st.integers(2, 3)), *sizes)
    random = np.random.default_rng(draw(st.integers(0, 9)))
    weight = random.standard_normal((groups * 2, data[1] // groups, *kernel))
    return random.standard_normal(data).astype(np.float32), weight.astype(np.float32), attributes


def patches(x: Array, how: Geometry) -> Array:
    """Return all patches `(groups, rows, inputs)`."""
    return np.concatenate(list(window_blocks(x, how)), axis=1)


def naive(x: Array, kernel: tuple[int, ...], pads: Any, strides: Any, dilations: Any) -> Array:
    """Return patches `(positions, channels, *kernel)` window by window."""
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    found = []
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    counts = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    for sample in padded:
        for corner in product(*(range(c) for c in counts)):
            window = np.empty((x.shape[1], *kernel))
            for offset in product(*(range(k) for k in kernel)):
                at = tuple(
                    c * s + o * d
                    for c, s, o, d in zip(corner, strides, offset, dilations, strict=True)
                )
                window[(slice(None), *offset)] = sample[(slice(None), *at)]
            found.append(window)
    return np.stack(found)


@settings(max_examples=150, deadline=None)
@given(convolutions(), st.sampled_from([1 << 8, 1 << 12, 1 << 25]))
def test_patches_times_kernel_are_what_onnx_runtime_computes(
    drawn: tuple[Array, Array, dict[str, Any]], block: int
) -> None:
    x, weight, attributes = drawn
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", **attributes)
    model = model_of([node], {"x": x}, ["y"], {"w": weight})
    (expected,) = run(model, {"x": x})
    (layer,) = find_layers(open_model(model))
    before, geometry.BLOCK_BYTES = geometry.BLOCK_BYTES, block
    try:
        found = patches(x, Geometry.of_data(layer.sites[0]))
    finally:
        geometry.BLOCK_BYTES = before
    groups = attributes["group"]
    kernels = weight.reshape(groups, 2, -1).astype(np.float64)
    product_ = np.einsum("gri,goi->rgo", found, kernels).reshape(found.shape[1], -1)
    rows = np.moveaxis(expected, 1, -1).reshape(-1, weight.shape[0])
    if block == 1 << 25:  # one block: the order of positions is the output's own
        np.testing.assert_allclose(product_, rows, rtol=1e-4, atol=1e-4)
    else:
        assert found.shape[1] == len(rows)
        for part, whole in zip(product_.T, rows.T, strict=True):
            np.testing.assert_allclose(np.sort(part), np.sort(whole), rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_patches_are_those_of_loops(drawn: tuple[Array, Array, dict[str, Any]]) -> None:
    x, weight, attributes = drawn
    assume("auto_pad" not in attributes)
    axes, kernel = weight.ndim - 2, weight.shape[2:]
    pads = attributes.get("pads", [0] * (2 * axes))
    strides = attributes.get("strides", [1] * axes)
    dilations = attributes.get("dilations", [1] * axes)
    ends = list(zip(pads[:axes], pads[axes:], strict=True))
    expected = naive(x, kernel, ends, strides, dilations)
    groups = attributes["group"]
    how = Geometry(False, kernel, strides, pads, dilations, groups=groups)
    found = patches(x, how)
    assert found.dtype == np.float64
    assert found.shape == (groups, len(expected), weight[0].size)
    np.testing.assert_array_equal(found, expected.reshape(len(expected), groups, -1).swapaxes(0, 1))


def test_data_smaller_than_the_window_has_no_patches() -> None:
    assert list(window_blocks(np.ones((1, 2, 3)), Geometry(False, (4,)))) == []


@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_of_rows_are_the_rows(order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "BLOCK_BYTES", 8 * 5 * 3)
    matrix = np.asarray(np.random.default_rng(0).standard_normal((10, 5)), np.float16, order=order)
    blocks = list(row_blocks(matrix))
    assert [block.shape for block in blocks] == [(1, 3, 5)] * 3 + [(1, 1, 5)]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[0], matrix.astype(np.float64))
