"""Spectra for the page against numpy's decomposition; what is left out, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxlr.reporting.page import spectra, spectra_of
from onnxlr.reporting.page.charts import Axis, decades, share, steps, thinned
from onnxlr.reporting.page.spectra import FLOOR, WeightSpectrum, singular_values
from tests.onelayer import model_of


@given(
    st.integers(0, 2),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["float32", "float64", "float16"]),
)
def test_values_are_those_of_numpy(
    stacks: int, rows: int, columns: int, seed: int, dtype: str
) -> None:
    shape = (*[2] * stacks, rows, columns)
    weight = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    values = np.linalg.svd(weight.reshape(-1, rows, columns).astype(np.float64), compute_uv=False)
    expected = np.sqrt(np.square(values).sum(axis=0))
    expected /= expected[0]
    found = singular_values(weight)
    clear = expected > 10 * FLOOR
    np.testing.assert_allclose(found[clear], expected[clear], rtol=1e-3)
    assert found[~clear].max(initial=0) <= 11 * FLOOR


def test_small_values_are_known_down_to_the_floor_and_zeros_are_zeros() -> None:
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    right, _ = np.linalg.qr(rng.standard_normal((60, 40)))
    expected = np.geomspace(1, 1e-9, 40)
    found = singular_values(7.0 * left * expected @ right.T)
    np.testing.assert_allclose(found[expected > FLOOR], expected[expected > FLOOR], rtol=1e-3)
    assert not found[expected < 0.9 * FLOOR].any()
    assert not singular_values(np.zeros((3, 5))).any()


def test_energy_of_zeros_is_all_of_it() -> None:
    assert WeightSpectrum("w", None, (0.0, 0.0), None).energies == (1.0, 1.0)
    assert WeightSpectrum("w", None, (2.0, 1.0), 1).energies == (0.8, 1.0)


SIZES = {"small": 4, "large": 40, "middle": 12}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return three products and a convolution."""
    rng = np.random.default_rng(1)
    constants: dict[str, Any] = {
        name: rng.standard_normal((size, size)).astype(np.float32) for name, size in SIZES.items()
    }
    constants["kernel"] = rng.standard_normal((6, 5, 3, 2)).astype(np.float32)
    inputs = {f"x_{name}": np.zeros((2, size), np.float32) for name, size in SIZES.items()} | {
        "image": np.zeros((1, 5, 8, 8), np.float32)
    }
    nodes = [
        helper.make_node("MatMul", [f"x_{name}", name], [f"y_{name}"], name=name) for name in SIZES
    ]
    nodes.append(helper.make_node("Conv", ["image", "kernel"], ["y_c"], name="conv"))
    outputs = [*(f"y_{name}" for name in SIZES), "y_c"]
    onnx.save(model_of(nodes, inputs, outputs, constants), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def entry(**options: Any) -> dict[str, Any]:
    return {"method": "svd", "options": options}


ALL = {name: entry(rank=3) for name in SIZES} | {"conv": entry(rank=2, form="spatial")}


def test_kernels_are_seen_in_the_form_that_was_split(model: Path) -> None:
    said: list[tuple[str, int, int]] = []
    found = spectra_of(model, ALL, lambda *step: said.append(step))
    assert [(s.layer, s.form, s.rank) for s in found.found] == [
        *((name, None, 3) for name in SIZES),
        ("conv", "spatial", 2),
    ]
    assert found.notes == ()
    assert said == [("spectra", k, 4) for k in range(5)]
    kernel = onnx.numpy_helper.to_array(onnx.load(model).graph.initializer[3])
    # 1×k, then k×1: inputs and columns of the window on one side, outputs and rows on the other.
    matrix = kernel.transpose(1, 3, 0, 2).reshape(5 * 2, 6 * 3)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.found[3].values, values / values[0], rtol=1e-5)


def test_layers_that_stay_are_not_decomposed(model: Path) -> None:
    found = spectra_of(model, {"small": {"method": "keep"}, "large": entry(energy=0.9)})
    assert [(s.layer, s.rank) for s in found.found] == [("large", None)]
    assert spectra_of(model, {"small": {"method": "keep"}}).found == ()


def test_what_would_take_long_is_left_out_and_said(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectra, "_LARGEST", 200)
    found = spectra_of(model, ALL)
    assert [s.layer for s in found.found] == ["small", "middle", "conv"]
    assert "one weight is of more than 200 entries left out" in found.notes[0]
    monkeypatch.setattr(spectra, "_MOST", 1)
    found = spectra_of(model, ALL)
    assert [s.layer for s in found.found] == ["conv"]
    assert found.notes[1].startswith("2 weights are left out; those shown are the largest")
    monkeypatch.setattr(spectra, "_WORK", 144.0**1.5)
    assert [s.layer for s in spectra_of(model, ALL).found] == ["middle"]


def test_a_model_that_is_gone_is_a_note(tmp_path: Path) -> None:
    found = spectra_of(tmp_path / "gone.onnx", ALL)
    assert found.found == ()
    assert "gone.onnx: no such file" in found.notes[0]


def test_an_axis_is_of_whole_powers_of_ten() -> None:
    axis = decades([0.02, 0.3, 0.0, float("nan")])
    assert (axis.low, axis.high) == (-2, 0)
    assert [(tick.at, tick.text) for tick in axis.ticks] == [(0, "1"), (50, "0.1"), (100, "0.01")]
    assert axis.at(0.0) == 100
    assert axis.at(1e-9) == 100
    assert axis.at(50.0) == 0
    assert decades([]) == Axis(-1, 0)
    assert decades([1.0]) == Axis(0, 1)
    assert len(Axis(-30, 0).ticks) <= 7


@given(st.integers(1, 5000))
def test_numbers_under_an_axis_are_few_and_begin_at_one(count: int) -> None:
    found = steps(count)
    assert found[0] == 1
    assert found == sorted(set(found))
    assert found[-1] <= count
    assert len(found) <= 13


@given(st.integers(1, 2000))
def test_a_line_is_drawn_from_end_to_end(count: int) -> None:
    found = thinned([0.0] * count)
    assert found[0] == 0
    assert found[-1] == count - 1
    assert len(found) == min(count, 160)


@pytest.mark.parametrize(
    ("value", "most", "expected"),
    [(1.0, 4.0, 25), (5.0, 4.0, 100), (0.0, 0.0, 0), (None, 1.0, None), (-1.0, 1.0, None)],
)
def test_a_bar_is_a_share(value: float | None, most: float, expected: float | None) -> None:
    assert share(value, most) == expected
