"""What users give to `onnxlr.session`: files in parts, other objects, models of later times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxlr
from tests.operators.oplibrary import (
    INPUTS,
    OUTPUTS,
    Array,
    bias,
    telling_model,
    ternary,
)

ROWS = np.random.default_rng(5).standard_normal((3, INPUTS)).astype(np.float32)
BY_KERNEL = ROWS.astype(np.float64) @ ternary() + bias()
BY_FUNCTION = np.broadcast_to(bias(), (len(ROWS), OUTPUTS))


def computed(model: object) -> Array:
    session = onnxlr.session(model)  # type: ignore[arg-type]
    return np.asarray(session.run(None, {"x": ROWS})[0])


@pytest.fixture
def divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file whose weights are in another one, in a folder that is not the current one."""
    folder = tmp_path / "divided"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    where = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(telling_model(), folder / "m.onnx", **where)
    return folder / "m.onnx"


@pytest.mark.parametrize("kind", ["path", "relative", "loaded"])
def test_weights_in_another_file(available: str, divided: Path, kind: str) -> None:
    model = {"path": divided, "relative": "divided/m.onnx", "loaded": onnx.load(divided)}[kind]
    np.testing.assert_allclose(computed(model), BY_KERNEL, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bytes", "proto"])
def test_weights_that_cannot_be_found(off: None, divided: Path, kind: str) -> None:
    proto = onnx.load(divided, load_external_data=False)
    model = proto if kind == "proto" else divided.read_bytes()
    with pytest.raises(onnxlr.ModelError, match=r"in another file.*give the path of that file"):
        onnxlr.session(model)


@pytest.mark.parametrize("model", [3, None, np.zeros(3), onnx.GraphProto()])
def test_what_is_no_model(model: object) -> None:
    with pytest.raises(onnxlr.UsageError, match=rf"{type(model).__name__}; expected the path"):
        onnxlr.session(model)  # type: ignore[arg-type]


def _of_the_future(what: str, with_function: bool = True) -> onnx.ModelProto:
    """Return a model with an operator or a layout that comes later."""
    model = telling_model(with_function)
    node = model.graph.node[0]
    if what == "operator":
        node.op_type = "TernaryGather"
        for function in model.functions:
            function.name = "TernaryGather"
    for attribute in node.attribute:
        if attribute.name == "layout" and what == "layout":
            attribute.i = 2
    return model


def test_a_library_that_is_too_old_for_the_layout(available: str) -> None:
    expected = rf"{available} is too old for the model.*layout is 2.*newer onnxlr.*=off"
    for with_function in (True, False):
        with pytest.raises(onnxlr.LibraryError, match=expected):
            onnxlr.session(_of_the_future("layout", with_function))


def test_a_library_that_is_too_old_for_the_operator(available: str) -> None:
    np.testing.assert_array_equal(computed(_of_the_future("operator")), BY_FUNCTION)
    with pytest.raises(onnxlr.LibraryError, match=r"too old for the model.*TernaryGather"):
        onnxlr.session(_of_the_future("operator", with_function=False))


@pytest.mark.parametrize("what", ["layout", "operator"])
def test_functions_of_the_future_need_no_library(off: None, what: str) -> None:
    np.testing.assert_array_equal(computed(_of_the_future(what)), BY_FUNCTION)
