"""Weights made of atoms by nodes, at load and in each run.

Expected products are numpy's or ONNX Runtime's, of the numbers that plain loops add up.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxlr.lowering import LoweringRefusedError
from onnxlr.stages import recombined
from tests.lowering.written import expect, operators, optimised, written
from tests.onelayer import LEVELS, distance, model_of, newest_opset, run
from tests.sums_of_atoms import forms, sums_of

ALL_OPSETS = sorted({7, 8, 9, 10, 11, 12, 13, 17, 21, newest_opset()})
OPSETS = st.sampled_from(ALL_OPSETS)
PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "FusedConv"}
AROUND = {"ReorderInput", "ReorderOutput", "Cast"}
"""What ONNX Runtime puts around a product."""
seeds = st.integers(0, 2**16)


def _normal(seed, *shape, dtype="float32"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def _expect_way(changed, each_run):
    """Check that ONNX Runtime makes the weight when it loads the model, or only in runs."""
    left = set(operators(optimised(changed))) - PRODUCTS - AROUND
    if each_run:
        assert {"Size", "Reshape"} <= left
    else:
        assert not left


@settings(deadline=None, max_examples=80)
@given(
    data=st.data(),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 9),
    lead=st.lists(st.integers(1, 3), max_size=2) | st.just([0]),
    opset=OPSETS,
    left=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    each_run=st.booleans(),
)
def test_matrices(data, inputs, outputs, lead, opset, left, dtype, each_run):
    sums = sums_of((inputs, outputs), dtype=dtype, **data.draw(forms(inputs)))
    x = _normal(1, *lead, inputs, dtype=dtype)
    expected = x.astype(np.float64) @ sums.dense
    size = np.abs(x).astype(np.float64) @ np.abs(sums.dense)
    weight, operands = _normal(0, inputs, outputs, dtype=dtype), ["x", "w"]
    if left:
        operands, weight = ["w", "x"], weight.T.copy()
        if x.ndim > 1:
            x, expected = (np.ascontiguousarray(np.swapaxes(a, -1, -2)) for a in (x, expected))
    node = helper.make_node("MatMul", operands, ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": weight}, opset)
    changed = written(model, [recombined(sums.atoms, None, (), each_run)])
    expect(changed, {"x": x}, expected, 1e-5, size)
    _expect_way(changed, each_run)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    operator=st.sampled_from(["Conv", "ConvTranspose"]),
    inputs=st.integers(2, 6),
    outputs=st.integers(2, 5),
    groups=st.integers(1, 3),
    extent=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    opset=OPSETS,
    each_run=st.booleans(),
)
def test_kernels(data, operator, inputs, outputs, groups, extent, opset, each_run):
    dims = (outputs * groups, inputs, *extent)
    sums = sums_of(dims, kernel=True, **data.draw(forms(inputs * int(np.prod(extent)))))

    def arranged(kernel):
        if operator == "Conv":
            return kernel
        apart = kernel.reshape(groups, outputs, inputs, *extent).swapaxes(1, 2)
        return apart.reshape(groups * inputs, outputs, *extent).copy()

    x = _normal(1, 2, inputs * groups, *(size + 2 for size in extent))
    bias = _normal(2, outputs * groups)
    node = helper.make_node(operator, ["x", "w", "b"], ["y"], group=groups)

    def model(kernel):
        constants = {"w": arranged(kernel.astype(np.float32)), "b": bias}
        return model_of([node], {"x": x}, ["y"], constants, opset)

    stage = recombined(sums.atoms, groups, tuple(range(len(extent))), each_run)
    changed = written(model(_normal(3, *dims)), [stage])
    expect(changed, {"x": x}, run(model(sums.dense), {"x": x})[0], 2e-5)
    _expect_way(changed, each_run)


@pytest.mark.parametrize("each_run", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_keeps_alpha_beta_and_bias(left, transposed, each_run):
    sums = sums_of((20, 6), width=3, size=16, kind="int8")
    x = _normal(1, 20, 4) if left else _normal(1, 4, 20)
    bias = _normal(2, 4 if left else 6)
    expected = 0.5 * (sums.dense.T @ x if left else x @ sums.dense) - 2.0 * bias
    weight = _normal(3, 6, 20) if left else _normal(3, 20, 6)
    flags = {"transA" if left else "transB": 1, "transB" if left else "transA": 1}
    attributes = {"alpha": 0.5, "beta": -2.0, **(flags if transposed else {})}
    if transposed:
        weight, x = weight.T.copy(), x.T.copy()
    names = ["w", "x", "b"] if left else ["x", "w", "b"]
    node = helper.make_node("Gemm", names, ["y"], **attributes)
    model = model_of([node], {"x": x}, ["y"], {"w": weight, "b": bias})
    changed = written(model, [recombined(sums.atoms, None, (), each_run)])
    expect(changed, {"x": x}, expected, 1e-5)
    left_over = set(operators(optimised(changed))) - {"Gemm", "Transpose"}
    assert bool(left_over) == each_run


@pytest.mark.parametrize("each_run", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", [{"width": 2}, {"width": 12, "entries": None, "bits": 3}])
def test_two_sites_share_what_is_stored(form, dtype, each_run):
    sums = sums_of((12, 12), size=8, dtype=dtype, **form)
    x, weight = _normal(1, 12, 12, dtype=dtype), _normal(2, 12, 12, dtype=dtype)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["w", "a"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {"w": weight})
    changed = written(model, [recombined(sums.atoms, None, (), each_run)])
    expect(changed, {"x": x}, sums.dense @ (x @ sums.dense), 1e-5)
    alone = written(
        model_of(nodes[:1], {"x": x}, ["a"], {"w": weight}),
        [recombined(sums.atoms, None, (), each_run)],
    )
    assert _floats(changed) == _floats(alone)
    _expect_way(changed, each_run)


def _floats(model):
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in (1, 11))


@pytest.mark.parametrize("each_run", [False, True])
@pytest.mark.parametrize("opset", [9, 13, 21])
@pytest.mark.parametrize(
    "form",
    [
        {"kind": "float16"},
        {"kind": "int8", "width": 20, "entries": None, "bits": 4},
        {"width": 20, "size": 40, "entries": 3, "bits": 4},
        {"width": 20, "size": 5, "entries": None, "bits": 16, "kind": "float16"},
        {"width": 4, "size": 9, "entries": 2, "bits": 32},
    ],
)
def test_float16_models(form, opset, each_run):
    sums = sums_of((20, 6), dtype="float16", **form)
    x = _normal(1, 4, 20, dtype="float16")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = _normal(2, 20, 6, dtype="float16")
    model = model_of([node], {"x": x}, ["y"], {"w": weight}, opset)
    changed = written(model, [recombined(sums.atoms, None, (), each_run)])
    expect(changed, {"x": x}, x.astype(np.float64) @ sums.dense, 3e-3)
    _expect_way(changed, each_run)


def _sparse(dims, entries, bits):
    """Return a sparse matrix of integers, or of floats: atoms are single inputs."""
    drawn = sums_of(dims, width=dims[0], size=dims[0], entries=entries, bits=bits).atoms
    return replace(drawn, dictionary=replace(drawn.dictionary, codes=np.eye(dims[0], dtype="f4")))


@pytest.mark.parametrize("each_run", [False, True])
@pytest.mark.parametrize("opset", [7, 9, 11, 17])
@pytest.mark.parametrize("entries", [3, 12, None])
@pytest.mark.parametrize("bits", [4, 16, 32])
def test_an_identity_is_not_stored(entries, opset, each_run, bits):
    atoms = _sparse((24, 16), entries, bits)
    x = _normal(1, 5, 24)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": _normal(2, 24, 16)}, opset)
    changed = written(model, [recombined(atoms, None, (), each_run)])
    values = np.zeros((24, 16))
    kept = atoms.coefficients
    for output in range(16):
        for entry in range(kept.shape[2]):
            row = entry if kept.indices is None else kept.indices[0, output, entry]
            values[row, output] += float(kept.values[0, output, entry]) * float(
                atoms.scales[output]
            )
    expect(changed, {"x": x}, x @ values, 1e-5)
    assert max(np.prod(t.dims) for t in changed.graph.initializer) < 24 * 24
    _expect_way(changed, each_run)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("opset", ALL_OPSETS)
def test_what_is_made_in_each_run_hangs_on_no_data(static, opset):
    sums = sums_of((24, 8), width=3, size=500, bits=3, kind="int8")
    rows = 4 if static else "rows"
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": _normal(1, 4, 24)},
        ["y"],
        {"w": _normal(2, 24, 8)},
        opset,
    )
    for value in (model.graph.input[0], model.graph.output[0]):
        dim = value.type.tensor_type.shape.dim[0]
        if not static:
            dim.dim_param = rows
    changed = written(model, [recombined(sums.atoms, None, (), True)])
    _expect_way(changed, True)
    x = _normal(1, 4, 24)
    x[1, 2], x[2, 3] = np.nan, np.inf
    for level in LEVELS:
        found = run(changed, {"x": x}, level)[0]
        clean = x[[0, 3]] @ sums.dense
        assert np.allclose(found[[0, 3]], clean, rtol=1e-4, atol=1e-4 * np.abs(clean).max())
        assert np.isnan(found[1]).all()
    if not static:
        assert run(changed, {"x": x[:0]})[0].shape == (0, 8)
        assert run(changed, {"x": np.tile(x, (5, 1))})[0].shape == (20, 8)


@pytest.mark.parametrize("each_run", [False, True])
def test_inside_branches(each_run):
    sums = sums_of((12, 5), width=4, size=9, entries=2)
    weight = _normal(2, 12, 5)

    def branch(name, sign):
        inner = [
            helper.make_node("MatMul", ["x", "w"], [f"{name}.a"]),
            helper.make_node("Mul", [f"{name}.a", sign], [name]),
        ]
        value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3, 5])
        return helper.make_graph(inner, name, [], [value])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("t", "plus"), else_branch=branch("e", "minus")
    )
    x = _normal(1, 3, 12)
    constants = {"w": weight, "plus": np.float32([1]), "minus": np.float32([-1])}
    model = model_of([node], {"x": x, "c": np.array(True)}, ["y"], constants)
    changed = written(model, [recombined(sums.atoms, None, (), each_run)])
    for flag in (True, False):
        expected = (1 if flag else -1) * (x @ sums.dense)
        expect(changed, {"x": x, "c": np.array(flag)}, expected, 1e-5)


@pytest.mark.parametrize("each_run", [False, True])
def test_inside_a_function(each_run):
    sums = sums_of((12, 5), width=4, size=30, entries=2, bits=3)
    x, weight = _normal(1, 3, 12), numpy_helper.from_array(_normal(2, 12, 5), "w")
    body = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["a", "w"], ["r"]),
    ]
    opset = helper.make_opsetid("", 17)
    function = helper.make_function("own", "F", ["a"], ["r"], body, [opset])
    graph = helper.make_graph(
        [helper.make_node("F", ["x"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [3, 12])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, 5])],
    )
    opsets = [opset, helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    changed = written(model, [recombined(sums.atoms, None, (), each_run)])
    expect(changed, {"x": x}, x @ sums.dense, 1e-5)
    _expect_way(changed, each_run)


@pytest.mark.parametrize("opset", [7, 11, 17])
@pytest.mark.parametrize(
    "form",
    [
        {"width": 3, "size": 300},
        {"width": 4, "size": 30, "kind": "int4", "entries": 2, "bits": 3},
        {"width": 24, "size": 40, "entries": 3, "bits": 5},
        {"width": 12, "size": 64, "entries": 9, "bits": 4},
        {"width": 24, "size": 7, "entries": None, "bits": 32},
        {"width": 24, "size": 60, "entries": 20, "bits": 16},
        {"width": 4, "size": 30, "entries": 2, "bits": 16},
    ],
)
def test_the_reference_evaluator_agrees(form, opset):
    sums = sums_of((24, 8), **form)
    x = _normal(1, 4, 24)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": _normal(2, 24, 8)}, opset)
    changed = written(model, [recombined(sums.atoms, None, (), True)])
    assert distance(ReferenceEvaluator(changed).run(None, {"x": x})[0], x @ sums.dense) < 1e-5


@pytest.mark.parametrize("activations", ["dynamic_int8", "static_int8"])
@pytest.mark.parametrize("target", ["onnx", "ort", "onnxlr"])
def test_int8_data_is_refused(target, activations):
    sums = sums_of((12, 5))
    x = _normal(1, 3, 12)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": _normal(2, 12, 5)})
    stage = recombined(sums.atoms, None, ())
    with pytest.raises(LoweringRefusedError, match="cannot write sums of atoms") as error:
        written(model, [stage], target, activations)
    assert f"float weights are made of them, {activations} data was asked" in str(error.value)
    changed = written(model, [stage], target)
    expect(changed, {"x": x}, x @ sums.dense, 1e-5)


@pytest.mark.parametrize("opset", ALL_OPSETS)
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(
    ("size", "entries", "width"), [(5, None, 24), (30, 4, 24), (30, 2, 3), (30, 1, 3), (40, 25, 24)]
)
def test_floats_are_multiplied_in_each_run_if_that_is_asked(size, entries, width, bits, opset):
    sums = sums_of((24, 16), width=width, size=size, entries=entries, bits=bits)
    x = _normal(1, 5, 24)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = model_of([node], {"x": x}, ["y"], {"w": _normal(2, 24, 16)}, opset)
    changed = written(model, [recombined(sums.atoms, None, (), True)])
    size = np.abs(x).astype(np.float64) @ np.abs(sums.dense)
    expect(changed, {"x": x}, x.astype(np.float64) @ sums.dense, 1e-5, size)
    assert {"Size", "Mul"} <= set(operators(optimised(changed)))  # the scales wait for the sums
