"""ONNX's own cases of Conv and ConvTranspose: a plan of full rank gives the expected outputs."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxlr
from onnxlr.layers import find_layers
from onnxlr.model import open_model
from onnxlr.plan import Plan
from tests.backend.test_node_cases import newest_opset, node_cases
from tests.kernels import form_choice as of_rank
from tests.kernels import forms_of, full_rank, quantized
from tests.onelayer import LEVELS, run

CASES = {
    "test_basic_conv_with_padding",
    "test_basic_conv_without_padding",
    "test_conv_with_autopad_same",
    "test_conv_with_strides_and_asymmetric_padding",
    "test_conv_with_strides_no_padding",
    "test_conv_with_strides_padding",
    "test_convtranspose",
    "test_convtranspose_1d",
    "test_convtranspose_3d",
    "test_convtranspose_autopad_same",
    "test_convtranspose_dilations",
    "test_convtranspose_group_2",
    "test_convtranspose_group_2_image_3",
    "test_convtranspose_kernel_shape",
    "test_convtranspose_output_shape",
    "test_convtranspose_pad",
    "test_convtranspose_pads",
}

MAY_BE_MISSING = {"test_convtranspose_group_2", "test_convtranspose_group_2_image_3"}
"""Cases that not every version of onnx has."""

DEPTHWISE = "depthwise: no factorization is smaller"
SKIPPED = {
    "test_convtranspose_group_2": DEPTHWISE,
    "test_convtranspose_group_2_image_3": DEPTHWISE,
}
"""Cases that are left alone, and why."""

STATES_ITS_SHAPE = {"test_convtranspose_output_shape", "test_convtranspose_kernel_shape"}
"""Cases with an output_shape, which the spatial forms cannot have."""

FORMS = ("channel", "input", "spatial", "spatial_swapped", "auto")
OWN, NEWEST = "own", "newest"
OPSETS = (OWN, 7, 11, 13, 17, 21, NEWEST)


@cache
def convolutions() -> dict[str, Any]:
    """Return the cases of one convolution by name."""
    return {
        name: case
        for name, case in node_cases().items()
        if [node.op_type in ("Conv", "ConvTranspose") for node in case.model.graph.node] == [True]
    }


def version_of(case: Any, opset: int | str) -> int:
    """Return an opset; of the case's own, what ONNX Runtime runs at most."""
    newest = newest_opset()
    if opset == OWN:
        return min(newest, case.model.opset_import[0].version)
    return newest if opset == NEWEST else int(opset)


def with_constant_kernel(
    case: Any, opset: int
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], np.ndarray]:
    """Return a case's model with its kernel as an initializer, its other inputs, and the kernel.

    The operators have not changed what they compute since opset 7, so that the cases hold at any.
    """
    model = copy.deepcopy(case.model)
    graph, (node,) = model.graph, model.graph.node
    model.opset_import[0].version = opset
    model.ir_version = 3 if opset < 9 else 8 if opset < 21 else 10
    inputs = dict(zip([v.name for v in graph.input], case.data_sets[0][0], strict=True))
    kernel = np.asarray(inputs.pop(node.input[1]))
    graph.initializer.append(numpy_helper.from_array(kernel, node.input[1]))
    if model.ir_version > 3:
        graph.input.remove(next(v for v in graph.input if v.name == node.input[1]))
    return model, inputs, kernel


def case_of(name: str) -> Any:
    if name in MAY_BE_MISSING - convolutions().keys():
        pytest.skip(f"onnx {onnx.__version__} has no case {name}")
    return convolutions()[name]


def groups_of(model: onnx.ModelProto) -> int:
    (node,) = model.graph.node
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def plan_of(layer: str, choice: onnxlr.plan.Choice) -> Plan:
    return Plan({layer: choice}, None, "onnx", 0, "test")


def expect_outputs(case: Any, model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> None:
    (expected,) = case.data_sets[0][1]
    for level in LEVELS:
        found = run(model, inputs, level)[0]
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_cases_are_all_there_is() -> None:
    """A case that onnx adds some day is listed above, or this says so."""
    assert CASES - MAY_BE_MISSING <= convolutions().keys() <= CASES


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(CASES - SKIPPED.keys()))
def test_convolutions_at_full_rank(name: str, form: str, opset: int | str, tmp_path: Path) -> None:
    case = case_of(name)
    model, inputs, kernel = with_constant_kernel(case, version_of(case, opset))
    (layer,) = find_layers(open_model(model))
    assert layer.skip is None
    transposed = layer.operator == "ConvTranspose"
    forms, groups = forms_of(kernel.shape[2:]), groups_of(model)
    # of auto any rank that is too high: each form takes its own full one
    rank = 999 if form == "auto" else 1
    if form in forms:
        rank = full_rank(kernel, groups, transposed, form)
    plan, output = plan_of(layer.name, of_rank(rank, form)), tmp_path / "out.onnx"
    if form != "auto" and form not in forms:
        with pytest.raises(onnxlr.UsageError, match=f"has no {form} form"):
            onnxlr.rewrite(model, output, plan=plan, isolate=False)
        return
    if name in STATES_ITS_SHAPE and form.startswith("spatial"):
        with pytest.raises(onnxlr.UsageError, match="the node states its output_shape"):
            onnxlr.rewrite(model, output, plan=plan, isolate=False)
        return
    with pytest.warns(onnxlr.OnnxlrWarning, match="because the plan says so"):
        (record,) = onnxlr.rewrite(model, output, plan=plan, isolate=False).layers
    assert record.error is not None
    assert record.error < 1e-6
    written = onnx.load(output)
    assert len(written.graph.node) == 2
    expect_outputs(case, written, inputs)


@pytest.mark.parametrize("opset", [OWN, 7, NEWEST])
@pytest.mark.parametrize("name", sorted(CASES - SKIPPED.keys()))
def test_kernels_of_small_whole_numbers_are_exact_in_float16(
    name: str, opset: int | str, tmp_path: Path
) -> None:
    """The cases' kernels are: all of 1, or of whole numbers below 2048."""
    case = case_of(name)
    model, inputs, kernel = with_constant_kernel(case, version_of(case, opset))
    assert np.array_equal(kernel, kernel.astype(np.float16))
    (layer,) = find_layers(open_model(model))
    with pytest.warns(onnxlr.OnnxlrWarning, match="because the plan says so"):
        onnxlr.rewrite(
            model,
            tmp_path / "out.onnx",
            plan=plan_of(layer.name, quantized("float16")),
            isolate=False,
        )
    written = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in written.graph.node] == ["Cast", layer.operator]
    expect_outputs(case, written, inputs)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", sorted(SKIPPED))
def test_skipped_cases_say_why(name: str, opset: int | str, tmp_path: Path) -> None:
    case = case_of(name)
    model, inputs, _ = with_constant_kernel(case, version_of(case, opset))
    (layer,) = find_layers(open_model(model))
    assert layer.skip == SKIPPED[name]
    with pytest.raises(onnxlr.PlanError, match=SKIPPED[name]):
        onnxlr.rewrite(model, tmp_path / "out.onnx", plan=plan_of(layer.name, of_rank(1, None)))
    expect_outputs(case, model, inputs)  # it would run


def test_the_original_cases_leave_their_kernels_alone() -> None:
    """Before a kernel is made constant it is data, and the reason says that."""
    for case in convolutions().values():
        (layer,) = find_layers(open_model(case.model))
        assert layer.skip == "its kernel is computed, not constant"
