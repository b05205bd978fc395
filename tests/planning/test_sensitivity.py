"""Damages of trials, against models that really have the approximation for a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper, numpy_helper

from onnxlr.errors import RuntimeFailureError
from onnxlr.layers import Layer, find_layers, read_weight
from onnxlr.model import open_model
from onnxlr.model.saving import write_model
from onnxlr.planning.opened import open_weights
from onnxlr.planning.sensitivity import Sensitivity, measure
from onnxlr.runtime import ExecutionError, run_task, store_arrays
from tests.onelayer import Array, model_of, run

Feeds = list[dict[str, Array]]


def damages_of(
    model: onnx.ModelProto,
    feeds: Feeds,
    trials: Mapping[str, list[Array]],
    folder: Path,
    isolate: bool = False,
) -> dict[str, list[float]]:
    """Return the damage of each trial, given as canonical weights by layer."""
    source = open_model(model)
    layers = [layer for layer in find_layers(source) if layer.skip is None]
    opened, inputs = open_weights(open_model(model), layers)
    onnx.checker.check_model(opened.proto, full_check=True)
    write_model(opened, folder, "opened.onnx")
    originals: dict[str, Array] = {}
    files, owners = [], []
    for layer in layers:
        if layer.name not in inputs:
            continue
        originals |= inputs[layer.name].arranged(read_weight(source, layer))
        for changed in trials.get(layer.name, []):
            file = folder / f"t{len(files)}.npz"
            store_arrays(file, inputs[layer.name].arranged(changed))
            files.append(str(file))
            owners.append(layer.name)
    store_arrays(folder / "weights.npz", originals)
    names = []
    for number, feed in enumerate(feeds):
        names.append(str(folder / f"f{number}.npz"))
        store_arrays(Path(names[-1]), feed)
    task = Sensitivity(str(folder / "opened.onnx"), str(folder / "weights.npz"), files, names)
    found = run_task(task, "m", isolate)["damages"]
    result: dict[str, list[float]] = {name: [] for name in trials}
    for owner, value in zip(owners, found, strict=True):
        result[owner].append(value)
    return result


def expected_damage(model: onnx.ModelProto, other: onnx.ModelProto, feeds: Feeds) -> float:
    """Return `Σ ‖y − ŷ‖² / ‖y‖²` over the outputs, all runs together."""
    one, two = ([run(m, feed) for feed in feeds] for m in (model, other))
    total = 0.0
    for output in range(len(one[0])):
        y, z = (
            np.concatenate([r[output].ravel() for r in runs]).astype(np.float64)
            for runs in (one, two)
        )
        total += float(np.sum((y - z) ** 2) / np.sum(y**2))
    return total


def replaced(model: onnx.ModelProto, name: str, value: Array) -> onnx.ModelProto:
    """Return the model with another constant of that name, wherever it stands."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    done = 0

    def visit(graph: onnx.GraphProto) -> None:
        nonlocal done
        for tensor in graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(value, name))
                done += 1
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)
                if node.op_type == "Constant" and name in node.output:
                    attribute.t.CopyFrom(numpy_helper.from_array(value, name))
                    done += 1

    visit(copy.graph)
    assert done == 1
    return copy


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matmul() -> tuple[onnx.ModelProto, Feeds]:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Relu", ["h"], ["y"]),
        helper.make_node("ReduceSum", ["h"], ["z"], keepdims=0),
    ]
    x = normal(4, 8)
    model = model_of(nodes, {"x": x}, ["y", "z"], {"W": normal(8, 6, seed=1)})
    return model, [{"x": normal(4, 8, seed=i)} for i in range(3)]


def left() -> tuple[onnx.ModelProto, Feeds]:
    nodes = [helper.make_node("MatMul", ["W", "x"], ["y"], name="layer")]
    model = model_of(nodes, {"x": normal(8, 5)}, ["y"], {"W": normal(6, 8, seed=1)})
    return model, [{"x": normal(8, 5, seed=i)} for i in range(2)]


def gemm() -> tuple[onnx.ModelProto, Feeds]:
    node = helper.make_node(
        "Gemm", ["x", "W", "c"], ["y"], name="layer", alpha=0.5, beta=2.0, transB=1
    )
    constants = {"W": normal(6, 8, seed=1), "c": normal(6, seed=2)}
    model = model_of([node], {"x": normal(4, 8)}, ["y"], constants)
    return model, [{"x": normal(4, 8, seed=i)} for i in range(2)]


def convolution() -> tuple[onnx.ModelProto, Feeds]:
    node = helper.make_node(
        "Conv", ["x", "W", "c"], ["y"], name="layer", group=2, strides=[2, 1], pads=[1, 0, 0, 1]
    )
    constants = {"W": normal(6, 2, 3, 3, seed=1), "c": normal(6, seed=2)}
    model = model_of([node], {"x": normal(2, 4, 7, 7)}, ["y"], constants)
    return model, [{"x": normal(2, 4, 7, 7, seed=i)} for i in range(2)]


def spreading() -> tuple[onnx.ModelProto, Feeds]:
    node = helper.make_node("ConvTranspose", ["x", "W"], ["y"], name="layer", group=2)
    model = model_of([node], {"x": normal(2, 4, 5, 5)}, ["y"], {"W": normal(4, 3, 2, 2, seed=1)})
    return model, [{"x": normal(2, 4, 5, 5, seed=i)} for i in range(2)]


def two_sites() -> tuple[onnx.ModelProto, Feeds]:
    """Return a weight that one node takes as it is and another transposed."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Tanh", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "W"], ["y"], name="back", transB=1),
    ]
    model = model_of(nodes, {"x": normal(4, 8)}, ["y"], {"W": normal(8, 6, seed=1)})
    return model, [{"x": normal(4, 8, seed=i)} for i in range(2)]


def in_branch() -> tuple[onnx.ModelProto, Feeds]:
    """Return a weight inside an If, which shadows nothing and is an initializer of the branch."""
    output = helper.make_tensor_value_info("t", TensorProto.FLOAT, [4, 6])
    taken = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["t"], name="layer")],
        "taken",
        [],
        [output],
        [numpy_helper.from_array(normal(8, 6, seed=1), "W")],
    )
    other = helper.make_graph(
        [helper.make_node("Slice", ["x", "from", "to", "axes"], ["t"])], "other", [], [output]
    )
    node = helper.make_node("If", ["on"], ["y"], then_branch=taken, else_branch=other)
    inputs = {"x": normal(4, 8), "on": np.array(True)}
    constants = {"from": np.array([0]), "to": np.array([6]), "axes": np.array([1])}
    model = model_of([node], inputs, ["y"], constants)
    return model, [{"x": normal(4, 8, seed=i), "on": np.array(i != 1)} for i in range(3)]


def constant_node() -> tuple[onnx.ModelProto, Feeds]:
    nodes = [
        helper.make_node(
            "Constant", [], ["W"], value=numpy_helper.from_array(normal(6, 8, seed=1), "W")
        ),
        helper.make_node("Transpose", ["W"], ["V"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "V"], ["y"], name="layer"),
    ]
    model = model_of(nodes, {"x": normal(4, 8)}, ["y"], {})
    return model, [{"x": normal(4, 8, seed=i)} for i in range(2)]


def old() -> tuple[onnx.ModelProto, Feeds]:
    """Return a model of IR version 3, whose initializers are inputs, too."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")]
    constants = {"W": normal(8, 6, seed=1)}
    model = model_of(nodes, {"x": normal(4, 8)}, ["y"], constants, opset=8, ir_version=3)
    return model, [{"x": normal(4, 8, seed=i)} for i in range(2)]


def stack() -> tuple[onnx.ModelProto, Feeds]:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")]
    model = model_of(nodes, {"x": normal(3, 4, 8)}, ["y"], {"W": normal(3, 8, 6, seed=1)})
    return model, [{"x": normal(3, 4, 8, seed=i)} for i in range(2)]


def half() -> tuple[onnx.ModelProto, Feeds]:
    """Return a weight stored in float16 behind a Cast."""
    nodes = [
        helper.make_node("Cast", ["W"], ["V"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "V"], ["y"], name="layer"),
    ]
    weight = normal(8, 6, seed=1).astype(np.float16)
    model = model_of(nodes, {"x": normal(4, 8)}, ["y"], {"W": weight})
    return model, [{"x": normal(4, 8, seed=i)} for i in range(2)]


CASES: dict[str, Callable[[], tuple[onnx.ModelProto, Feeds]]] = {
    f.__name__: f
    for f in (
        matmul,
        left,
        gemm,
        convolution,
        spreading,
        two_sites,
        in_branch,
        constant_node,
        old,
        stack,
        half,
    )
}

TO_STORED: dict[str, Callable[[Array], Array]] = {
    "left": np.transpose,  # canonical is (inputs, outputs)
    "gemm": np.transpose,
    "constant_node": np.transpose,
    # ConvTranspose stores (inputs, outputs/groups, …), canonical is (outputs, inputs/groups, …)
    "spreading": lambda w: np.concatenate([p.swapaxes(0, 1) for p in np.split(w, 2)]),
    "half": lambda w: w.astype(np.float16),
}


def only_layer(model: onnx.ModelProto) -> tuple[Layer, Array]:
    source = open_model(model)
    (layer,) = (layer for layer in find_layers(source) if layer.skip is None)
    return layer, read_weight(source, layer)


@pytest.mark.parametrize("case", CASES)
def test_damages_are_those_of_models_with_the_other_weight(case: str, tmp_path: Path) -> None:
    model, feeds = CASES[case]()
    layer, weight = only_layer(model)
    random = np.random.default_rng(9)
    # halves are exact in float16, too, so that both models compute with the same numbers
    changed = [
        (np.round(2 * random.standard_normal(weight.shape)) / 2).astype(np.float32),
        (np.round(4 * weight.astype(np.float64)) / 4).astype(np.float32),
    ]
    found = damages_of(model, feeds, {layer.name: changed}, tmp_path)[layer.name]
    stored = TO_STORED.get(case, np.asarray)
    expected = [
        expected_damage(model, replaced(model, "W", np.ascontiguousarray(stored(c))), feeds)
        for c in changed
    ]
    assert expected[0] > expected[1] > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_two_layers_one_at_a_time(tmp_path: Path) -> None:
    """A trial changes one weight, and the next one has the original there again."""
    nodes = [
        helper.make_node("MatMul", ["x", "V"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "W"], ["y"], name="second"),
    ]
    constants = {"V": normal(8, 6, seed=1), "W": normal(6, 5, seed=2)}
    model = model_of(nodes, {"x": normal(4, 8)}, ["y"], constants)
    feeds = [{"x": normal(4, 8, seed=i)} for i in range(2)]
    changed = {"first": [normal(8, 6, seed=3)], "second": [normal(6, 5, seed=4)] * 2}
    found = damages_of(model, feeds, changed, tmp_path, isolate=True)
    for layer, name in (("first", "V"), ("second", "W")):
        other = replaced(model, name, changed[layer][0])
        expected = expected_damage(model, other, feeds)
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4)


def test_all_files_of_a_trial_count_together(tmp_path: Path) -> None:
    """Two weights are replaced at once; the originals are in a file each as well."""
    nodes = [
        helper.make_node("MatMul", ["x", "V"], ["h"]),
        helper.make_node("MatMul", ["h", "W"], ["y"]),
    ]
    arrays = {name: normal(6, 6, seed=i) for i, name in enumerate(("V", "W", "V'", "W'"))}
    feed = {"x": normal(4, 6, seed=7)}
    model = model_of(nodes, feed | {n: arrays[n] for n in "VW"}, ["y"], {})
    onnx.save(model, tmp_path / "m.onnx")
    files = {name: str(tmp_path / f"{i}.npz") for i, name in enumerate([*arrays, "x"])}
    for name, file in files.items():
        store_arrays(Path(file), {name[0]: (arrays | feed)[name]})
    trials = [[files["V'"], files["W'"]], files["W'"], []]
    found = measure(str(tmp_path / "m.onnx"), [files["V"], files["W"]], trials, [files["x"]])
    y, *others = (
        feed["x"].astype(np.float64) @ arrays[v] @ arrays[w]
        for v, w in (("V", "W"), ("V'", "W'"), ("V", "W'"), ("V", "W"))
    )
    expected = [np.sum((y - z) ** 2) / np.sum(y**2) for z in others]
    np.testing.assert_allclose(found["damages"], expected, rtol=1e-4, atol=1e-12)


def test_the_original_does_no_damage(tmp_path: Path) -> None:
    model, feeds = convolution()
    layer, weight = only_layer(model)
    assert damages_of(model, feeds, {layer.name: [weight]}, tmp_path)[layer.name] == [0.0]


def test_outputs_of_zeros_and_whole_numbers_do_not_count(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"], name="layer"),
        helper.make_node("ArgMax", ["y"], ["which"], axis=-1),
        helper.make_node("Sub", ["x", "x"], ["nothing"]),
    ]
    model = model_of(nodes, {"x": normal(4, 8)}, ["y", "nothing"], {"W": normal(8, 6, seed=1)})
    model.graph.output.add().CopyFrom(
        helper.make_tensor_value_info("which", TensorProto.INT64, [4, 1])
    )
    feeds: Any = [{"x": normal(4, 8)}]
    changed = normal(8, 6, seed=2)
    y, z = (feeds[0]["x"].astype(np.float64) @ w for w in (normal(8, 6, seed=1), changed))
    found = damages_of(model, feeds, {"layer": [changed]}, tmp_path)["layer"]
    np.testing.assert_allclose(found, np.sum((y - z) ** 2) / np.sum(y**2), rtol=1e-5)


def test_an_output_that_overflows_is_the_worst(tmp_path: Path) -> None:
    """Infinity minus infinity is no number, which would compare as the least damage of all."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Exp", ["h"], ["y"]),
    ]
    model = model_of(nodes, {"x": normal(4, 8)}, ["y"], {"W": normal(8, 6, seed=1)})
    feeds = [{"x": normal(4, 8)}]
    trials = [normal(8, 6, seed=1) * 1.01, normal(8, 6, seed=1) * 1000]
    mild, wild = damages_of(model, feeds, {"layer": trials}, tmp_path)["layer"]
    assert np.isfinite(mild)
    assert np.isfinite(wild)
    assert wild > 10 * mild


def test_infinite_outputs_of_the_original_do_not_count(tmp_path: Path) -> None:
    """As in logits that a mask sets to minus infinity."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="layer"),
        helper.make_node("Add", ["h", "mask"], ["y"]),
    ]
    mask = np.array([0, 0, -np.inf, 0, 0, -np.inf], np.float32)
    weight, changed = normal(8, 6, seed=1), normal(8, 6, seed=2)
    model = model_of(nodes, {"x": normal(4, 8)}, ["y"], {"W": weight, "mask": mask})
    x = normal(4, 8).astype(np.float64)
    found = damages_of(model, [{"x": normal(4, 8)}], {"layer": [changed]}, tmp_path)["layer"]
    y, z = ((x @ w)[:, np.isfinite(mask)] for w in (weight, changed))
    np.testing.assert_allclose(found, np.sum((y - z) ** 2) / np.sum(y**2), rtol=1e-5)


def test_a_model_that_does_not_run_is_a_sentence(tmp_path: Path) -> None:
    model, _ = matmul()
    wrong = [{"x": normal(4, 7)}]
    with pytest.raises(RuntimeFailureError, match="m: its sensitivity cannot be measured"):
        damages_of(model, wrong, {"layer": [normal(8, 6)]}, tmp_path)
    with pytest.raises(ExecutionError, match="its sensitivity cannot be measured"):
        measure(str(tmp_path / "none.onnx"), str(tmp_path / "weights.npz"), [], [])


def test_a_type_that_the_runtime_has_no_kernels_for(tmp_path: Path) -> None:
    """ONNX's reference evaluator runs it, and its outputs count as the floats that they are."""
    x, weight, changed = (
        np.round(4 * normal(*shape, seed=seed)) / 4
        for seed, shape in enumerate(((4, 8), (8, 6), (8, 6)))
    )
    kind = TensorProto.BFLOAT16
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")],
        "graph",
        [helper.make_tensor_value_info("x", kind, [4, 8])],
        [helper.make_tensor_value_info("y", kind, [4, 6])],
        [numpy_helper.from_array(weight.astype(bfloat16), "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    feeds = [{"x": x.astype(bfloat16)}]
    found = damages_of(model, feeds, {"layer": [changed.astype(bfloat16)]}, tmp_path)["layer"]
    y, z = (x.astype(np.float64) @ w.astype(np.float64) for w in (weight, changed))
    np.testing.assert_allclose(found, np.sum((y - z) ** 2) / np.sum(y**2), rtol=2e-2)
