"""Importance by the weight's name and stored shape, however the node takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxlr
from onnxlr.calibration.importance import load_importance
from onnxlr.errors import DataError
from onnxlr.evidence import Knowledge
from onnxlr.layers import find_layers, read_weight
from onnxlr.methods import SvdOptions
from onnxlr.model import open_model
from onnxlr.plan import Choice, Plan
from onnxlr.rewriting import Rewriting, follow_plan
from tests.classifier import classifier
from tests.onelayer import Array, model_of


def load(importance: Any, model: onnx.ModelProto | None = None) -> Any:
    return load_importance(importance, find_layers(open_model(model or classifier())))


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


# --- what is refused -----------------------------------------------------------------------------


def with_entry(value: float) -> Array:
    values = ones(24, 32)
    values[3, 5] = value
    return values


def lopsided() -> Array:
    values = np.eye(32)
    values[0, 1] = 0.5
    return values


REFUSED: dict[str, tuple[Mapping[str, Any], list[str]]] = {
    "near": ({"w11": ones(24, 32)}, ["'w11' is no weight of a layer; did you mean 'w1'?"]),
    "far": ({"completely else": ones(2, 2)}, ["'completely else'", "onnxlr inspect --json"]),
    "a bias": ({"bias": ones(10)}, ["'bias' is no weight of a layer"]),
    "near gradients": (
        {"w22/output_covariance": np.eye(32)},
        ["'w22' is no weight of a layer; did you mean 'w2'?"],
    ),
    "nothing": ({}, ["holds no arrays"]),
    "transposed": ({"w1": ones(32, 24)}, ["'w1' has shape [32, 24], expected [24, 32]"]),
    "flat": ({"w1": ones(24 * 32)}, ["'w1' has shape [768], expected [24, 32]"]),
    "negative": ({"w1": with_entry(-1)}, ["'w1' has 1 negative entries", "mean of squares"]),
    "nan": ({"w1": with_entry(np.nan)}, ["'w1' has 1 entries that are NaN or infinite"]),
    "infinite": ({"w1": with_entry(np.inf)}, ["'w1' has 1 entries that are NaN or infinite"]),
    "zero": ({"w1": 0 * ones(24, 32)}, ["'w1' is zero everywhere"]),
    "words": ({"w1": np.full((24, 32), "a")}, ["'w1' has dtype", "expected numbers"]),
    "complex": ({"w1": np.full((24, 32), 1j)}, ["'w1' has dtype complex128, expected numbers"]),
    "booleans": ({"w1": np.full((24, 32), True)}, ["'w1' has dtype bool, expected numbers"]),
    "gradients of inputs": (
        {"w1/output_covariance": np.eye(24)},
        ["'w1/output_covariance' has shape [24, 24], expected [32, 32]"],
    ),
    "a vector of gradients": ({"w1/output_covariance": ones(32)}, ["has shape [32], expected"]),
    "not symmetric": ({"w1/output_covariance": lopsided()}, ["must be symmetric"]),
    "negative squares": ({"w1/output_covariance": -np.eye(32)}, ["with a diagonal of squares"]),
    "gradients of nan": (
        {"w1/output_covariance": np.full((32, 32), np.nan)},
        ["'w1/output_covariance' has 1,024 entries that are NaN"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("as_file", [False, True])
def test_what_is_refused(case: str, as_file: bool, tmp_path: Path) -> None:
    arrays, words = REFUSED[case]
    source: Any = arrays
    if as_file:
        source = tmp_path / "i.npz"
        np.savez(source, **arrays)
    with pytest.raises(DataError) as caught:
        load(source)
    for word in [*words, str(source) if as_file else "the importance"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.npz: no such file \(expected a .npz file\)"):
        load(tmp_path / "gone.npz")
    np.save(tmp_path / "one.npy", ones(24, 32))
    with pytest.raises(DataError, match="holds one array without a name"):
        load(tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("w1: 3")
    with pytest.raises(DataError, match="is not a file that numpy wrote"):
        load(tmp_path / "text.npz")
    np.savez(tmp_path / "pickled.npz", w1=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="pickles"):
        load(tmp_path / "pickled.npz")
    whole = (tmp_path / "pickled.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.npz: cannot be read"):
        load(tmp_path / "cut.npz")


def test_what_is_given_is_what_is_known(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    entries, root = random.random((24, 32)), random.standard_normal((10, 10))
    arrays = {"w1": entries, "w3/output_covariance": root @ root.T}
    np.savez(tmp_path / "i.npz", **arrays)
    for source in (arrays, tmp_path / "i.npz", str(tmp_path / "i.npz")):
        found = load(source)
        assert (list(found.entries), list(found.gradients)) == (["first"], ["head"])
        np.testing.assert_array_equal(found.entries["first"], entries)
        np.testing.assert_array_equal(found.gradients["head"], root @ root.T)


def test_weights_of_one_name_in_two_branches() -> None:
    """Each branch has a weight of its own called `W`: the importance is that of both."""

    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "W"], [name], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(normal(30, 20, seed=len(name)), "W")],
        )

    node = helper.make_node("If", ["on"], ["y"], then_branch=branch("a"), else_branch=branch("bb"))
    model = model_of([node], {"x": normal(4, 30), "on": np.array(True)}, ["y"], {})
    importance = np.abs(normal(30, 20, seed=5))
    found = load({"W": importance}, model)
    assert sorted(found.entries) == ["a", "bb"]
    for entries in found.entries.values():
        np.testing.assert_array_equal(entries, importance)


def test_counts_are_numbers_too() -> None:
    found = load({"w1": np.arange(24 * 32).reshape(24, 32)})
    assert found.entries["first"].dtype == np.float64


# --- the canonical order -------------------------------------------------------------------------


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="layer")]
    return model_of(nodes, {"x": normal(4, 30)}, ["y"], {"W": normal(30, 20)})


def on_the_left() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["W", "x"], ["y"], name="layer")]
    return model_of(nodes, {"x": normal(20, 4)}, ["y"], {"W": normal(30, 20)})


def gemm() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "W"], ["y"], name="layer", transB=1)]
    return model_of(nodes, {"x": normal(4, 20)}, ["y"], {"W": normal(30, 20)})


def behind_transpose() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["W"], ["V"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "V"], ["y"], name="layer"),
    ]
    return model_of(nodes, {"x": normal(4, 20)}, ["y"], {"W": normal(30, 20)})


def behind_reshape() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["W"], ["U"], perm=[2, 0, 1]),
        helper.make_node("Reshape", ["U", "shape"], ["V"]),
        helper.make_node("Cast", ["V"], ["T"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "T"], ["y"], name="layer"),
    ]
    constants = {"W": normal(5, 6, 20).astype(np.float16), "shape": np.array([20, 30])}
    return model_of(nodes, {"x": normal(4, 20)}, ["y"], constants)


def constant_node() -> onnx.ModelProto:
    value = numpy_helper.from_array(normal(30, 20), "W")
    nodes = [
        helper.make_node("Constant", [], ["W"], value=value),
        helper.make_node("MatMul", ["x", "W"], ["y"], name="layer"),
    ]
    return model_of(nodes, {"x": normal(4, 30)}, ["y"], {})


def convolution() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "W"], ["y"], name="layer", group=2)]
    return model_of(nodes, {"x": normal(1, 16, 9, 9)}, ["y"], {"W": normal(20, 8, 3, 3)})


def spreading() -> onnx.ModelProto:
    nodes = [helper.make_node("ConvTranspose", ["x", "W"], ["y"], name="layer", group=2)]
    return model_of(nodes, {"x": normal(1, 16, 5, 5)}, ["y"], {"W": normal(16, 10, 3, 3)})


CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        plain,
        on_the_left,
        gemm,
        behind_transpose,
        behind_reshape,
        constant_node,
        convolution,
        spreading,
    )
}


def stored(model: onnx.ModelProto) -> Array:
    source = open_model(model)
    (layer,) = find_layers(source)
    assert layer.weight is not None
    return source.read(layer.weight.tensor)


@pytest.mark.parametrize("case", CASES)
def test_importance_lies_as_the_weight_does(case: str) -> None:
    """With a weight for its own importance, both have to become canonical alike."""
    model = CASES[case]()
    found = load({"W": np.abs(stored(model))}, model)
    source = open_model(model)
    (layer,) = find_layers(source)
    weight = read_weight(source, layer)
    np.testing.assert_array_equal(found.entries[layer.name], np.abs(weight))


AS_TAKEN: dict[str, Callable[[Array], Array]] = {
    "behind_transpose": np.transpose,
    "behind_reshape": lambda w: w.transpose(2, 0, 1).reshape(20, 30),
}
"""How the node takes the stored weight, where it is not as it is stored."""


def approximation(model: onnx.ModelProto, choice: Choice, importance: Any) -> Array:
    """Return the dense weight that a node is given instead, as it takes it."""
    source, reference = open_model(model), open_model(model)
    layers = find_layers(source)
    found = load_importance(importance, layers)
    plan = Plan({layers[0].name: choice}, None, "onnx", 0, "test")
    work = Rewriting(source, reference, "onnx")
    knowledge = Knowledge(importance=found.entries)
    for proposal in follow_plan(source, layers, plan, knowledge=knowledge):
        work.add(proposal)
    work.finish(plan)
    (dense,) = (t for t in reference.proto.graph.initializer if "approximation" in t.name)
    return numpy_helper.to_array(dense).astype(np.float64)


@pytest.mark.parametrize("solver", ["als", "em", "adam-sgd"])
@pytest.mark.parametrize("case", CASES)
def test_the_entry_that_counts_is_met(case: str, solver: str) -> None:
    """One stored entry is important: it is nearly exact in what the node is given instead."""
    model = CASES[case]()
    whole = stored(model)
    importance = np.ones(whole.shape)
    taken = AS_TAKEN.get(case, np.asarray)
    options = SvdOptions(rank=2)
    plainly = approximation(model, Choice("svd", options), {"W": importance})
    # what a plain fit misses by most, and where that is stored
    worst = np.argmax(np.abs(plainly - taken(whole)))
    place = np.unravel_index(
        taken(np.arange(whole.size).reshape(whole.shape)).ravel()[worst], whole.shape
    )
    importance[place] = 1e4
    marked = taken(importance) > 1
    value = float(whole[place])
    fisher = approximation(
        model, Choice("svd", options, "fisher", solver=solver), {"W": importance}
    )
    assert fisher.shape == taken(whole).shape
    (met,), (missed,) = fisher[marked], plainly[marked]
    assert abs(missed - value) > 0.1 * abs(value)
    assert abs(met - value) < 0.05 * abs(missed - value)


@pytest.mark.parametrize("case", CASES)
def test_the_row_that_counts_is_met(case: str) -> None:
    """Metric fisher-rows weights inputs: an important one keeps its whole row."""
    model = CASES[case]()
    whole = stored(model)
    importance = np.ones(whole.shape)
    place = tuple(int(i) for i in np.random.default_rng(7).integers(0, whole.shape))
    importance[place] = 1e6
    taken = AS_TAKEN.get(case, np.asarray)
    marked = taken(importance) > 1
    options = SvdOptions(rank=2)
    rows = approximation(model, Choice("svd", options, "fisher-rows"), {"W": importance})
    plainly = approximation(model, Choice("svd", options), {"W": importance})
    value = float(whole[place])
    (met,), (missed,) = rows[marked], plainly[marked]
    assert abs(met - value) < 0.05 * abs(missed - value)


def test_gradients_that_count() -> None:
    """Metric kfac: an output whose gradients are large keeps its column, whatever the others do."""
    random = np.random.default_rng(3)
    x = random.standard_normal((64, 24)).astype(np.float32)
    gradients = np.ones(32)
    gradients[5] = 1e6
    arrays = {"w1/output_covariance": np.diag(gradients)}
    weight = normal(24, 32)
    model = classifier(w1=weight)
    known: dict[str, Any] = {"calibration": {"x": x}, "isolate": False, "layers": ["first"]}
    errors = {}
    for metric in ("kfac", "activation"):
        given = {"importance": arrays} if metric == "kfac" else {}
        plan = onnxlr.plan(
            model, rank=2, metric=metric, bias_correction=False, holdout=0, **given, **known
        )
        assert plan.layers["first"].metric == metric
        covariance = x.T.astype(np.float64) @ x / len(x)
        chain = onnxlr.decompose(
            weight,
            rank=2,
            covariance=covariance,
            output_covariance=np.diag(gradients) if metric == "kfac" else None,
        )
        errors[metric] = np.linalg.norm(x @ (chain.reconstruct() - weight)[:, 5])
    assert errors["kfac"] < 0.05 * errors["activation"]
